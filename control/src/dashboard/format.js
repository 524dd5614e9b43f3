// Numbers, times and units, written the same everywhere.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NONE = "–";

/** 1,234,567 */
export const count = (value) => (Number.isFinite(value) ? whole.format(value) : NONE);

/** Three significant digits, no exponent: 0, 0.12, 1.23, 12.3, 123, 1,230. */
export function digits(value) {
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 100) return whole.format(value);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.1 || size === 0) return size === 0 ? "0" : value.toFixed(2);
  return size < 0.005 ? "0" : value.toFixed(2);
}

/** Per second: 0, 0.2, 3.4, 120. */
export function rate(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  if (value < 0.05) return "<0.1";
  return value < 100 ? value.toFixed(1) : whole.format(value);
}

function scaled(value, units, step) {
  if (!Number.isFinite(value)) return NONE;
  let at = 0;
  while (at + 1 < units.length && Math.abs(value) >= step * 0.9995) {
    value /= step;
    at += 1;
  }
  const number = at === 0 ? whole.format(value) : digits(value);
  return `${number} ${units[at]}`;
}

/** A duration in microseconds: 950 µs, 1.24 ms, 12.4 s. */
export const micros = (value) =>
  Number.isFinite(value) && value >= 60e6 ? span(value / 1e6) : scaled(value, ["µs", "ms", "s"], 1000);

/** Bytes: 512 B, 1.50 KiB, 96.0 MiB. */
export const bytes = (value) => scaled(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024);

/** A duration in seconds, in its two largest units: 45 s, 12 min, 3 h 20 min, 4 d 2 h. */
export function span(seconds) {
  if (!Number.isFinite(seconds)) return NONE;
  const total = Math.max(0, Math.floor(seconds));
  const [d, hours, m, sec] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60, total % 60];
  if (d > 0) return hours > 0 ? `${d} d ${hours} h` : `${d} d`;
  if (hours > 0) return m > 0 ? `${hours} h ${m} min` : `${hours} h`;
  if (m > 0) return m < 10 && sec > 0 ? `${m} min ${sec} s` : `${m} min`;
  return `${sec} s`;
}

/** How long ago a moment (RFC 3339) was. */
export function ago(moment, now = Date.now()) {
  if (!moment) return NONE;
  const seconds = (now - Date.parse(moment)) / 1000;
  return seconds < 1 ? "now" : `${span(seconds)} ago`;
}

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** 14:03:09, with the day where it is not today's. */
export function clock(moment) {
  if (!moment) return NONE;
  const at = new Date(moment);
  const time = clockFormat.format(at);
  return at.toDateString() === new Date().toDateString() ? time : `${dayFormat.format(at)} ${time}`;
}

/** The same to the millisecond, for what happens in quick succession. */
export const clockMs = (moment) => `${clock(moment)}.${String(new Date(moment).getMilliseconds()).padStart(3, "0")}`;

/** 14:03, for axes. */
export const minute = (ms) => minuteFormat.format(new Date(ms));

/** An id, short enough for a column: both its ends. */
export const shortId = (id) => `${id.slice(0, 8)}…${id.slice(-6)}`;

/** `store_commit` → `Store commit`. */
export function words(name) {
  const spaced = name.replaceAll("_", " ");
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}
