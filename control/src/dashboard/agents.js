// The agents, and one of them.

import { follow, get, pause } from "./api.js";
import { attr, card, facts, h, list, notice, text } from "./dom.js";
import { ago, clock, count, shortId } from "./format.js";
import { limitPanel, lookAtLimit } from "./limits.js";
import { eventLine, processTables } from "./processes.js";

/** Between two looks at a list that is shown. */
const EVERY = 4000;
const PAGE_SIZE = 50;
/** After the last key before it is searched. */
const TYPING = 200;

const MARKS = { connected: "●", disconnected: "○", revoked: "✕" };

/** An agent's state, told by shape, word and colour. */
export const agentBadge = () => h("span", { class: "badge" });

export function setAgentBadge(badge, state) {
  attr(badge, "data-state", state);
  text(badge, `${MARKS[state] ?? "?"} ${state}`);
}

function agentRow(agent) {
  const cells = {
    name: h("a", { class: "row-link", href: `#/agents/${agent.id}` }),
    state: agentBadge(),
    use: h("td", { class: "num" }),
    ready: h("td", { class: "num wide" }),
    group: h("td", { class: "wide" }),
    place: h("td", { class: "wide" }),
    since: h("td", { class: "num" }),
    software: h("td", { class: "wider" }),
  };
  const node = h("tr", { "data-agent": agent.id }, h("th", { scope: "row" }, cells.name), h("td", {}, cells.state), cells.use, cells.ready, cells.group, cells.place, cells.since, cells.software);
  return { node, cells };
}

function fillRow({ cells }, agent) {
  text(cells.name, agent.hostname || agent.id);
  attr(cells.name, "title", agent.id);
  setAgentBadge(cells.state, agent.state);
  text(cells.use, agent.capacity ? `${count(agent.in_use)} / ${count(agent.capacity)}` : count(agent.in_use));
  text(cells.ready, count(agent.ready));
  text(cells.group, agent.group.name);
  text(cells.place, agent.session ? `${agent.session.shard}${agent.session.at_home ? "" : " (away)"}` : "–");
  text(cells.since, agent.since ? ago(agent.since) : "–");
  attr(cells.since, "title", agent.since);
  text(cells.software, agent.software || "–");
}

/** Repeats `look` until the view is left; a failure is shown and tried again. */
export function keepLooking(look, every = EVERY) {
  const stop = new AbortController();
  let again = new AbortController();
  const run = async () => {
    while (!stop.signal.aborted) {
      again = new AbortController();
      await look(stop.signal);
      await Promise.race([pause(every, stop.signal), pause(3_600_000, again.signal)]);
    }
  };
  run();
  return { now: () => again.abort(), end: () => stop.abort() };
}

/** The list of agents: searched, filtered, paged. */
export function agentsView(params) {
  const asked = { search: params.get("search") ?? "", state: params.get("state") ?? "", group: params.get("group") ?? "" };
  const tokens = [undefined];
  const field = h("input", { id: "search", type: "search", value: asked.search, placeholder: "Hostname, label or id", "aria-label": "Search agents by hostname, label or id", autocomplete: "off", spellcheck: "false", maxlength: 100 });
  const states = h("select", { id: "state", "aria-label": "State" }, [["", "any state"], ["connected", "connected"], ["disconnected", "disconnected"], ["revoked", "revoked"]].map(([value, label]) => h("option", { value, selected: value === asked.state }, label)));
  const found = h("p", { class: "note", role: "status" }, "Loading…");
  const body = h("tbody");
  const headings = [["Host"], ["State"], ["In use", "num"], ["Ready", "num wide"], ["Group", "wide"], ["Shard", "wide"], ["Since", "num"], ["Software", "wider"]];
  const table = h("table", { class: "rows" }, h("caption", { class: "unseen" }, "Agents"), h("thead", {}, h("tr", {}, headings.map(([label, kind]) => h("th", { scope: "col", class: kind }, label)))), body);
  const empty = h("div", { hidden: true });
  const earlier = h("button", { type: "button", class: "button", disabled: true }, "‹ Previous");
  const later = h("button", { type: "button", class: "button", disabled: true }, "Next ›");
  let next;
  let turn = 0;

  const look = async (signal) => {
    const mine = ++turn;
    try {
      const page = await get("/v1/agents", { ...asked, page_size: PAGE_SIZE, page_token: tokens.at(-1) }, signal);
      if (mine !== turn) return;
      list(body, page.items, (agent) => agent.id, agentRow, fillRow);
      next = page.next_page_token;
      const from = (tokens.length - 1) * PAGE_SIZE;
      text(found, page.items.length ? `${count(from + 1)} to ${count(from + page.items.length)}${next ? ", more follow" : ""}` : "");
      table.hidden = !page.items.length;
      empty.hidden = !table.hidden;
      if (table.hidden) empty.replaceChildren(nothing());
      earlier.disabled = tokens.length < 2;
      later.disabled = !next;
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      text(found, `${error.message} Trying again…`);
    }
  };
  const nothing = () =>
    asked.search || asked.state || asked.group
      ? notice("No agent is like this", "Search for another part of the hostname, a label such as rack=7, or an id.")
      : notice("No agent has joined yet", "Make a join token with drover tokens create, and let a host join with drover agent join.");
  const looking = keepLooking(look);
  const restart = () => {
    tokens.splice(1);
    const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
    history.replaceState(null, "", query ? `#/agents?${query}` : "#/agents");
    looking.now();
  };
  let typing = 0;
  field.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      asked.search = field.value.trim();
      restart();
    }, TYPING);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") body.querySelector("a.row-link")?.focus();
  });
  states.addEventListener("change", () => {
    asked.state = states.value;
    restart();
  });
  earlier.addEventListener("click", () => {
    tokens.pop();
    looking.now();
  });
  later.addEventListener("click", () => {
    tokens.push(next);
    looking.now();
  });
  if (params.get("focus") === "search") setTimeout(() => field.focus());
  const group = asked.group ? h("span", { class: "note" }, `in ${asked.group} `, h("a", { href: "#/agents" }, "all groups")) : null;
  return {
    title: "Agents",
    node: h("div", { class: "page" }, h("div", { class: "page-head" }, h("h1", {}, "Agents"), h("div", { class: "tools" }, field, states, group)), h("div", { class: "card flush" }, table, empty), h("div", { class: "pager" }, found, earlier, later)),
    leave: looking.end,
  };
}

const FACTS = [
  ["since", "Since"],
  ["remote", "Address"],
  ["shard", "Shard"],
  ["session", "Session"],
  ["use", "Operations"],
  ["ready", "Ready"],
  ["group", "Group"],
  ["epoch", "Group's epoch"],
  ["kinds", "Drivers"],
  ["software", "Software"],
  ["seen", "Last seen"],
  ["joined", "Joined"],
];

/** Events that are shown of an agent. */
const EVENTS_SHOWN = 100;

/** One agent. */
export function agentView(id) {
  const title = h("h1", {}, "…");
  const badge = agentBadge();
  const about = facts(FACTS);
  const labels = h("ul", { class: "chips", "aria-label": "Labels" });
  const processes = processTables(id);
  const events = h("ol", { class: "events", "aria-label": "Events, newest first" });
  const phase = h("span", { class: "note" }, "connecting…");
  const limit = limitPanel();
  const trouble = h("div", { hidden: true });
  const content = h(
    "div",
    { class: "grid" },
    card("Session", { class: "span-5" }, about.node, labels),
    card("Events", { class: "span-7", tools: phase }, events, h("p", { class: "note empty" }, "Nothing since this page was opened. Sessions and operations show up here as they happen.")),
    card("Limit", { class: "span-5", note: "how much it is given at once" }, limit.about),
    card("Who waits", { class: "span-7", note: "lines of demand, and the limit that each waits for" }, limit.lines),
    card("Under way", { class: "span-12", note: "what the agent has now" }, processes.active),
    card("Processes", { class: "span-12", note: "waiting or ended, newest first" }, processes.others),
  );
  const epochs = new Map();
  const look = async (signal) => {
    try {
      const agent = await get(`/v1/agents/${encodeURIComponent(id)}`, {}, signal);
      if (!epochs.has(agent.group.id)) {
        const group = await get(`/v1/groups/${agent.group.id}`, {}, signal);
        epochs.set(agent.group.id, group.epoch);
      }
      trouble.hidden = true;
      content.hidden = false;
      fill(agent, epochs.get(agent.group.id));
      await lookAtLimit(limit, { scope: "agent", key: agent.id }, signal).catch((error) => limit.fail(error));
    } catch (error) {
      if (signal.aborted) return;
      if (error.status !== 404 && error.status !== 400) return;
      trouble.replaceChildren(notice("There is no such agent", error.message, h("p", {}, h("a", { href: "#/agents" }, "All agents"))));
      trouble.hidden = false;
      content.hidden = true;
      text(title, "Agent");
    }
  };
  const fill = (agent, epoch) => {
    text(title, agent.hostname || agent.id);
    document.title = `${agent.hostname || "Agent"} · Drover`;
    setAgentBadge(badge, agent.state);
    const { session } = agent;
    about.set("since", agent.since ? `${clock(agent.since)} (${ago(agent.since)})` : "–", agent.since);
    about.set("remote", session?.remote);
    about.set("shard", session ? `${session.shard}, ${session.at_home ? "its group's home" : "away from its group's home"}` : null);
    about.set("session", session ? count(session.id) : "none");
    about.set("use", agent.capacity ? `${count(agent.in_use)} of ${count(agent.capacity)} at once` : count(agent.in_use));
    about.set("ready", count(agent.ready));
    about.set("group", h("a", { href: `#/agents?group=${encodeURIComponent(agent.group.name)}` }, agent.group.name));
    about.set("epoch", count(epoch));
    about.set("kinds", agent.kinds.join(", ") || "none");
    about.set("software", agent.software);
    about.set("seen", agent.last_seen_at ? ago(agent.last_seen_at) : "–", agent.last_seen_at);
    about.set("joined", clock(agent.created_at), agent.created_at);
    list(labels, Object.entries(agent.labels), ([name]) => name, () => ({ node: h("li") }), ({ node }, [name, value]) => text(node, `${name}=${value}`));
  };
  const looking = keepLooking(look, 2000);
  const stop = new AbortController();
  follow(`/v1/events?agent=${encodeURIComponent(id)}`, {
    signal: stop.signal,
    onPhase: (now) => text(phase, now === "live" ? "live" : "reconnecting…"),
    onEvent: (event) => {
      const record = JSON.parse(event.data);
      events.prepend(eventLine(record, { withProcess: true }));
      while (events.children.length > EVENTS_SHOWN) events.lastChild.remove();
      processes.changed();
      if (!record.type.startsWith("process.")) looking.now();
    },
  });
  return {
    title: "Agent",
    node: h("div", { class: "page" }, h("nav", { class: "crumbs", "aria-label": "Where this is" }, h("a", { href: "#/agents" }, "Agents"), h("span", { "aria-hidden": "true" }, "/"), h("code", { title: id }, shortId(id))), h("div", { class: "page-head" }, title, badge), trouble, content),
    leave() {
      looking.end();
      processes.leave();
      stop.abort();
    },
  };
}
