// The server's histograms, for curves and cells.

import { get } from "./api.js";
import { live } from "./live.js";

/** Percentiles that the API tells exactly. */
const QUANTILES = [
  [0.5, "p50_us"],
  [0.9, "p90_us"],
  [0.99, "p99_us"],
  [0.999, "p999_us"],
  [0.9999, "p9999_us"],
];

/** As long as all that is kept, in seconds: one step for a whole range, two at an hour's turn. */
const WHOLE = 3600;

/**
 * The time that is shown, in whole steps, the one that is under way included: `past` milliseconds,
 * or the life of a server that is younger.
 */
export function shown(now, started, past, step) {
  const end = Math.ceil(now / step) * step;
  return { start: Math.max(end - past, Math.floor(started / step) * step), end };
}

/** The same now, by the server's clock and not the browser's. */
function shownNow(past, step) {
  const now = Date.parse(live.overview.at);
  // Its uptime is in whole seconds, rounded down.
  const started = now - (live.overview.server.uptime_seconds + 1) * 1000;
  return shown(now, started, past, step);
}

function ask(name, { start, end }, step, route, signal) {
  const params = { from: new Date(start).toISOString(), to: new Date(end).toISOString(), step, route };
  return get(`/v1/histograms/${encodeURIComponent(name)}`, params, signal);
}

/** What fell where over time: `{ start, end, step, columns: [{ t, bins: [[low, high, count], …] }] }`. */
export async function columns(name, route, { past, step }, signal) {
  const span = shownNow(past, step);
  const told = await ask(name, span, step / 1000, route, signal);
  return { ...span, step, columns: told.intervals.map((one) => ({ t: Date.parse(one.from), bins: one.bins })) };
}

/** What the API tells of the whole time, with the `curve` of it. */
export async function measured(name, { past, step }, signal) {
  const told = await ask(name, shownNow(past, step), WHOLE, undefined, signal);
  return { ...told, curve: curve(told) };
}

/** The routes that a histogram is told apart by. */
export async function routes(name, signal) {
  const all = await get("/v1/histograms", {}, signal);
  return all.items.find((one) => one.name === name)?.routes ?? [];
}

/**
 * The slower half of what was counted as `[[quantile, microseconds], …]`, rising, as far out as the
 * counts say anything. Where the API tells a percentile it is that; between them are the upper ends
 * of its bins, which are at most 7 % wide.
 */
export function curve(told) {
  if (!told.count) return [];
  const says = (quantile) => quantile === 0.5 || told.count * (1 - quantile) >= 1 - 1e-9;
  const points = QUANTILES.filter(([quantile]) => says(quantile)).map(([quantile, field]) => [quantile, told[field]]);
  const bins = new Map();
  for (const [low, high, found] of told.intervals.flatMap((one) => one.bins)) {
    bins.set(low, { high, found: found + (bins.get(low)?.found ?? 0) });
  }
  let below = 0;
  for (const [, { high, found }] of [...bins].sort(([one], [other]) => one - other)) {
    below += found;
    const quantile = below / told.count;
    if (quantile > 0.5 && quantile < 1) points.push([quantile, high]);
  }
  // The slowest stands for the last part of the whole, in its middle.
  points.push([1 - 0.5 / told.count, told.max_us]);
  points.sort(([one], [other]) => one - other);
  // A bin's end may lie above an exact figure behind it.
  let least = Infinity;
  for (const point of points.reverse()) point[1] = least = Math.min(least, point[1]);
  return points.reverse();
}
