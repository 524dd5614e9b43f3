// Limits: what may be at work at once where, what the last decision about it was, and who waits.

import { keepLooking } from "./agents.js";
import { get } from "./api.js";
import { card, facts, h, notice, text } from "./dom.js";
import { ago, clock, count, digits, rate, shortId, span } from "./format.js";
import { notedRows } from "./tables.js";

const PAGE_SIZE = 50;
const EVERY = 3000;
/** Agents that are looked through for those at which most waits, and those that are shown of them. */
const AGENTS_AMONG = 200;
const AGENTS_SHOWN = 12;

const given = (value) => value !== null && value !== undefined;
const shorter = (key) => (key.length > 24 ? shortId(key) : key);
const name = (limit) => limit.name || shorter(limit.key);
const path = ({ scope, key }) => `#/limits/${encodeURIComponent(scope)}/${encodeURIComponent(key)}`;
const address = ({ scope, key }) => `/v1/limits/${encodeURIComponent(scope)}/${encodeURIComponent(key)}`;

/** How much of a limit is in use: a bar with a mark at the limit, and words for who cannot see it. */
function gauge(live) {
  const running = live.running ?? live.in_use;
  const granted = live.granted ?? 0;
  const most = Math.max(live.limit, live.capacity ?? 0, running + granted, 1);
  const part = (value) => `${(Math.min(value / most, 1) * 100).toFixed(1)}%`;
  const fill = h("span", { class: "gauge-fill" });
  const held = h("span", { class: "gauge-granted" });
  const mark = h("span", { class: "gauge-mark" });
  fill.style.width = part(running);
  held.style.left = part(running);
  held.style.width = part(granted);
  mark.style.left = part(live.limit);
  return h("span", { class: "gauge", role: "img", "aria-label": `${running} running, ${granted} granted, the limit is ${live.limit}` }, fill, held, mark);
}

/** What operators have set, in words. */
function set({ min, max, pin, weight }) {
  const parts = [given(pin) ? `pinned to ${pin}` : "", given(min) ? `at least ${min}` : "", given(max) ? `at most ${max}` : "", given(weight) ? `weight ${weight}` : ""];
  return parts.filter(Boolean).join(", ") || "nothing";
}

function moved(decision) {
  if (!decision) return "–";
  const arrow = decision.to > decision.from ? "↑" : decision.to < decision.from ? "↓" : "=";
  return `${arrow} ${digits(decision.from)} → ${digits(decision.to)}, ${span(decision.age_ms / 1000)} ago: ${decision.text ?? decision.why}`;
}

const waiting = (live) => (given(live?.waiting) ? count(live.waiting) : given(live?.parked_lines) ? `${count(live.parked_lines)} ${live.parked_lines === 1 ? "line" : "lines"}` : "–");

const COLUMNS = [
  { label: "Limit", show: (limit) => h("a", { class: "row-link", href: path(limit), title: limit.key }, name(limit)) },
  { label: "Of", show: (limit) => limit.scope },
  { label: "In use", kind: "num", show: ({ live, not_live }) => (live ? `${count(live.in_use)} / ${count(live.limit)}` : ["–", not_live]) },
  { label: "", kind: "wide gauge-cell", show: ({ live }) => (live ? gauge(live) : "") },
  { label: "Waiting", kind: "num", show: ({ live }) => waiting(live) },
];

const SET = [
  ...COLUMNS,
  { label: "Set", kind: "wide", show: (limit) => [set(limit), (limit.warnings ?? []).join("; ") || null] },
  { label: "By", kind: "wider", show: (limit) => [limit.by ?? "–", limit.at] },
  { label: "Why", kind: "wider clip", show: (limit) => [limit.reason ?? "", limit.reason] },
];

const AGENTS = [
  ...COLUMNS,
  { label: "Last decision", kind: "wide clip", show: ({ live }) => [moved(live?.decision), live?.decision ? moved(live.decision) : null] },
];

/** The limits of agents at which most waits: everybody who waits asks about these first. */
async function busiest(signal) {
  const page = await get("/v1/agents", { state: "connected", page_size: AGENTS_AMONG }, signal);
  const busy = page.items.filter((agent) => agent.ready > 0 || agent.in_use > 0).sort((a, b) => b.ready - a.ready || b.in_use - a.in_use);
  const limits = await Promise.all(busy.slice(0, AGENTS_SHOWN).map((agent) => get(address({ scope: "agent", key: agent.id }), {}, signal)));
  return { limits, busy: busy.length, more: Boolean(page.next_page_token) };
}

function saidOf({ limits, busy, more }) {
  const among = more ? ` among the first ${AGENTS_AMONG} that are connected` : "";
  if (!limits.length) return `No agent has work${among}. The page of an agent shows its limit in any case.`;
  return busy > limits.length || more ? `The ${limits.length} with the most that waits${among}.` : "";
}

/** What operators have set, and the agents' own limits where something waits. */
export function limitsView() {
  const tokens = [undefined];
  const limits = notedRows("Limits that operators have set", (limit) => `${limit.scope}/${limit.key}`, SET);
  const agents = notedRows("Limits of agents", (limit) => limit.key, AGENTS);
  const found = h("p", { class: "note", role: "status" });
  const earlier = h("button", { type: "button", class: "button", disabled: true }, "‹ Previous");
  const later = h("button", { type: "button", class: "button", disabled: true }, "Next ›");
  const pager = h("div", { class: "pager", hidden: true }, found, earlier, later);
  let next;
  let turn = 0;
  const lookAtSet = async (signal) => {
    const mine = ++turn;
    try {
      const page = await get("/v1/limits", { page_size: PAGE_SIZE, page_token: tokens.at(-1) }, signal);
      if (mine !== turn) return;
      limits.fill(page.items, page.items.length ? "" : "None is set: every agent's limit follows what it can take.");
      next = page.next_page_token;
      const from = (tokens.length - 1) * PAGE_SIZE;
      text(found, `${count(from + 1)} to ${count(from + page.items.length)}${next ? "; more follow" : ""}`);
      pager.hidden = tokens.length < 2 && !next;
      earlier.disabled = tokens.length < 2;
      later.disabled = !next;
    } catch (error) {
      if (!signal.aborted && mine === turn) limits.fail(error);
    }
  };
  const lookAtAgents = async (signal) => {
    try {
      const seen = await busiest(signal);
      agents.fill(seen.limits, saidOf(seen));
    } catch (error) {
      if (!signal.aborted) agents.fail(error);
    }
  };
  const looking = keepLooking((signal) => Promise.all([lookAtSet(signal), lookAtAgents(signal)]), EVERY);
  earlier.addEventListener("click", () => {
    tokens.pop();
    looking.now();
  });
  later.addEventListener("click", () => {
    tokens.push(next);
    looking.now();
  });
  return {
    title: "Limits",
    node: h(
      "div",
      { class: "page" },
      h("div", { class: "page-head" }, h("h1", {}, "Limits")),
      h(
        "div",
        { class: "grid" },
        card("Set by operators", { class: "span-12", note: "what may be at work at once", tools: h("code", { class: "note" }, "drover limits set") }, limits.node, pager),
        card("Agents", { class: "span-12", note: "each limit follows what its agent can take" }, agents.node),
      ),
    ),
    leave: looking.end,
  };
}

const FACTS = [
  ["limit", "Limit now"],
  ["use", "In use"],
  ["waiting", "Waiting"],
  ["capacity", "Announced capacity"],
  ["set", "Set"],
  ["who", "Set by"],
  ["decision", "Last decision"],
  ["change", "Change"],
  ["slowdown", "Operations take"],
  ["rate", "Operations end"],
];

const LINES = [
  { label: "Tenant", show: (line) => line.tenant || "default" },
  { label: "Class", kind: "wide", show: (line) => line.class },
  { label: "Kind", show: (line) => line.kind },
  { label: "Work", kind: "wide", show: (line) => [line.work, ...(line.resources ?? [])].filter(Boolean).join(", ") || "any" },
  { label: "Waiting", kind: "num", show: (line) => count(line.waiting) },
  { label: "Waits for", show: ({ parked }) => (parked ? h("a", { href: path(parked), title: parked.key }, `${parked.scope} ${shorter(parked.key)}`) : "its turn at the agent") },
  { label: "In use", kind: "num wide", show: ({ parked }) => (parked ? `${count(parked.in_use)} / ${count(parked.limit)}` : "–") },
  { label: "Before it", kind: "num wide", show: ({ parked }) => (parked ? count(parked.before) : "–") },
];

/** Figures of one limit, and the lines of demand that wait under it. */
export function limitPanel() {
  const about = facts(FACTS);
  const bar = h("div", { class: "gauge-line" });
  const warnings = h("p", { class: "trouble", hidden: true });
  const lines = notedRows("Lines of demand", (line) => JSON.stringify([line.class, line.tenant, line.kind, line.work, line.resources]), LINES);
  return {
    about: h("div", {}, bar, warnings, about.node),
    lines: lines.node,
    fill(limit) {
      const { live } = limit;
      const decision = live?.decision;
      bar.replaceChildren(...(live ? [gauge(live)] : []));
      warnings.hidden = !limit.warnings?.length;
      text(warnings, (limit.warnings ?? []).join(" "));
      about.set("limit", live ? count(live.limit) : (limit.not_live ?? "not known"));
      about.set("use", live ? (given(live.running) ? `${count(live.running)} running${live.granted ? `, ${count(live.granted)} about to` : ""}` : count(live.in_use)) : null);
      about.set("waiting", waiting(live));
      about.set("capacity", given(live?.capacity) ? `${count(live.capacity)} at once` : null);
      about.set("set", set(limit));
      about.set("who", limit.by ? `${limit.by}, ${clock(limit.at)}: ${limit.reason}` : "nobody", limit.at);
      about.set("decision", decision ? (decision.text ?? decision.why) : limit.scope === "agent" ? "none yet" : null);
      about.set("change", decision ? `${digits(decision.from)} → ${digits(decision.to)}, ${ago(new Date(Date.now() - decision.age_ms).toISOString())}` : null);
      about.set("slowdown", decision?.slowdown ? `${digits(decision.slowdown)} × as long as their kind usually does; without delay here ${digits(decision.baseline)} ×` : null);
      about.set("rate", decision?.rate ? `${rate(decision.rate)} a second` : null);
      const waits = live?.lines ?? [];
      lines.fill(waits, waits.length ? "" : limit.scope === "agent" ? "Nobody waits here." : "Lines are told by the agents that they wait at.");
    },
    fail: (error) => lines.fail(error),
  };
}

/** Keeps a panel up to date with the limit of an agent, wherever it is shown. */
export async function lookAtLimit(panel, limit, signal) {
  const seen = await get(address(limit), {}, signal);
  panel.fill(seen);
  return seen;
}

/** One limit: what it is, why, and who waits. */
export function limitView(scope, key) {
  const title = h("h1", {}, "…");
  const panel = limitPanel();
  const trouble = h("div", { hidden: true });
  const content = h("div", { class: "grid" }, card("In force", { class: "span-5" }, panel.about), card("Who waits", { class: "span-7", note: "lines of demand, and the limit that each waits for" }, panel.lines));
  const look = async (signal) => {
    try {
      const limit = await lookAtLimit(panel, { scope, key }, signal);
      const shown = `${limit.scope} ${name(limit)}`;
      title.replaceChildren(limit.scope === "agent" ? h("a", { href: `#/agents/${limit.key}` }, shown) : shown);
      document.title = `${shown} · Drover`;
      trouble.hidden = true;
      content.hidden = false;
    } catch (error) {
      if (signal.aborted) return;
      if (error.status !== 404 && error.status !== 400) return panel.fail(error);
      text(title, "Limit");
      trouble.replaceChildren(notice("There is no such limit", error.message, h("p", {}, h("a", { href: "#/limits" }, "All limits"))));
      trouble.hidden = false;
      content.hidden = true;
    }
  };
  const looking = keepLooking(look, EVERY);
  return {
    title: "Limit",
    node: h("div", { class: "page" }, h("nav", { class: "crumbs", "aria-label": "Where this is" }, h("a", { href: "#/limits" }, "Limits"), h("span", { "aria-hidden": "true" }, "/"), h("span", {}, scope)), h("div", { class: "page-head" }, title), trouble, content),
    leave: looking.end,
  };
}
