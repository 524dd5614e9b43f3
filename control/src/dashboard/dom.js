// Elements from values. Text only ever becomes text: there is no way to HTML here, and the page's
// policy would stop one.

const SVG = "http://www.w3.org/2000/svg";

function build(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element with attributes, listeners (`onclick`) and children (elements or text). */
export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);

/** The same for SVG. */
export const s = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);

/** Sets text only where it differs, so that nothing is laid out for nothing. */
export function text(node, value) {
  const wanted = String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Sets or removes an attribute only where it differs. */
export function attr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, String(value));
  }
}

/** Makes the children of `parent` be those of `items`, keeping the nodes of keys that stay. */
export function list(parent, items, keyOf, make, update) {
  const known = (parent.known ??= new Map());
  const seen = new Set();
  let at = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    seen.add(key);
    let entry = known.get(key);
    if (!entry) {
      entry = make(item);
      known.set(key, entry);
    }
    update(entry, item);
    if (entry.node === at) at = at.nextSibling;
    else parent.insertBefore(entry.node, at);
  }
  for (const [key, entry] of known) {
    if (!seen.has(key)) {
      entry.node.remove();
      known.delete(key);
    }
  }
}

/** A card with a heading. */
export function card(title, props, ...children) {
  const { note, tools, ...rest } = props ?? {};
  const id = `card-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return h(
    "section",
    { ...rest, class: `card ${rest.class ?? ""}`.trim(), "aria-labelledby": id },
    h("header", { class: "card-head" }, h("h2", { id }, title), note ? h("span", { class: "note" }, note) : null, tools ?? null),
    ...children,
  );
}

/** A definition list; returns the element and a function that fills it: name → value or node. */
export function facts(names) {
  const values = new Map(names.map(([key]) => [key, h("dd", {}, "–")]));
  const node = h("dl", { class: "facts" }, names.map(([key, label]) => h("div", { "data-fact": key }, h("dt", {}, label), values.get(key))));
  return {
    node,
    set(key, value, title) {
      const place = values.get(key);
      if (value instanceof Node) place.replaceChildren(value);
      else text(place, value ?? "–");
      attr(place, "title", title);
    },
  };
}

/** What is shown while there is nothing else to show. */
export const notice = (title, detail, ...more) =>
  h("div", { class: "notice" }, h("p", { class: "notice-title" }, title), detail ? h("p", {}, detail) : null, ...more);
