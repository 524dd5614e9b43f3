// Histograms of the server, for curves and cells.

import { get } from "./api.js";
import { live } from "./live.js";

const QUANTILES = [
  [0.5, "p50_us"],
  [0.9, "p90_us"],
  [0.99, "p99_us"],
  [0.999, "p999_us"],
  [1, "max_us"],
];

/** Percentile curves of the overview: as far out as their counts say anything. */
export function curves(names) {
  const drawn = {};
  for (const name of names) {
    const figures = live.overview?.latency[name];
    if (!figures) continue;
    const told = QUANTILES.filter(([quantile]) => quantile === 1 || figures.count * (1 - quantile) >= 1);
    drawn[name] = told.map(([quantile, field]) => [quantile === 1 ? 1 - 1 / (figures.count + 1) : quantile, figures[field]]);
  }
  return drawn;
}

/** Steps of the heat map, in seconds. */
const STEP = 10;

/**
 * The time that is shown, in whole steps, the one that is under way included: `past` milliseconds,
 * or the life of a server that is younger.
 */
export function shown(now, started, past, step) {
  const end = Math.ceil(now / step) * step;
  return { start: Math.max(end - past, Math.floor(started / step) * step), end };
}

/** What fell where over time: `{ start, end, step, columns: [{ t, bins: [[low, high, count], …] }] }`. */
export async function columns(name, past, signal) {
  const step = STEP * 1000;
  // The server's clock, not the browser's. Its uptime is in whole seconds, rounded down.
  const now = Date.parse(live.overview.at);
  const started = now - (live.overview.server.uptime_seconds + 1) * 1000;
  const { start, end } = shown(now, started, past, step);
  const span = { from: new Date(start).toISOString(), to: new Date(end).toISOString(), step: STEP };
  const told = await get(`/v1/histograms/${encodeURIComponent(name)}`, span, signal);
  return { start, end, step, columns: told.intervals.map((one) => ({ t: Date.parse(one.from), bins: one.bins })) };
}
