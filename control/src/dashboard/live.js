// The overview as it comes, every second, with the last minutes of what is drawn over time.

import { follow } from "./api.js";

/** How much of the past is kept, in milliseconds. */
export const KEPT = 10 * 60 * 1000;

export const live = {
  /** `loading`, `live` or `reconnecting`. */
  phase: "loading",
  /** The newest document. */
  overview: null,
  /** Why it is not live, in words. */
  trouble: "",
  /** `{ t, …figures }`, oldest first. */
  history: [],
  /** What the page of the fleet has last read of the histograms: by name, and of which `window`. */
  recent: {},
};

const listeners = new Set();
let stopped = null;

/** Calls `listener` with every change until the returned function is called. */
export function watch(listener) {
  listeners.add(listener);
  listener(live);
  return () => listeners.delete(listener);
}

function tell() {
  for (const listener of listeners) listener(live);
}

/** What is drawn over time, of one overview. */
function point(overview) {
  const states = overview.processes.by_state;
  return {
    t: Date.parse(overview.at),
    ...overview.rates,
    sessions: overview.sessions.up,
    running: states.running,
    waiting: Object.values(overview.processes.waiting_on).reduce((sum, count) => sum + count, 0),
    failed: states.failed,
    cpu: overview.server.cpu_cores,
    rss: overview.server.rss_bytes,
    process: live.recent.process?.p99_us,
  };
}

/** Begins to follow; ends what was followed before. */
export function begin() {
  end();
  stopped = new AbortController();
  live.phase = "loading";
  live.overview = null;
  live.history = [];
  live.recent = {};
  follow("/v1/overview/events", {
    signal: stopped.signal,
    quiet: 8000,
    onPhase(phase, error) {
      // The first document makes it live.
      if (phase === "reconnecting") {
        live.phase = "reconnecting";
        live.trouble = error?.message ?? "The server ended the stream.";
        tell();
      }
    },
    onEvent(event) {
      const overview = JSON.parse(event.data);
      const newest = point(overview);
      const before = live.history.at(-1);
      live.phase = "live";
      live.trouble = "";
      live.overview = overview;
      // A gap in what was heard is a gap in what is drawn.
      if (before && newest.t - before.t > 5000) live.history.push({ t: before.t + 1 });
      live.history.push(newest);
      while (live.history.length && live.history[0].t < newest.t - KEPT) live.history.shift();
      tell();
    },
  });
}

/** Follows no longer. */
export function end() {
  stopped?.abort();
  stopped = null;
}
