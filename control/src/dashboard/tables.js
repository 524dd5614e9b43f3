// Tables that are read page by page or as a whole, made of columns.

import { attr, h, list, text } from "./dom.js";

/**
 * A table of rows. A column is `{ label, kind, show }`: `kind` are classes, `show(item)` answers text,
 * a node, or `[text, title]`.
 */
export function rowsOf(name, keyOf, columns) {
  const body = h("tbody");
  const node = h("table", { class: "rows" }, h("caption", { class: "unseen" }, name), h("thead", {}, h("tr", {}, columns.map(({ label, kind }) => h("th", { scope: "col", class: kind }, label)))), body);
  const make = (item) => {
    const cells = columns.map(({ kind }, at) => h(at ? "td" : "th", { class: kind, scope: at ? undefined : "row" }));
    return { cells, node: h("tr", { "data-row": keyOf(item) }, cells) };
  };
  const update = ({ cells }, item) => columns.forEach(({ show }, at) => fill(cells[at], show(item)));
  return { node, fill: (items) => list(body, items, keyOf, make, update) };
}

/** Puts text, `[text, title]` or a node into a cell; a node that says the same is left where it is. */
function fill(cell, value) {
  if (value instanceof Node) {
    if (!cell.firstChild?.isEqualNode?.(value)) cell.replaceChildren(value);
    return;
  }
  const [shown, title] = Array.isArray(value) ? value : [value, null];
  text(cell, shown ?? "–");
  attr(cell, "title", title);
}

/** A table and below it a line for when it is empty, or not whole. */
export function notedRows(name, keyOf, columns) {
  const rows = rowsOf(name, keyOf, columns);
  const line = h("p", { class: "note table-note" }, "Loading…");
  rows.node.hidden = true;
  return {
    node: h("div", { class: "scroll" }, rows.node, line),
    fill(items, said) {
      rows.fill(items);
      rows.node.hidden = !items.length;
      line.hidden = !said;
      text(line, said);
    },
    fail(error) {
      line.hidden = false;
      text(line, `${error.message} Trying again…`);
    },
  };
}
