// The steps of a process, and why it waits.

import { attr, h, list, text } from "./dom.js";
import { clock, span, words } from "./format.js";

const MARKS = { waiting: "○", current: "▶", done: "✓", failed: "✕", cancelled: "⊘", undoing: "↶", undone: "↺" };

function row(step) {
  const parts = {
    mark: h("span", { class: "step-mark", "aria-hidden": "true" }),
    name: h("span", { class: "step-name" }),
    state: h("span", { class: "badge" }),
    what: h("span", { class: "step-what note" }),
    said: h("p", { class: "step-said" }),
  };
  return { parts, node: h("li", { "data-step": step.step }, parts.mark, h("div", { class: "step-body" }, h("div", { class: "step-head" }, parts.name, parts.state, parts.what), parts.said)) };
}

function fill({ parts, node }, step) {
  attr(node, "data-state", step.state);
  text(parts.mark, MARKS[step.state] ?? "?");
  text(parts.name, `${step.step + 1}. ${step.name}`);
  attr(parts.state, "data-step-state", step.state);
  text(parts.state, step.state);
  const facts = [
    step.operation,
    step.class,
    step.resources?.join(", "),
    `at most ${span(step.timeout_seconds)}`,
    step.undone_by ? `undone by ${step.undone_by}` : "cannot be undone",
    step.attempts ? `${step.attempts} ${step.attempts === 1 ? "attempt" : "attempts"}` : "",
    step.finished_at ? clock(step.finished_at) : "",
  ];
  text(parts.what, facts.filter(Boolean).join(" · "));
  const { outcome } = step;
  const bad = outcome && outcome.status !== "succeeded";
  parts.said.hidden = !bad;
  if (bad) text(parts.said, [words(outcome.status), outcome.exit_code === undefined ? "" : `exit code ${outcome.exit_code}`, outcome.message].filter(Boolean).join(", "));
}

/** The steps of a process in their order. */
export function stepList() {
  const node = h("ol", { class: "steps", "aria-label": "Steps" });
  return { node, set: (steps) => list(node, steps, (step) => step.step, row, fill) };
}

/** Where a limit or a holder can be looked at. */
function place(waits) {
  if (waits.held_by) return h("a", { href: `#/processes/${waits.held_by}` }, "the process that holds it");
  if (waits.scope === "agent" || waits.scope === "capacity") return h("a", { href: `#/agents/${waits.key}` }, "the agent");
  if (waits.scope === "pause") return h("a", { href: "#/attention" }, "all pauses");
  if (["work", "tenant", "group", "global"].includes(waits.scope)) return h("a", { href: `#/limits/${waits.scope}/${encodeURIComponent(waits.key)}` }, "the limit");
  return null;
}

/** Why a process is not running: in words, in figures, and what to do about it. */
export function whyNot() {
  const said = h("p", { class: "why-said" });
  const figures = h("p", { class: "why-figures" });
  const advice = h("p", { class: "why-advice" });
  const node = h("section", { class: "why", "aria-label": "Why it is not running", hidden: true }, said, figures, advice);
  return {
    node,
    set(waits) {
      node.hidden = !waits;
      if (!waits) return;
      attr(node, "data-scope", waits.scope);
      text(said, `Not running: ${waits.detail}.`);
      const shown = [
        waits.limit !== undefined ? `${waits.in_use ?? 0} of ${waits.limit} in use` : "",
        waits.position ? `number ${waits.position} in line` : "",
        waits.eta_s !== undefined ? `starts in about ${span(waits.eta_s)}` : "",
      ].filter(Boolean);
      const where = place(waits);
      figures.replaceChildren(shown.join(" · "), ...(where ? [shown.length ? " · " : "", where] : []));
      figures.hidden = !shown.length && !where;
      advice.hidden = !waits.advice;
      advice.replaceChildren("What to do: ", h("code", {}, waits.advice ?? ""));
    },
  };
}
