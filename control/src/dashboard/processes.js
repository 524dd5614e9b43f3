// Processes: the list, the table of an agent's, and one with its history and output.

import { keepLooking } from "./agents.js";
import { follow, get } from "./api.js";
import { attr, card, facts, h, list, notice, text } from "./dom.js";
import { ago, clock, clockMs, count, micros, shortId, span, words } from "./format.js";
import { stepList, whyNot } from "./steps.js";

const MARKS = {
  scheduled: "◷",
  blocked: "⊘",
  ready: "◌",
  paused: "‖",
  backoff: "↻",
  leased: "▷",
  running: "▶",
  unknown: "?",
  cancelling: "⊖",
  succeeded: "✓",
  failed: "✕",
  cancelled: "–",
};
const STATES = Object.keys(MARKS);
const OVER = ["succeeded", "failed", "cancelled"];
/** States of what an agent has, or may have, under way. */
const ACTIVE = ["leased", "running", "unknown", "cancelling"];
const PAGE_SIZE = 50;
/** Of an agent's processes so many are shown. */
const OF_AGENT = 15;
/** A look at a list that changes is at most this often. */
const PACE = 700;
/** Characters of output that are shown; more is in the API. */
const OUTPUT_SHOWN = 200_000;

/** A process's state, told by shape, word and colour. */
export function setStateBadge(badge, state) {
  attr(badge, "data-state", state);
  text(badge, `${MARKS[state] ?? "?"} ${state}`);
}

export const stateMark = (state) => MARKS[state] ?? "?";

function took(process, now = Date.now()) {
  if (!process.started_at) return "–";
  const end = process.finished_at ? Date.parse(process.finished_at) : now;
  const ms = end - Date.parse(process.started_at);
  return ms < 1 ? "<1 ms" : micros(ms * 1000);
}

function processRow(process) {
  const cells = {
    id: h("a", { class: "row-link mono", href: `#/processes/${process.id}`, title: process.id }, shortId(process.id)),
    state: h("span", { class: "badge" }),
    kind: h("td"),
    agent: h("td", { class: "wide" }),
    attempts: h("td", { class: "num wide" }),
    made: h("td", { class: "num" }),
    took: h("td", { class: "num wide" }),
    said: h("td", { class: "wider clip" }),
  };
  return { cells, node: h("tr", { "data-process": process.id }, h("th", { scope: "row" }, cells.id), h("td", {}, cells.state), cells.kind, cells.agent, cells.attempts, cells.made, cells.took, cells.said) };
}

function fillRow({ cells }, process, withAgent) {
  setStateBadge(cells.state, process.state);
  text(cells.kind, process.kind);
  if (withAgent && !cells.agent.firstChild) cells.agent.append(h("a", { class: "mono", href: `#/agents/${process.agent}`, title: process.agent }, shortId(process.agent)));
  text(cells.attempts, `${process.attempts} / ${process.max_attempts}`);
  text(cells.made, ago(process.created_at));
  attr(cells.made, "title", process.created_at);
  text(cells.took, took(process));
  text(cells.said, process.waiting_on?.detail ?? process.outcome?.message ?? "");
}

function table(withAgent) {
  const body = h("tbody");
  const headings = [["Process"], ["State"], ["Kind"], [withAgent ? "Agent" : "", "wide"], ["Attempts", "num wide"], ["Made", "num"], ["Took", "num wide"], ["Says", "wider"]];
  const node = h("table", { class: `rows${withAgent ? "" : " no-agent"}` }, h("caption", { class: "unseen" }, "Processes"), h("thead", {}, h("tr", {}, headings.map(([label, kind]) => h("th", { scope: "col", class: kind }, label)))), body);
  return { node, fill: (items) => list(body, items, (process) => process.id, processRow, (row, process) => fillRow(row, process, withAgent)) };
}

/** A table and, below it, a line that says what is not in it. */
function noted() {
  const rows = table(false);
  const line = h("p", { class: "note" }, "Loading…");
  rows.node.hidden = true;
  return {
    node: h("div", {}, rows.node, line),
    line,
    fill(items, said) {
      rows.fill(items);
      rows.node.hidden = !items.length;
      text(line, said);
    },
  };
}

/**
 * The processes of an agent, kept up to date: those that it has under way, however old, and the
 * newest of the others. `changed` says that something happened.
 */
export function processTables(agent) {
  const active = noted();
  const others = noted();
  const look = async (signal) => {
    try {
      const ask = (state) => get("/v1/processes", { agent, state, page_size: PAGE_SIZE }, signal);
      const pages = await Promise.all(ACTIVE.map(ask));
      const held = pages.flatMap((page) => page.items);
      const newest = await get("/v1/processes", { agent, page_size: PAGE_SIZE }, signal);
      // Of one that is in both, what was seen last.
      const all = [...new Map([...held, ...newest.items].map((process) => [process.id, process])).values()].sort((a, b) => (a.id < b.id ? 1 : -1));
      const under = all.filter((process) => ACTIVE.includes(process.state));
      const rest = all.filter((process) => !ACTIVE.includes(process.state));
      const more = newest.next_page_token || rest.length > OF_AGENT;
      active.fill(under, !under.length ? "Nothing at the moment." : pages.some((page) => page.next_page_token) ? `Of each state the newest ${PAGE_SIZE}.` : "");
      others.fill(rest.slice(0, OF_AGENT), rest.length ? (more ? `The newest ${Math.min(rest.length, OF_AGENT)}. ` : "") : "None yet, or none that is still kept: ended processes are kept for a week.");
      if (more) others.line.append(h("a", { href: `#/processes?agent=${encodeURIComponent(agent)}` }, "All of them"));
    } catch (error) {
      if (signal.aborted || error.status === 404 || error.status === 422) return;
      for (const { line } of [active, others]) text(line, `${error.message} Trying again…`);
    }
  };
  const looking = keepLooking(look, 5000);
  let soon = 0;
  return {
    active: active.node,
    others: others.node,
    changed() {
      soon ||= setTimeout(() => {
        soon = 0;
        looking.now();
      }, PACE);
    },
    leave() {
      clearTimeout(soon);
      looking.end();
    },
  };
}

/** The list of processes: filtered and paged. */
export function processesView(params) {
  const asked = { state: params.get("state") ?? "", agent: params.get("agent") ?? "", kind: params.get("kind") ?? "", tenant: params.get("tenant") ?? "", needs_attention: params.get("needs_attention") ?? "" };
  const tokens = [undefined];
  const states = h("select", { "aria-label": "State" }, h("option", { value: "" }, "any state"), STATES.map((state) => h("option", { value: state, selected: state === asked.state }, `${MARKS[state]} ${state}`)));
  const agent = h("input", { type: "search", value: asked.agent, placeholder: "Agent: hostname or id", "aria-label": "Agent, by hostname or id", autocomplete: "off", spellcheck: "false", maxlength: 253 });
  const kind = h("input", { type: "search", value: asked.kind, placeholder: "Kind", "aria-label": "Kind", class: "short", autocomplete: "off", spellcheck: "false", maxlength: 64 });
  const tenant = h("input", { type: "search", value: asked.tenant, placeholder: "Tenant", "aria-label": "Tenant", class: "short", autocomplete: "off", spellcheck: "false", maxlength: 64 });
  const attention = h("input", { type: "checkbox", checked: asked.needs_attention === "true" });
  const rows = table(true);
  const found = h("p", { class: "note", role: "status" }, "Loading…");
  const empty = h("div", { hidden: true }, notice("No process is like this", "Ended processes are kept for a week; drover run starts one."));
  const earlier = h("button", { type: "button", class: "button", disabled: true }, "‹ Previous");
  const later = h("button", { type: "button", class: "button", disabled: true }, "Next ›");
  let next;
  let turn = 0;
  const look = async (signal) => {
    const mine = ++turn;
    try {
      const page = await get("/v1/processes", { ...asked, page_size: PAGE_SIZE, page_token: tokens.at(-1) }, signal);
      if (mine !== turn) return;
      rows.fill(page.items);
      next = page.next_page_token;
      const from = (tokens.length - 1) * PAGE_SIZE;
      text(found, page.items.length ? `${count(from + 1)} to ${count(from + page.items.length)}, newest first${next ? "; more follow" : ""}` : "");
      rows.node.hidden = !page.items.length;
      empty.hidden = page.items.length > 0;
      earlier.disabled = tokens.length < 2;
      later.disabled = !next;
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      text(found, error.status === 422 || error.status === 400 ? error.message : `${error.message} Trying again…`);
      if (error.status === 422) {
        rows.fill([]);
        rows.node.hidden = true;
      }
    }
  };
  const looking = keepLooking(look);
  const restart = () => {
    Object.assign(asked, { state: states.value, agent: agent.value.trim(), kind: kind.value.trim(), tenant: tenant.value.trim(), needs_attention: attention.checked ? "true" : "" });
    tokens.splice(1);
    const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
    history.replaceState(null, "", query ? `#/processes?${query}` : "#/processes");
    looking.now();
  };
  for (const field of [states, agent, kind, tenant, attention]) field.addEventListener("change", restart);
  earlier.addEventListener("click", () => {
    tokens.pop();
    looking.now();
  });
  later.addEventListener("click", () => {
    tokens.push(next);
    looking.now();
  });
  return {
    title: "Processes",
    node: h("div", { class: "page" }, h("div", { class: "page-head" }, h("h1", {}, "Processes"), h("div", { class: "tools" }, agent, kind, tenant, states, h("label", { class: "check" }, attention, "people must look"))), h("div", { class: "card flush" }, rows.node, empty), h("div", { class: "pager" }, found, earlier, later)),
    leave: looking.end,
  };
}

/** One thing that happened, as a line. */
export function eventLine(record, { withProcess } = {}) {
  const { data } = record;
  const what = h("span", { class: "event-what" });
  if (record.type === "process.state" || record.type === "process.finished") {
    what.append(`${stateMark(data.from)} ${data.from} → `, h("strong", { "data-state": data.to }, `${stateMark(data.to)} ${data.to}`), data.attempt ? `, attempt ${data.attempt}` : "", data.exit_code !== undefined && data.exit_code !== null ? `, exit code ${data.exit_code}` : "", data.note ? `: ${data.note}` : "");
  } else if (record.type === "process.created") what.append("made");
  else if (record.type === "process.progress") what.append(["progress", data.percent === undefined ? "" : `${data.percent} %`, data.message ?? "", data.output ? `${data.channel ?? "output"}: ${count(size(data.output))} characters` : ""].filter(Boolean).join(", "));
  else if (record.type === "agent.up") what.append(h("strong", {}, "● session begun"), ` on shard ${data.shard}${data.at_home ? "" : " (away)"}, from ${data.remote}`);
  else if (record.type === "agent.down") what.append(h("strong", {}, "○ session ended"), `: ${data.reason}`);
  else what.append(words(record.type.replaceAll(".", " ")));
  const process = withProcess && record.process ? h("a", { class: "mono", href: `#/processes/${record.process}`, title: record.process }, shortId(record.process)) : null;
  return h("li", { "data-type": record.type }, h("time", { datetime: record.at, title: record.at }, clockMs(record.at)), process, what);
}

const size = (output) => (output.encoding === "base64" ? Math.floor((output.data.length * 3) / 4) : output.data.length);
const decoded = (output) => (output.encoding === "base64" ? `[${count(size(output))} bytes that are not text, in base64]\n${output.data}\n` : output.data);

const FACTS = [
  ["agent", "Agent"],
  ["kind", "Kind"],
  ["tenant", "Tenant"],
  ["step", "Step"],
  ["class", "Class"],
  ["resource", "Resource"],
  ["attempts", "Attempts"],
  ["made", "Made"],
  ["started", "Started"],
  ["finished", "Finished"],
  ["took", "Took"],
  ["deadline", "Deadline"],
  ["outcome", "Outcome"],
];

/** One process: what it is, its output, its history as it happens. */
export function processView(id) {
  const badge = h("span", { class: "badge" });
  const about = facts(FACTS);
  const why = whyNot();
  const attend = h("p", { class: "why", "data-scope": "attention", hidden: true }, h("strong", {}, "People must look. "), "What became of it is not known, or could not be undone: look at the host, then retry it, or leave it as it is. ", h("code", {}, `drover processes history ${id}`));
  const steps = stepList();
  const stepsCard = card("Steps", { class: "span-12", note: "in their order; if one fails for good, those that were done are undone" }, steps.node);
  stepsCard.hidden = true;
  const input = h("pre", { class: "block", tabindex: "0", "aria-label": "Input" }, "…");
  const output = h("pre", { class: "block output", tabindex: "0", "aria-label": "Output" });
  const result = h("pre", { class: "block", tabindex: "0", "aria-label": "Result" });
  const resultCard = card("Result", { class: "span-12", note: "what the driver returned" }, result);
  resultCard.hidden = true;
  const dropped = h("p", { class: "note", hidden: true });
  const history = h("ol", { class: "events", "aria-label": "History, oldest first" });
  const phase = h("span", { class: "note" }, "connecting…");
  const trouble = h("div", { hidden: true });
  const content = h(
    "div",
    { class: "grid" },
    card("Process", { class: "span-5" }, about.node),
    card("History", { class: "span-7", tools: phase }, history),
    stepsCard,
    card("Output", { class: "span-12", note: "stdout and stderr as they came" }, output, h("p", { class: "note empty" }, "No output yet."), dropped),
    resultCard,
    card("Input", { class: "span-12" }, input),
  );
  let shown = 0;
  let host = null;
  const look = async (signal) => {
    try {
      const process = await get(`/v1/processes/${encodeURIComponent(id)}`, {}, signal);
      host ??= (await get(`/v1/agents/${process.agent}`, {}, signal).catch(() => null))?.hostname;
      fill(process);
    } catch (error) {
      if (signal.aborted || (error.status !== 404 && error.status !== 400)) return;
      trouble.replaceChildren(notice("There is no such process", `${error.message} Ended processes are kept for a week.`, h("p", {}, h("a", { href: "#/processes" }, "All processes"))));
      trouble.hidden = false;
      content.hidden = true;
      why.set(null);
    }
  };
  const fill = (process) => {
    setStateBadge(badge, process.state);
    about.set("agent", h("a", { href: `#/agents/${process.agent}`, title: process.agent }, host || shortId(process.agent)));
    about.set("kind", process.kind);
    about.set("tenant", process.tenant || "default");
    about.set("step", process.step_count > 1 ? `${process.step + 1} of ${process.step_count}${process.undoing ? ", being undone" : ""}` : "1 of 1");
    about.set("class", process.class);
    about.set("resource", process.resource ?? "none");
    about.set("attempts", `${process.attempts} of at most ${process.max_attempts}`);
    why.set(process.waiting_on);
    attend.hidden = !process.needs_attention;
    stepsCard.hidden = !process.steps?.length;
    steps.set(process.steps ?? []);
    about.set("made", `${clock(process.created_at)} (${ago(process.created_at)})`, process.created_at);
    about.set("started", clock(process.started_at), process.started_at);
    about.set("finished", clock(process.finished_at), process.finished_at);
    about.set("took", took(process));
    const left = (Date.parse(process.deadline_at) - Date.now()) / 1000;
    about.set("deadline", OVER.includes(process.state) ? clock(process.deadline_at) : left > 0 ? `in ${span(left)}` : "passed", process.deadline_at);
    const { outcome } = process;
    about.set("outcome", outcome ? [words(outcome.status), outcome.exit_code === undefined ? "" : `exit code ${outcome.exit_code}`, outcome.message].filter(Boolean).join(", ") : "–");
    text(input, JSON.stringify(process.input, null, 2));
    if (outcome?.output?.data) {
      text(result, decoded(outcome.output).slice(0, OUTPUT_SHOWN));
      // Short output comes twice: as it was written, and as the result.
      resultCard.hidden = output.textContent === result.textContent;
    }
    dropped.hidden = !process.progress_dropped;
    text(dropped, `${count(process.progress_dropped)} more pieces of output were over the limit of what is kept.`);
  };
  const looking = keepLooking(look, 5000);
  const stop = new AbortController();
  follow(`/v1/events?process=${encodeURIComponent(id)}`, {
    after: 0,
    signal: stop.signal,
    onPhase: (now) => text(phase, now === "live" ? "live" : "reconnecting…"),
    onEvent: (event) => {
      const record = JSON.parse(event.data);
      const piece = record.type === "process.progress" && record.data.output;
      if (!piece) {
        history.append(eventLine(record));
        looking.now();
      } else if (shown < OUTPUT_SHOWN) {
        const words = decoded(record.data.output).slice(0, OUTPUT_SHOWN - shown);
        shown += words.length;
        const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
        output.append(h("span", { class: record.data.channel === "stderr" ? "stderr" : undefined }, words));
        if (atEnd) output.scrollTop = output.scrollHeight;
      }
    },
  });
  return {
    title: "Process",
    node: h("div", { class: "page" }, h("nav", { class: "crumbs", "aria-label": "Where this is" }, h("a", { href: "#/processes" }, "Processes"), h("span", { "aria-hidden": "true" }, "/"), h("code", {}, shortId(id))), h("div", { class: "page-head" }, h("h1", { class: "mono" }, id), badge), attend, why.node, trouble, content),
    leave() {
      looking.end();
      stop.abort();
    },
  };
}
