// The API as this page uses it: a bearer token in a header, never in an address.

const KEY = "drover-token";

/** What the API answered when it was not what was asked for. */
export class ApiError extends Error {
  constructor(status, title, detail, wait) {
    super(detail || title);
    this.status = status;
    this.title = title;
    this.wait = wait;
  }
}

/** After an event a replica of the store may not have yet what it tells of: so long the primary is asked. */
const LATEST_FOR = 10000;

let token = null;
let heardAt = -Infinity;
let onSignedOut = () => {};

/** The token that this tab has, if any. It lives as long as the tab. */
export function storedToken() {
  try {
    token ??= sessionStorage.getItem(KEY);
  } catch {
    // No storage: the token lives as long as the page.
  }
  return token;
}

/** Takes a token into use, or forgets it. */
export function setToken(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // As above.
  }
}

/** Calls `listener` with words when the API no longer knows the token. */
export function whenSignedOut(listener) {
  onSignedOut = listener;
}

async function request(path, headers, signal) {
  const sent = token;
  let response;
  try {
    response = await fetch(path, {
      headers: { ...headers, authorization: `Bearer ${sent}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "The server cannot be reached", "Nothing answers at this address; it may be restarting.");
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not a problem document: a proxy's page, perhaps.
  }
  const title = problem.title ?? `The server answered ${response.status}`;
  const wait = Number(response.headers.get("retry-after"));
  if (response.status === 401 && sent === token) onSignedOut(problem.detail ?? title);
  throw new ApiError(response.status, title, problem.detail ?? "", wait > 0 ? wait * 1000 : undefined);
}

/** GET, for JSON. `params` that are empty are left out. */
export async function get(path, params, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params ?? {})) {
    if (value !== undefined && value !== null && value !== "") query.set(name, value);
  }
  const text = query.toString();
  const headers = { accept: "application/json" };
  if (performance.now() - heardAt < LATEST_FOR) headers["drover-position"] = "latest";
  const response = await request(text ? `${path}?${text}` : path, headers, signal);
  return response.json();
}

/**
 * Reads server-sent events (WHATWG HTML §9.2) until the stream ends. EventSource cannot send a
 * token, so the stream is read here.
 */
export async function events(path, lastId, signal, onOpen, onEvent) {
  const headers = { accept: "text/event-stream" };
  if (lastId !== undefined) headers["last-event-id"] = String(lastId);
  const response = await request(path, headers, signal);
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const event = parse(rest.slice(0, end));
      rest = rest.slice(end + 2);
      if (event && path.startsWith("/v1/events")) heardAt = performance.now();
      if (event) onEvent(event);
    }
  }
}

function parse(block) {
  const event = { id: undefined, type: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "id") event.id = value;
    else if (field === "event") event.type = value;
    else if (field === "data") event.data += event.data ? `\n${value}` : value;
  }
  return event.data ? event : null;
}

const FIRST_WAIT = 1000;
const LAST_WAIT = 10000;
/** A stream that is silent for so long is dead: the server speaks at least every 15 s. */
const SILENCE = 40000;

/**
 * Follows a stream for as long as `signal` lets it: connects again by itself, each time behind the
 * last event that had an id. `onPhase` hears `live` and `reconnecting` (with the error, if any).
 */
export async function follow(path, { after, quiet = SILENCE, signal, onEvent, onPhase }) {
  let last = after;
  let wait = FIRST_WAIT;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    let alarm = setTimeout(stop, quiet);
    let failure = null;
    try {
      const heard = () => {
        clearTimeout(alarm);
        alarm = setTimeout(stop, quiet);
      };
      const opened = () => {
        heard();
        wait = FIRST_WAIT;
        onPhase("live");
      };
      await events(path, last, attempt.signal, opened, (event) => {
        heard();
        if (event.id !== undefined) last = event.id;
        onEvent(event);
      });
    } catch (error) {
      failure = attempt.signal.aborted && !signal.aborted ? new ApiError(0, "Silence", "Nothing was heard from the server for a while.") : error;
    }
    clearTimeout(alarm);
    signal.removeEventListener("abort", stop);
    if (signal.aborted || failure?.status === 401) return;
    // What was asked for is no longer kept: go on with what happens now.
    if (failure?.status === 410) last = undefined;
    onPhase("reconnecting", failure);
    await pause(failure?.wait ?? wait, signal);
    wait = Math.min(wait * 2, LAST_WAIT);
  }
}

/** Waits, or less if `signal` says so. */
export function pause(ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      done();
    });
  });
}
