// Charts: SVG lines and a canvas of cells, drawn for the size they have, in the colours of the theme.
//
// Series differ by dash as well as by colour (the Okabe-Ito palette, safe for the colour-blind), and
// every legend carries the values as text: a chart never is the only place of a figure.

import { attr, h, s, text } from "./dom.js";
import { clock, count, micros, minute, span } from "./format.js";

const LEFT = 56;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 22;
/** The shortest window of a chart over time, in milliseconds. */
const LEAST_WINDOW = 5_000;

/** Calls `draw(width)` now and whenever the width of `node` changes. */
function sized(node, draw) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) {
      width = now;
      draw(width);
    }
  }).observe(node);
  return () => width > 0 && draw(width);
}

/** Names and values; with `off`, each is a button that takes its line away and brings it back. */
function legendOf(series, off, onToggle) {
  const values = new Map();
  const button = (one, parts) => {
    const toggle = h("button", { type: "button", class: "legend-button", "aria-pressed": String(!off.has(one.key)) }, parts);
    toggle.addEventListener("click", () => {
      if (!off.delete(one.key)) off.add(one.key);
      attr(toggle, "aria-pressed", String(!off.has(one.key)));
      onToggle();
    });
    return toggle;
  };
  const node = h(
    "ul",
    { class: off ? "legend toggles" : "legend" },
    series.map((one, index) => {
      const value = h("span", { class: "legend-value" }, "–");
      values.set(one.key, value);
      const swatch = s("svg", { class: `swatch line-${index + 1}`, viewBox: "0 0 22 8", width: 22, height: 8, "aria-hidden": "true" }, s("path", { d: "M1 4H21" }));
      const parts = [swatch, h("span", { class: "legend-label" }, one.label), value];
      return h("li", { "data-series": one.key }, off ? button(one, parts) : parts);
    }),
  );
  return {
    node,
    set(key, value) {
      text(values.get(key), value ?? "–");
    },
  };
}

/** The smallest of 1, 2, 5, 10, … that is not below `value`. */
function above(value, least) {
  const wanted = Math.max(value, least);
  const scale = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((step) => step * scale).find((step) => step >= wanted * 0.9999);
}

/** Between two times on an axis, in milliseconds. */
const TIME_STEPS = [5, 10, 20, 60, 120, 300, 600].map((seconds) => seconds * 1000);
/** Room for a time to the minute and to the second, in pixels. */
const MINUTE_ROOM = 50;
const SECOND_ROOM = 72;

/** Times for an axis of this width, whole ones: `[milliseconds, label]`. */
function times(start, end, room) {
  const fits = (step) => ((end - start) / step) * (step < 60_000 ? SECOND_ROOM : MINUTE_ROOM) <= room;
  const step = TIME_STEPS.find(fits) ?? TIME_STEPS.at(-1);
  const all = [];
  for (let t = Math.ceil(start / step) * step; t <= end; t += step) all.push([t, step < 60_000 ? clock(t) : minute(t)]);
  return all;
}

/** Presses of an arrow key from one end of a chart to the other. */
const KEY_STEPS = 20;

/** Where one reads: under the pointer or, once the chart has the focus, where the arrow keys lead. */
function pointer(svg, onMove) {
  let at = null;
  const move = (next) => {
    at = next;
    onMove(at);
  };
  svg.addEventListener("pointermove", (event) => move(event.clientX - svg.getBoundingClientRect().left));
  for (const end of ["pointerleave", "blur"]) svg.addEventListener(end, () => move(null));
  attr(svg, "tabindex", 0);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") move(null);
    if (!by) return;
    event.preventDefault();
    const [first, last] = [LEFT, svg.getBoundingClientRect().width - RIGHT];
    const step = (last - first) / KEY_STEPS;
    const from = at ?? (by > 0 ? first - step : last + step);
    move(Math.min(Math.max(from + by * step, first), last));
  });
}

/**
 * Figures over time. `series`: `{ key, label }` of the points; `window` in milliseconds; `least` is
 * the smallest top of the scale, so that noise near zero does not look like a storm.
 */
export function timeChart({ name, series, format, window, least, height = 150 }) {
  const legend = legendOf(series);
  const svg = s("svg", { class: "plot", height, role: "img", "aria-label": name });
  const node = h("figure", { class: "chart", "data-chart": name }, svg, h("figcaption", {}, legend.node));
  let points = [];
  let hovered = null;

  const draw = (width) => {
    const inner = { w: width - LEFT - RIGHT, h: height - TOP - BOTTOM };
    const end = points.at(-1)?.t ?? Date.now();
    // It begins with the first figure: a page that was just opened has a short past.
    const first = points.find((point) => series.some((one) => Number.isFinite(point[one.key])));
    const past = Math.min(window, Math.max(LEAST_WINDOW, end - (first?.t ?? end)));
    const start = end - past;
    const shown = points.filter((point) => point.t >= start);
    const highest = Math.max(0, ...shown.flatMap((point) => series.map((one) => point[one.key] ?? 0)));
    const top = above(highest, least);
    const x = (t) => LEFT + ((t - start) / past) * inner.w;
    const y = (value) => TOP + inner.h - (value / top) * inner.h;
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      parts.push(s("path", { class: share ? "gridline" : "axis", d: `M${LEFT} ${crisp(y(top * share))}H${width - RIGHT}` }));
      parts.push(s("text", { class: "tick", x: LEFT - 8, y: y(top * share) + 3.5, "text-anchor": "end" }, format(top * share)));
    }
    for (const [t, label] of times(start, end, inner.w)) {
      if (x(t) > LEFT + 14 && x(t) < width - RIGHT - 22) parts.push(s("text", { class: "tick", x: x(t), y: height - 6, "text-anchor": "middle" }, label));
    }
    series.forEach((one, index) => {
      parts.push(s("path", { class: `line line-${index + 1}`, d: path(shown, one.key, x, y) }));
    });
    const at = hovered === null ? null : nearest(shown, start + ((hovered - LEFT) / inner.w) * past);
    if (at) parts.push(s("path", { class: "cursor", d: `M${crisp(x(at.t))} ${TOP}V${height - BOTTOM}` }), ...cursorTime(x(at.t), width, clock(at.t)));
    svg.replaceChildren(...parts);
    attr(svg, "viewBox", `0 0 ${width} ${height}`);
    attr(svg, "data-points", shown.length);
    const read = at ?? [...shown].reverse().find((point) => series.some((one) => Number.isFinite(point[one.key])));
    for (const one of series) legend.set(one.key, format(read?.[one.key]));
  };
  const redraw = sized(node, draw);
  pointer(svg, (at) => {
    hovered = at;
    redraw();
  });
  return {
    node,
    update(history) {
      points = history;
      redraw();
    },
  };
}

const crisp = (value) => Math.round(value) + 0.5;

function cursorTime(x, width, label) {
  const left = x > width - 80;
  return [s("text", { class: "tick cursor-time", x: left ? x - 6 : x + 6, y: TOP + 9, "text-anchor": left ? "end" : "start" }, label)];
}

function nearest(points, t) {
  let best = null;
  for (const point of points) {
    if (!best || Math.abs(point.t - t) < Math.abs(best.t - t)) best = point;
  }
  return best;
}

/** A line that is broken where there is no figure. */
function path(points, key, x, y) {
  let d = "";
  let pen = "M";
  for (const point of points) {
    const value = point[key];
    if (!Number.isFinite(value)) {
      pen = "M";
      continue;
    }
    d += `${pen}${x(point.t).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

/** A line of a tile, without axes. */
export function spark(key, { height = 30 } = {}) {
  const line = s("path", { class: "spark-line" });
  const area = s("path", { class: "spark-area" });
  const node = s("svg", { class: "spark", height, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  let points = [];
  const draw = (width) => {
    attr(node, "viewBox", `0 0 ${width} ${height}`);
    const known = points.filter((point) => Number.isFinite(point[key]));
    if (known.length < 2) {
      attr(line, "d", null);
      attr(area, "d", null);
      return;
    }
    const [start, end] = [known[0].t, known.at(-1).t];
    const values = known.map((point) => point[key]);
    const [low, high] = [Math.min(0, ...values), Math.max(...values)];
    const range = high - low || 1;
    const x = (t) => ((t - start) / (end - start || 1)) * width;
    const y = (value) => height - 2 - ((value - low) / range) * (height - 5);
    const d = path(known, key, x, y);
    attr(line, "d", d);
    attr(area, "d", `${d}V${height}H0Z`);
  };
  const redraw = sized(node, draw);
  return {
    node,
    update(history) {
      points = history;
      redraw();
    },
  };
}

const NINES = [
  [0.5, "50 %"],
  [0.9, "90 %"],
  [0.99, "99 %"],
  [0.999, "99.9 %"],
  [0.9999, "99.99 %"],
];
const nines = (quantile) => -Math.log10(Math.max(1 - quantile, 1e-9));
/** Where the axis of percentiles begins: curves say nothing of the faster half. */
const NEAREST = nines(0.5);

/** Decades of microseconds that hold these values, at least two. */
function decades(values) {
  const known = values.filter((value) => value > 0);
  if (!known.length) return [1, 5];
  const low = Math.floor(Math.log10(Math.min(...known)));
  return [low, Math.max(low + 2, Math.ceil(Math.log10(Math.max(...known) * 1.0001)))];
}

const decadeLabel = (power) => micros(10 ** power).replace(/\.0+(?= )/, "");

/**
 * Percentile curves: how long (logarithmic) the slowest share of operations took, over the number of
 * nines of the share. `update` takes `{ key: { curve: [[quantile, microseconds], …] } }`; the lines of
 * the keys in the set `off` are not drawn.
 */
export function percentileChart({ name, series, off, height = 250 }) {
  const legend = legendOf(series, off, () => redraw());
  const svg = s("svg", { class: "plot", height, role: "img", "aria-label": name });
  const node = h("figure", { class: "chart", "data-chart": name }, svg, h("figcaption", {}, legend.node));
  let curves = {};
  let hovered = null;

  const at = (points, wanted) => points.find(([quantile]) => quantile >= wanted - 1e-12)?.[1] ?? points.at(-1)?.[1];
  const draw = (width) => {
    const inner = { w: width - LEFT - RIGHT, h: height - TOP - BOTTOM };
    const pointsOf = (one) => curves[one.key]?.curve ?? [];
    const lines = series.map((one) => (off.has(one.key) ? [] : pointsOf(one)));
    const all = lines.flat();
    const [low, high] = decades(all.map(([, value]) => value));
    const furthest = Math.min(4, Math.max(2, ...all.map(([quantile]) => nines(quantile))));
    const x = (quantile) => LEFT + ((Math.min(nines(quantile), furthest) - NEAREST) / (furthest - NEAREST)) * inner.w;
    const y = (value) => TOP + inner.h - ((Math.log10(Math.max(value, 10 ** low)) - low) / (high - low)) * inner.h;
    const parts = [];
    for (let power = low; power <= high; power += 1) {
      parts.push(s("path", { class: power === low ? "axis" : "gridline", d: `M${LEFT} ${crisp(y(10 ** power))}H${width - RIGHT}` }));
      parts.push(s("text", { class: "tick", x: LEFT - 8, y: y(10 ** power) + 3.5, "text-anchor": "end" }, decadeLabel(power)));
    }
    for (const [quantile, label] of NINES) {
      if (nines(quantile) > furthest + 0.01) continue;
      const place = x(quantile);
      if (quantile > 0.5) parts.push(s("path", { class: "gridline", d: `M${crisp(place)} ${TOP}V${height - BOTTOM}` }));
      const side = place > width - RIGHT - 20 ? "end" : quantile === 0.5 ? "start" : "middle";
      parts.push(s("text", { class: "tick", x: place, y: height - 6, "text-anchor": side }, label));
    }
    let drawn = 0;
    lines.forEach((line, index) => {
      const points = line.filter(([quantile]) => nines(quantile) <= furthest + 0.01);
      if (!points.length) return;
      drawn += points.length;
      const d = points.map(([quantile, value], n) => `${n ? "L" : "M"}${x(quantile).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      parts.push(s("path", { class: `line line-${index + 1}`, "data-points": points.length, d }));
    });
    const quantile = hovered === null ? null : 1 - 10 ** -(NEAREST + Math.min(Math.max((hovered - LEFT) / inner.w, 0), 1) * (furthest - NEAREST));
    if (quantile !== null && drawn) {
      parts.push(s("path", { class: "cursor", d: `M${crisp(x(quantile))} ${TOP}V${height - BOTTOM}` }), ...cursorTime(x(quantile), width, share(quantile)));
    }
    svg.replaceChildren(...parts);
    attr(svg, "viewBox", `0 0 ${width} ${height}`);
    attr(svg, "data-points", drawn);
    for (const one of series) {
      const points = pointsOf(one);
      const read = quantile === null ? [at(points, 0.5), at(points, 0.99)] : [at(points, quantile)];
      legend.set(one.key, points.length ? read.map(micros).join(" / ") : null);
    }
  };
  const redraw = sized(node, draw);
  pointer(svg, (place) => {
    hovered = place;
    redraw();
  });
  return {
    node,
    update(next) {
      curves = next;
      redraw();
    },
  };
}

const share = (quantile) => `${(quantile * 100).toFixed(quantile > 0.999 ? 3 : quantile > 0.99 ? 2 : 1)} %`;

/** Rows of the heat map in each factor of ten. */
const ROWS = 6;

/** By how many columns and rows an arrow key leads. */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** The cell that comes next in that direction; the first press leads to the newest. */
function neighbour(cells, from, [columns, rows]) {
  const ahead = (cell) => {
    if (!from) return true;
    return columns ? (cell.t - from.t) * columns > 0 : cell.t === from.t && (cell.row - from.row) * rows > 0;
  };
  const distance = (cell) => (from ? [Math.abs(cell.t - from.t), Math.abs(cell.row - from.row)] : [-cell.t, cell.row]);
  const nearer = (one, other) => {
    const [a, b] = [distance(one), distance(other)];
    return a[0] - b[0] || a[1] - b[1];
  };
  return cells.filter(ahead).sort(nearer)[0];
}

/**
 * How long operations took, over time: a column for each step, a row for each sixth of a decade,
 * darker where more fell. `update` takes `[{ t, bins: [[low, high, count], …] }, …]`, the start of
 * the window and the length of a step in milliseconds.
 */
export function heatMap({ name, height = 250 }) {
  const canvas = h("canvas", { class: "heat", role: "img", "aria-label": name, tabindex: 0 });
  const caption = h("p", { class: "note heat-note" }, " ");
  const node = h("figure", { class: "chart", "data-chart": name }, canvas, h("figcaption", {}, caption));
  let data = { columns: [], start: 0, step: 1, end: 0 };
  let cells = [];
  let hovered = null;
  const under = () => hovered && cells.find((cell) => hovered.x >= cell.from && hovered.x < cell.to && hovered.y >= cell.upper && hovered.y < cell.lower);

  const draw = (width) => {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(canvas);
    const colour = (variable) => style.getPropertyValue(variable).trim();
    const inner = { w: width - LEFT - RIGHT, h: height - TOP - BOTTOM };
    const bins = data.columns.flatMap((column) => column.bins);
    const [low, high] = decades(bins.flatMap(([from, to]) => [from, to]));
    const rows = (high - low) * ROWS;
    const x = (t) => LEFT + ((t - data.start) / (data.end - data.start || 1)) * inner.w;
    const y = (row) => TOP + inner.h - (row / rows) * inner.h;
    pen.font = `11px ${style.fontFamily}`;
    pen.fillStyle = colour("--muted");
    pen.strokeStyle = colour("--line");
    for (let power = low; power <= high; power += 1) {
      const place = crisp(y((power - low) * ROWS));
      pen.beginPath();
      pen.moveTo(LEFT, place);
      pen.lineTo(width - RIGHT, place);
      pen.stroke();
      pen.textAlign = "right";
      pen.fillText(decadeLabel(power), LEFT - 8, place + 3.5);
    }
    pen.textAlign = "center";
    for (const [t, label] of times(data.start, data.end, inner.w)) {
      if (x(t) > LEFT + 14 && x(t) < width - RIGHT - 22) pen.fillText(label, x(t), height - 6);
    }
    cells = [];
    const ramp = colour("--heat").split(",").map(Number);
    let most = 1;
    for (const column of data.columns) {
      const sums = new Map();
      for (const [from, to, found] of column.bins) {
        const row = Math.min(rows - 1, Math.max(0, Math.floor((Math.log10(Math.max((from + to) / 2, 1)) - low) * ROWS)));
        sums.set(row, (sums.get(row) ?? 0) + found);
      }
      for (const [row, found] of sums) {
        most = Math.max(most, found);
        cells.push({ t: column.t, row, found });
      }
    }
    for (const cell of cells) {
      const strength = 0.16 + 0.84 * (Math.log1p(cell.found) / Math.log1p(most));
      pen.fillStyle = `rgba(${ramp.join(",")},${strength.toFixed(3)})`;
      const [from, to] = [x(cell.t), x(cell.t + data.step)];
      const [upper, lower] = [y(cell.row + 1), y(cell.row)];
      Object.assign(cell, { from, to, upper, lower });
      pen.fillRect(from, upper + 0.5, Math.max(1, to - from - 0.5), Math.max(1, lower - upper - 1));
    }
    attr(canvas, "data-cells", cells.length);
    attr(canvas, "data-start", data.start);
    attr(canvas, "data-step", data.step);
    const found = under();
    if (found) {
      pen.strokeStyle = colour("--text");
      pen.strokeRect(found.from + 0.5, found.upper + 1, Math.max(1, found.to - found.from - 1.5), Math.max(1, found.lower - found.upper - 2));
      const bound = (row) => micros(10 ** (low + row / ROWS));
      text(caption, `${clock(found.t)}: ${count(found.found)} took ${bound(found.row)} to ${bound(found.row + 1)}`);
    } else {
      const total = cells.reduce((sum, cell) => sum + cell.found, 0);
      text(caption, total ? `${count(total)} in ${span((data.end - data.start) / 1000)}; stronger: more. Busiest cell: ${count(most)}.` : data.end ? "Nothing was measured in this time." : "Waiting for the first figures…");
    }
  };
  const redraw = sized(node, draw);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    hovered = { x: event.clientX - box.left, y: event.clientY - box.top };
    redraw();
  });
  const leave = () => {
    hovered = null;
    redraw();
  };
  for (const end of ["pointerleave", "blur"]) canvas.addEventListener(end, leave);
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    if (!Object.hasOwn(ARROWS, event.key)) return;
    event.preventDefault();
    const next = neighbour(cells, under(), ARROWS[event.key]);
    if (!next) return;
    hovered = { x: (next.from + next.to) / 2, y: (next.upper + next.lower) / 2 };
    redraw();
  });
  return {
    node,
    redraw,
    update(columns, start, end, step) {
      data = { columns, start, end, step };
      redraw();
    },
  };
}
