// How long things take, from the server's histograms: percentile curves, and cells over time.

import { heatMap, percentileChart } from "./charts.js";
import { card, h, list } from "./dom.js";
import { words } from "./format.js";
import { columns, measured, routes } from "./histograms.js";
import { live } from "./live.js";

/** Curves and cells are asked for this often: the smallest step of the cells. */
const EVERY = 10_000;

/** Every histogram of the server. */
const CURVES = [
  { key: "process", label: "Process" },
  { key: "command_total", label: "Command" },
  { key: "command_queue", label: "Queue" },
  { key: "command_wire", label: "Wire" },
  { key: "command_agent", label: "Agent" },
  { key: "handshake", label: "Handshake" },
  { key: "api", label: "API" },
  { key: "store_commit", label: "Store commit" },
  { key: "engine_batch", label: "Engine batch" },
  { key: "mailbox", label: "Mailbox" },
  { key: "shard_turn", label: "Shard turn" },
];
/** What the heat map shows at first: what people wait for. */
const FIRST = "process";
/** Curves that are not drawn; kept while one looks at other pages. At first: the inner workings. */
const off = new Set(["engine_batch", "mailbox", "shard_turn"]);

/** How much of the past is shown, with the length of a step, in milliseconds. */
const WINDOWS = [
  { key: "10m", label: "last 10 minutes", short: "10 min", past: 600_000, step: 10_000 },
  { key: "1h", label: "last hour", short: "1 h", past: 3_600_000, step: 60_000 },
];

function choice(name, label, options) {
  return h("select", { "aria-label": label, "data-choice": name }, options.map(({ key, label: text }) => h("option", { value: key }, text)));
}

/** What the curves of all histograms are now, by name. Those of the same moment come together. */
async function allMeasured(span, signal) {
  const asked = CURVES.map(async ({ key }) => [key, await measured(key, span, signal)]);
  return Object.fromEntries(await Promise.all(asked));
}

/**
 * Two cards. `offer` takes the names of the histograms that the server has; `leave` ends the asking.
 */
export function latencyCards() {
  const percentiles = percentileChart({ name: "Latency percentiles", series: CURVES, off });
  const heat = heatMap({ name: "Latency over time" });
  const past = choice("window", "How much of the past is shown", WINDOWS);
  const chosen = choice("histogram", "What the heat map shows", []);
  const route = choice("route", "Of which route of the API", [{ key: "", label: "all routes" }]);
  const gone = new AbortController();
  let timer = 0;
  let turn = 0;
  /** Whether the choice of routes is there: it is asked for when it is first needed. */
  let offered = false;

  const measure = async (isNewest) => {
    if (!live.overview || !chosen.value) return;
    const window = WINDOWS.find((one) => one.key === past.value);
    const of = route.hidden ? "" : route.value;
    const [curves, cells] = await Promise.all([allMeasured(window, gone.signal), columns(chosen.value, of, window, gone.signal)]);
    if (!isNewest()) return;
    live.recent = { window: window.short, ...curves };
    percentiles.update(curves);
    heat.update(cells.columns, cells.start, cells.end, cells.step);
  };
  // Whoever chooses again does not wait; what was asked for before is not shown any more.
  const again = async () => {
    const mine = ++turn;
    const isNewest = () => mine === turn && !gone.signal.aborted;
    clearTimeout(timer);
    if (!document.hidden) await measure(isNewest).catch(() => {});
    if (isNewest()) timer = setTimeout(again, EVERY);
  };
  const choose = async () => {
    if (chosen.value === "api" && !offered) {
      const names = await routes("api", gone.signal).catch(() => []);
      if (!offered) route.append(...names.map((name) => h("option", { value: name }, name)));
      offered ||= names.length > 0;
    }
    route.hidden = chosen.value !== "api" || !offered;
    again();
  };
  const seen = () => document.hidden || again();

  route.hidden = true;
  past.addEventListener("change", again);
  route.addEventListener("change", again);
  chosen.addEventListener("change", choose);
  document.addEventListener("visibilitychange", seen);
  addEventListener("drover-theme", heat.redraw);
  return {
    nodes: [
      card("Latency percentiles", { class: "span-6", note: "p50 / p99", tools: past }, percentiles.node),
      card("Latency over time", { class: "span-6", tools: [route, chosen] }, heat.node),
    ],
    offer(names) {
      const first = !chosen.value;
      list(chosen, names, (name) => name, (name) => ({ node: h("option", { value: name }, words(name)) }), () => {});
      if (!first) return;
      if (names.includes(FIRST)) chosen.value = FIRST;
      choose();
    },
    leave() {
      gone.abort();
      clearTimeout(timer);
      live.recent = {};
      document.removeEventListener("visibilitychange", seen);
      removeEventListener("drover-theme", heat.redraw);
    },
  };
}
