// Making and changing nodes. The only place that turns data into elements: text is always a text node,
// never HTML. Knows nothing of sessions.

/**
 * An element. `props`: `class`, `text`, `on: {event: handler}`, `data: {name: value}`; anything else is an
 * attribute; false, null and undefined leave it out, true sets it empty.
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  const { text, on, data, ...attributes } = props;
  for (const [name, value] of Object.entries(attributes)) attribute(element, name, value);
  for (const [name, handler] of Object.entries(on ?? {})) element.addEventListener(name, handler);
  Object.assign(element.dataset, data ?? {});
  if (text !== undefined) element.textContent = text;
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** A button that does something when it is pressed. */
export function button(className, text, onClick, title) {
  return el("button", { class: className, type: "button", text, title, on: { click: onClick } });
}

/** Set or remove an attribute, touching the node only where something changes. */
export function attribute(element, name, value) {
  const wanted = value === true ? "" : value;
  if (wanted === false || wanted == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(wanted)) element.setAttribute(name, wanted);
}

/** Set the text of an element that holds nothing else, if it differs. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make a text grow: append what is new, or replace it where the old text is no beginning of it. */
export function growText(element, text) {
  const node = element.firstChild ?? element.appendChild(document.createTextNode(""));
  const known = node.data;
  if (text === known) return;
  if (text.startsWith(known)) node.appendData(text.slice(known.length));
  else node.data = text;
}

export function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

/** Bring the children of a container into this order; nodes that stay are not touched. */
export function arrange(container, nodes) {
  let cursor = container.firstChild;
  for (const node of nodes) {
    if (node === cursor) cursor = cursor.nextSibling;
    else container.insertBefore(node, cursor);
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

/** A tree of `markdown.js` as a node. */
export function paint(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  return el(tree.tag, tree.attributes, ...tree.children.map(paint));
}

/** A button that copies a text, or nothing where the page may not. */
export function copyButton(text) {
  if (!navigator.clipboard) return null;
  const button = el("button", { class: "copy", type: "button", text: "Copy" });
  button.addEventListener("click", async () => {
    const isCopied = await navigator.clipboard.writeText(text()).then(
      () => true,
      () => false,
    );
    setText(button, isCopied ? "Copied" : "Not allowed");
    setTimeout(() => setText(button, "Copy"), 1500);
  });
  return button;
}
