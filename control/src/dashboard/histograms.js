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

/** What fell where over time: `{ start, end, step, columns: [{ t, bins: [[low, high, count], …] }] }`. */
export async function columns(name, past, signal) {
  const step = STEP * 1000;
  // Whole steps of the server's, the one that is under way included.
  const end = Math.ceil(Date.now() / step) * step;
  const start = end - past;
  const span = { from: new Date(start).toISOString(), to: new Date(end).toISOString(), step: STEP };
  const told = await get(`/v1/histograms/${encodeURIComponent(name)}`, span, signal);
  return { start, end, step, columns: told.intervals.map((one) => ({ t: Date.parse(one.from), bins: one.bins })) };
}
