// Elements, and lists of them that follow data without losing focus. All text is text: nothing here parses HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Set the text of a node; it is hidden while there is none. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = text === "";
}

/** Make the children of `parent` those of `items`, in this order. `make(item)` returns a node with a function `update`. */
export function follow(parent, items, key, make) {
  const known = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  const active = document.activeElement;
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let node = known.get(name);
    if (node === undefined) {
      node = make(item);
      node.dataset.key = name;
    }
    known.delete(name);
    node.update(item);
    if (node === before) before = node.nextElementSibling;
    else parent.insertBefore(node, before);
  }
  for (const node of known.values()) node.remove();
  // A button that was pressed may be gone by now: go on from its card, not from the top of the page.
  if (active && active !== document.body && !active.isConnected) parent.closest("[tabindex]")?.focus();
}

/** Make the options of a list those of `names`, and keep the choice. */
export function offer(select, names) {
  const there = [...select.options].map((option) => option.value);
  if (there.join("\n") === names.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}
