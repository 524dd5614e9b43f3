// What wants a person: processes that nobody can decide about, dead letters, pauses, batches.

import { keepLooking } from "./agents.js";
import { get } from "./api.js";
import { card, h } from "./dom.js";
import { ago, count, shortId, words } from "./format.js";
import { stateMark } from "./processes.js";
import { notedRows } from "./tables.js";

/** Rows that each table shows at most; the command line has the rest. */
const SHOWN = 50;

const link = (href, shown, title) => h("a", { class: "row-link", href, title }, shown);
const moment = (at) => [ago(at), at];

const LOOK = [
  { label: "Process", show: (process) => h("a", { class: "row-link mono", href: `#/processes/${process.id}`, title: process.id }, shortId(process.id)) },
  { label: "State", show: (process) => `${stateMark(process.state)} ${process.state}` },
  { label: "Kind", show: (process) => process.kind },
  { label: "Agent", kind: "wide", show: (process) => h("a", { class: "mono", href: `#/agents/${process.agent}`, title: process.agent }, shortId(process.agent)) },
  { label: "Ended", kind: "num", show: (process) => moment(process.finished_at) },
  { label: "Says", kind: "wider clip", show: (process) => [process.outcome?.message ?? "", process.outcome?.message ?? ""] },
];

const DEAD = [
  { label: "Kind", show: (group) => link(`#/processes?state=failed&kind=${encodeURIComponent(group.kind)}${group.needs_attention ? "&needs_attention=true" : ""}`, group.kind) },
  { label: "Ended", show: (group) => (group.outcome ? words(group.outcome) : "–") },
  { label: "Count", kind: "num", show: (group) => count(group.count) },
  { label: "Agents", kind: "num wide", show: (group) => count(group.agents) },
  { label: "People must look", kind: "wide", show: (group) => (group.needs_attention ? "yes" : "no") },
  { label: "Last", kind: "num", show: (group) => moment(group.newest_at) },
  { label: "The last one said", kind: "wider clip", show: (group) => [group.message, group.message] },
];

const target = ({ scope, key }) => {
  if (scope === "process") return link(`#/processes/${key}`, shortId(key), key);
  if (scope === "agent") return link(`#/agents/${key}`, shortId(key), key);
  if (scope === "tenant") return link(`#/processes?state=paused&tenant=${encodeURIComponent(key)}`, key);
  if (scope === "kind") return link(`#/processes?state=paused&kind=${encodeURIComponent(key)}`, key);
  return h("span", { title: key }, key.length > 24 ? shortId(key) : key);
};

const PAUSES = [
  { label: "Paused", show: target },
  { label: "Is a", show: (pause) => pause.scope },
  { label: "Why", show: (pause) => pause.reason },
  { label: "By", kind: "wide", show: (pause) => pause.by },
  { label: "Since", kind: "num wide", show: (pause) => moment(pause.at) },
];

const BATCHES = [
  { label: "Batch", show: (batch) => h("code", { title: batch.id }, shortId(batch.id)) },
  { label: "Does", show: (batch) => batch.action },
  { label: "State", show: (batch) => batch.state },
  { label: "Done", kind: "num", show: (batch) => `${count(batch.done)} / ${count(Math.min(batch.matched, batch.max))}` },
  { label: "Failed", kind: "num wide", show: (batch) => [count(batch.failed), batch.trouble ?? null] },
  { label: "By", kind: "wide", show: (batch) => batch.by },
  { label: "Made", kind: "num wide", show: (batch) => moment(batch.created_at) },
  { label: "Why", kind: "wider clip", show: (batch) => [batch.trouble ? `${batch.reason} (${batch.trouble})` : batch.reason, batch.trouble ?? null] },
];

/** One table that is looked at again and again, whatever becomes of the others. */
function part(table, path, params, itemsOf, said) {
  return async (signal) => {
    try {
      const answer = await get(path, params, signal);
      table.fill(itemsOf(answer), said(answer));
    } catch (error) {
      if (!signal.aborted) table.fail(error);
    }
  };
}

const items = (page) => page.items;
const orMore = (none) => (page) => (page.items.length ? (page.next_page_token ? `The first ${SHOWN}; more follow.` : "") : none);

/** The page of what wants a person. */
export function attentionView() {
  const look = notedRows("Processes at which people must look", (process) => process.id, LOOK);
  const dead = notedRows("Dead letters by kind", (group) => `${group.kind}/${group.outcome}/${group.needs_attention}`, DEAD);
  const pauses = notedRows("Pauses", (pause) => `${pause.scope}/${pause.key}`, PAUSES);
  const batches = notedRows("Batches", (batch) => batch.id, BATCHES);
  const parts = [
    part(look, "/v1/processes", { needs_attention: true, page_size: SHOWN }, items, orMore("None: of every process it is known what became of it.")),
    part(dead, "/v1/dead-letters/summary", {}, (answer) => answer.groups, (answer) => (answer.groups.length ? (answer.more ? `Of the newest ${count(answer.counted)}; there are more.` : "") : "None: nothing has failed that is still kept, or all of it was started over.")),
    part(pauses, "/v1/pauses", { page_size: SHOWN }, items, orMore("Nothing is paused.")),
    part(batches, "/v1/batches", { page_size: 10 }, items, (page) => (page.items.length ? "" : "None was made yet.")),
  ];
  const looking = keepLooking((signal) => Promise.all(parts.map((one) => one(signal))), 3000);
  const hint = (command) => h("code", { class: "note" }, command);
  return {
    title: "Attention",
    node: h(
      "div",
      { class: "page" },
      h("div", { class: "page-head" }, h("h1", {}, "Attention")),
      h(
        "div",
        { class: "grid" },
        card("People must look", { class: "span-12", note: "what became of these is not known, or could not be undone", tools: hint("drover processes retry ID") }, look.node),
        card("Dead letters", { class: "span-12", note: "failed, and not started over since", tools: hint("drover dead-letters redrive --dry-run") }, dead.node),
        card("Pauses", { class: "span-12", note: "nothing new of these is started", tools: hint("drover pauses remove") }, pauses.node),
        card("Batches", { class: "span-12", note: "one action on many processes" }, batches.node),
      ),
    ),
    leave: looking.end,
  };
}
