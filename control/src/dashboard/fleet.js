// The fleet at a glance.

import { spark, timeChart } from "./charts.js";
import { attr, card, facts, h, list, text } from "./dom.js";
import { ago, bytes, count, digits, micros, rate, shortId, span } from "./format.js";
import { latencyCards } from "./latency.js";
import { KEPT, live, watch } from "./live.js";
import { stateMark } from "./processes.js";

const LIVING = ["ready", "paused", "leased", "running", "backoff", "blocked", "scheduled", "cancelling", "unknown"];
const ENDED = ["succeeded", "failed", "cancelled"];
const WAITS = [
  ["permit", "a free place"],
  ["session", "their agent"],
  ["pause", "the end of a pause"],
  ["backoff", "the next attempt"],
  ["time", "their time"],
  ["resource", "a resource"],
  ["answer", "an answer"],
];

/** Where what is waited for can be looked at. */
const WAITS_AT = { permit: "#/limits", pause: "#/attention" };

const perSecond = (value) => (Number.isFinite(value) ? `${rate(value)}/s` : "–");

function tile(name, label, key) {
  const value = h("span", { class: "tile-value" }, "–");
  const unit = h("span", { class: "tile-unit" });
  const sub = h("span", { class: "tile-sub" }, " ");
  const line = spark(key);
  return {
    node: h("section", { class: "tile", "data-tile": name }, h("h2", {}, label), h("p", { class: "tile-figure" }, value, unit), sub, line.node),
    line,
    set(shown, suffix, below) {
      text(value, shown);
      text(unit, suffix);
      text(sub, below);
    },
  };
}

/** Bars of counts; `rows` are `[key, label, count, href]`. */
function bars(name) {
  const node = h("ul", { class: "bars", "aria-label": name });
  return {
    node,
    set(rows) {
      const most = Math.max(1, ...rows.map(([, , number]) => number));
      list(
        node,
        rows,
        ([key]) => key,
        ([key, , , href]) => {
          const label = h(href ? "a" : "span", { class: "bar-label", href });
          const fill = h("span", { class: "bar-fill" });
          const value = h("span", { class: "bar-value" });
          return { node: h("li", { "data-key": key }, label, h("span", { class: "bar-track" }, fill), value), label, fill, value };
        },
        (row, [key, label, number]) => {
          text(row.label, label);
          text(row.value, count(number));
          row.fill.style.width = `${(number / most) * 100}%`;
          attr(row.node, "data-empty", number === 0);
          attr(row.fill, "data-state", key);
        },
      );
    },
  };
}

function groupList() {
  const node = h("ul", { class: "cells", "aria-label": "Groups" });
  return {
    node,
    set(groups) {
      list(
        node,
        groups,
        (group) => group.group,
        () => {
          const name = h("a", { class: "cell-name" });
          const value = h("span", { class: "cell-value" });
          const fill = h("span", { class: "bar-fill" });
          return { node: h("li", {}, name, value, h("span", { class: "bar-track" }, fill)), name, value, fill };
        },
        (row, group) => {
          text(row.name, group.name);
          attr(row.name, "href", `#/agents?group=${encodeURIComponent(group.name)}`);
          attr(row.node, "data-short", group.up < group.known);
          text(row.value, group.up === group.known ? count(group.up) : `${count(group.up)} / ${count(group.known)}`);
          row.fill.style.width = `${group.known ? (group.up / group.known) * 100 : 0}%`;
        },
      );
    },
  };
}

function shardTable() {
  const body = h("tbody");
  const node = h("table", { class: "rows tight" }, h("caption", { class: "unseen" }, "Shards"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Shard"), h("th", { scope: "col", class: "num" }, "Sessions"), h("th", { scope: "col", class: "num" }, "At home"), h("th", { scope: "col", class: "num" }, "Half-open"))), body);
  return {
    node,
    set(shards) {
      list(
        body,
        shards,
        (shard) => shard.shard,
        (shard) => {
          const cells = [0, 1, 2].map(() => h("td", { class: "num" }));
          return { node: h("tr", { "data-shard": shard.shard }, h("th", { scope: "row" }, shard.shard), cells), cells };
        },
        ({ cells }, shard) => {
          text(cells[0], count(shard.sessions));
          text(cells[1], shard.sessions ? `${count(shard.at_home)} (${digits((shard.at_home / shard.sessions) * 100)} %)` : "–");
          text(cells[2], count(shard.half_open));
        },
      );
    },
  };
}

function failureList() {
  const node = h("ul", { class: "failures", "aria-label": "Newest failures" });
  const none = h("p", { class: "note" }, "None that is still kept.");
  return {
    node: h("div", {}, node, none),
    set(failures) {
      none.hidden = failures.length > 0;
      list(
        node,
        failures,
        (failure) => failure.process,
        (failure) => {
          const at = h("time", { datetime: failure.at, title: failure.at });
          const said = h("span", { class: "failure-said" }, failure.message || "no message");
          return { at, node: h("li", {}, h("a", { class: "mono", href: `#/processes/${failure.process}`, title: failure.process }, shortId(failure.process)), h("span", { class: "failure-kind" }, failure.kind), at, said) };
        },
        (row, failure) => text(row.at, ago(failure.at)),
      );
    },
  };
}

const HEALTH = [
  ["state", "State"],
  ["version", "Version"],
  ["profile", "Profile"],
  ["uptime", "Up for"],
  ["cpu", "CPU"],
  ["rss", "Memory"],
  ["commit", "Commit p50 / p99"],
  ["commits", "Commits"],
  ["failed", "Failed commits"],
  ["datapath", "Datapath"],
  ["dropped", "Datagrams dropped"],
  ["full", "Uplink / mailbox full"],
  ["down", "Downlink full / waiting"],
];

function healthOf(overview) {
  const { server, store, datapath } = overview;
  const commit = live.recent.store_commit;
  return {
    state: store.error ? `${server.state}: ${store.error}` : server.state,
    version: server.version,
    profile: server.profile,
    uptime: span(server.uptime_seconds),
    cpu: server.cpu_cores === undefined ? "–" : `${server.cpu_cores.toFixed(2)} cores`,
    rss: server.rss_bytes === undefined ? "–" : bytes(server.rss_bytes),
    commit: commit?.count ? `${micros(commit.p50_us)} / ${micros(commit.p99_us)}` : "–",
    commits: count(store.commits),
    failed: count(store.failed_commits),
    datapath: datapath.kind ?? "–",
    dropped: count(datapath.dropped),
    full: `${count(datapath.uplink_full)} / ${count(datapath.mailbox_full)}`,
    down: `${count(datapath.downlink_full)} / ${count(datapath.outbox)}`,
  };
}

function tiles() {
  const all = {
    sessions: tile("sessions", "Sessions", "sessions"),
    commands: tile("commands", "Commands", "commands"),
    process: tile("process", "Process p99", "process"),
    processes: tile("processes", "Running", "running"),
    failed: tile("failed", "Failed", "failed"),
    cpu: tile("cpu", "CPU", "cpu"),
    rss: tile("rss", "Memory", "rss"),
  };
  const split = (shown) => shown.split(" ");
  return {
    node: h("div", { class: "tiles" }, Object.values(all).map((one) => one.node)),
    set(overview, history) {
      const { sessions, processes, rates, server } = overview;
      const states = processes.by_state;
      const waiting = Object.values(processes.waiting_on).reduce((sum, number) => sum + number, 0);
      const whole = live.recent.process;
      all.sessions.set(count(sessions.up), "", `of ${count(sessions.known)} · ${count(sessions.half_open)} half-open`);
      all.commands.set(rate(rates.commands), Number.isFinite(rates.commands) ? "/s" : "", `${perSecond(rates.processes_finished)} ended`);
      if (whole?.count) all.process.set(...split(micros(whole.p99_us)), `p50 ${micros(whole.p50_us)} in ${live.recent.window}`);
      else all.process.set("–", "", whole ? `none has ended in ${live.recent.window}` : " ");
      all.processes.set(count(states.running), "", `${count(waiting)} waiting`);
      all.failed.set(count(states.failed), "", `of ${count(ENDED.reduce((sum, state) => sum + states[state], 0))} since start`);
      all.cpu.set(server.cpu_cores === undefined ? "–" : server.cpu_cores.toFixed(2), "cores", `up for ${span(server.uptime_seconds)}`);
      all.rss.set(...(server.rss_bytes === undefined ? ["–", ""] : split(bytes(server.rss_bytes))), sessions.up && server.rss_bytes ? `${bytes(server.rss_bytes / sessions.up)} a session` : "resident");
      for (const one of Object.values(all)) one.line.update(history);
    },
  };
}

/** The page of the fleet. */
export function fleetView() {
  const head = tiles();
  const sessions = timeChart({ name: "Sessions begun, lost and refused per second", series: [{ key: "connects", label: "connects" }, { key: "losses", label: "losses" }, { key: "refusals", label: "refusals" }], format: perSecond, window: KEPT, least: 1 });
  const door = timeChart({ name: "Newcomers admitted, retried, turned away and failed per second", series: [{ key: "admitted", label: "admitted" }, { key: "retried", label: "retried" }, { key: "turned_away", label: "turned away" }, { key: "handshakes_failed", label: "failed" }], format: perSecond, window: KEPT, least: 1 });
  const work = timeChart({ name: "Processes and commands per second", series: [{ key: "processes_created", label: "made" }, { key: "commands", label: "sent to agents" }, { key: "processes_finished", label: "ended" }], format: perSecond, window: KEPT, least: 1 });
  const latency = latencyCards();
  const living = bars("Processes that are not over, by state");
  const ended = bars("Processes that ended since the start, by state");
  const waits = bars("What processes wait on");
  const failures = failureList();
  const health = facts(HEALTH);
  const shards = shardTable();
  const groups = groupList();
  const loading = h("div", { class: "loading", role: "status" }, "Waiting for the first figures…");
  const content = h(
    "div",
    { class: "grid", hidden: true },
    card("Sessions per second", { class: "span-4", note: "up to 10 minutes" }, sessions.node),
    card("Handshakes per second", { class: "span-4", note: "up to 10 minutes" }, door.node),
    card("Processes per second", { class: "span-4", note: "up to 10 minutes" }, work.node),
    ...latency.nodes,
    card("Processes", { class: "span-3", note: "now" }, living.node, h("h3", {}, "Ended since the start"), ended.node),
    card("Waiting on", { class: "span-3", note: "now" }, waits.node, h("h3", {}, "Sessions by shard"), shards.node),
    card("Newest failures", { class: "span-3" }, failures.node),
    card("Server", { class: "span-3" }, health.node),
    card("Groups", { class: "span-12", note: "sessions of each group's agents" }, groups.node),
  );
  const unwatch = watch(({ overview, history }) => {
    if (!overview) return;
    latency.offer(overview.histograms);
    loading.hidden = true;
    content.hidden = false;
    const { by_state: states, waiting_on: waiting } = overview.processes;
    const link = (state) => `#/processes?state=${state}`;
    head.set(overview, history);
    sessions.update(history);
    door.update(history);
    work.update(history);
    living.set(LIVING.map((state) => [state, `${stateMark(state)} ${state}`, states[state] ?? 0, link(state)]));
    ended.set(ENDED.map((state) => [state, `${stateMark(state)} ${state}`, states[state], link(state)]));
    waits.set(WAITS.map(([key, label]) => [key, label, waiting[key] ?? 0, WAITS_AT[key]]));
    failures.set(overview.processes.newest_failures);
    for (const [key, value] of Object.entries(healthOf(overview))) health.set(key, value);
    shards.set(overview.sessions.by_shard);
    groups.set(overview.sessions.by_group);
  });
  return {
    title: "Fleet",
    node: h("div", { class: "page" }, h("h1", { class: "unseen" }, "Fleet"), head.node, loading, content),
    leave() {
      latency.leave();
      unwatch();
    },
  };
}

