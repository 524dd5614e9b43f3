// The page: which view is shown, who is signed in, keys, theme.

import { agentView, agentsView } from "./agents.js";
import { get, setToken, storedToken, whenSignedOut } from "./api.js";
import { attentionView } from "./attention.js";
import { attr, h, text } from "./dom.js";
import { fleetView } from "./fleet.js";
import { clock } from "./format.js";
import { limitView, limitsView } from "./limits.js";
import { begin, end, live, watch } from "./live.js";
import { processView, processesView } from "./processes.js";

const byId = (id) => document.getElementById(id);
const main = byId("main");

const PAGES = [
  { at: "", key: "f", title: "Fleet" },
  { at: "agents", key: "a", title: "Agents" },
  { at: "processes", key: "p", title: "Processes" },
  { at: "limits", key: "l", title: "Limits" },
  { at: "attention", key: "n", title: "Attention" },
];

/** The view that is shown: what ends it. */
let leave = () => {};

// --- which view ---

function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), params: new URLSearchParams(query) };
}

function viewOf({ parts, params }) {
  const [page, id, key] = parts;
  if (page === "agents") return id ? agentView(id) : agentsView(params);
  if (page === "processes") return id ? processView(id) : processesView(params);
  if (page === "limits") return id && key ? limitView(id, key) : limitsView();
  if (page === "attention") return attentionView();
  return fleetView();
}

function show({ focus } = {}) {
  if (!storedToken()) {
    signIn();
    return;
  }
  leave();
  const where = place();
  const view = viewOf(where);
  leave = view.leave;
  main.replaceChildren(view.node);
  document.title = `${view.title} · Drover`;
  for (const link of byId("nav").querySelectorAll("a")) {
    attr(link, "aria-current", link.dataset.page === (where.parts[0] ?? "") ? "page" : null);
  }
  if (focus) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

// --- signing in and out ---

function signedIn(yes) {
  byId("nav").hidden = !yes;
  byId("sign-out").hidden = !yes;
  byId("pulse").hidden = !yes;
  document.body.classList.toggle("signed-out", !yes);
}

function signIn(trouble) {
  leave();
  leave = () => {};
  end();
  signedIn(false);
  document.title = "Sign in · Drover";
  const field = h("input", { id: "token", name: "token", type: "password", required: true, autocomplete: "current-password", spellcheck: "false", autocapitalize: "off", placeholder: "drvapi_…", "aria-describedby": "token-help sign-in-trouble" });
  const said = h("p", { id: "sign-in-trouble", class: "trouble", role: "alert" }, trouble ?? "");
  const button = h("button", { type: "submit", class: "button" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    const token = field.value.trim();
    if (!token) return;
    button.disabled = true;
    text(said, "");
    whenSignedOut((why) => text(said, why));
    setToken(token);
    try {
      await get("/v1/overview");
      enter();
    } catch (error) {
      setToken(null);
      text(said, error.message);
      field.select();
    }
    button.disabled = false;
  };
  main.replaceChildren(
    h(
      "form",
      { class: "sign-in", onsubmit: submit },
      h("h1", {}, "Sign in"),
      h("p", { class: "note" }, "With an API token of this deployment. A viewer's is enough."),
      h("label", { for: "token" }, "API token"),
      field,
      said,
      button,
      h("p", { id: "token-help", class: "note" }, "The first token is in the file ", h("code", {}, "admin.token"), " of the server's data directory; ", h("code", {}, "drover api-tokens create"), " makes more. It stays in this tab until you close it or sign out."),
    ),
  );
  field.focus();
}

function signOut(why) {
  setToken(null);
  signIn(why);
}

function enter() {
  whenSignedOut((why) => signOut(`You were signed out. ${why}`));
  signedIn(true);
  begin();
  show({ focus: true });
}

// --- the state of the connection ---

const PHASES = { loading: "connecting…", live: "live", reconnecting: "reconnecting…" };
let said = "loading";

function showPulse({ phase, overview, trouble }) {
  const pulse = byId("pulse");
  const state = phase === "live" && overview.server.state !== "ready" ? overview.server.state : phase;
  attr(pulse, "data-phase", state);
  text(pulse, PHASES[state] ?? state);
  attr(pulse, "title", phase === "reconnecting" ? `${trouble} Shown: ${overview ? `as of ${clock(overview.at)}` : "nothing yet"}.` : null);
  document.body.classList.toggle("stale", phase === "reconnecting");
  if (phase !== said && (phase === "reconnecting" || said === "reconnecting")) {
    text(byId("say"), phase === "live" ? "Connected again." : "The connection to the server was lost; reconnecting.");
  }
  said = phase;
}

// --- theme ---

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

function nameTheme() {
  const button = byId("theme");
  const other = isDark() ? "light" : "dark";
  text(button, isDark() ? "☀" : "☾");
  attr(button, "aria-label", `Switch to the ${other} theme (t)`);
  attr(button, "title", `Switch to the ${other} theme (t)`);
  dispatchEvent(new Event("drover-theme"));
}

function switchTheme() {
  const other = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = other;
  try {
    localStorage.setItem("drover-theme", other);
  } catch {
    // No storage: it lasts as long as the page.
  }
  nameTheme();
}

// --- keys ---

const KEYS = [
  ["g f", "go to the fleet"],
  ["g a", "go to the agents"],
  ["g p", "go to the processes"],
  ["g l", "go to the limits"],
  ["g n", "go to what needs attention"],
  ["/", "search agents"],
  ["j  k", "next, previous row"],
  ["Enter", "open the row"],
  ["← →", "read along the chart that has the focus"],
  ["Esc", "leave a field, close this"],
  ["t", "light or dark"],
  ["?", "this list"],
];

function showHelp() {
  const dialog = byId("help-dialog");
  if (dialog.open) {
    dialog.close();
    return;
  }
  dialog.replaceChildren(
    h("h2", { id: "help-title" }, "Keyboard shortcuts"),
    h("dl", { class: "keys" }, KEYS.map(([keys, what]) => h("div", {}, h("dt", {}, keys.split(/ +/).map((key) => h("kbd", {}, key))), h("dd", {}, what)))),
    h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Close"),
  );
  dialog.showModal();
}

/** Moves the focus along the links that open rows. */
function moveRow(by) {
  const rows = [...main.querySelectorAll("a.row-link")];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(at + by, 0), rows.length - 1)].focus();
}

function search() {
  const field = byId("search");
  if (field) field.focus();
  else location.hash = "#/agents?focus=search";
}

let pending = "";
let pendingTimer = 0;

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest?.("input, select, textarea");
  if (event.key === "Escape" && field) field.blur();
  if (field || !storedToken()) {
    if (event.key === "?" && !field) showHelp();
    return;
  }
  const key = event.key;
  if (pending === "g") {
    pending = "";
    const page = PAGES.find((one) => one.key === key);
    if (page) {
      event.preventDefault();
      location.hash = `#/${page.at}`;
      return;
    }
  }
  const actions = { "?": showHelp, t: switchTheme, "/": search, j: () => moveRow(1), k: () => moveRow(-1) };
  if (key === "g") {
    pending = "g";
    clearTimeout(pendingTimer);
    pendingTimer = setTimeout(() => (pending = ""), 1500);
  } else if (Object.hasOwn(actions, key) && !(byId("help-dialog").open && key !== "?")) {
    event.preventDefault();
    actions[key]();
  }
}

// --- begin ---

byId("nav").append(...PAGES.map((page) => h("a", { href: `#/${page.at}`, "data-page": page.at, title: `g ${page.key}` }, page.title)));
byId("theme").addEventListener("click", switchTheme);
byId("help").addEventListener("click", showHelp);
byId("sign-out").addEventListener("click", () => signOut());
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.addEventListener("keydown", onKey);
dark.addEventListener("change", nameTheme);
addEventListener("hashchange", () => show({ focus: true }));
nameTheme();
watch((state) => {
  if (storedToken()) showPulse(state);
});
if (storedToken()) enter();
else signIn();
