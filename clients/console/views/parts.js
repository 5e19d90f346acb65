// Small pieces that several views are made of: something that folds, a clamped listing, a picture.

import { attribute, el } from "./dom.js";
import { plural } from "./words.js";

const CLAMP_LINES = 12;
const CLAMP_CHARACTERS = 400;

/**
 * A header that folds a body. `extra` stands beside the header and is not part of its button.
 * `onOpen` is called whenever a person unfolds it.
 */
export function disclosure({ className, header, extra = [], body, isOpen, onOpen }) {
  const button = el(
    "button",
    { class: "fold", type: "button" },
    el("span", { class: "chevron", "aria-hidden": "true" }),
    ...header,
  );
  const element = el(
    "section",
    { class: className },
    el("div", { class: "fold-head" }, button, ...extra),
    body,
  );
  const setOpen = (open) => {
    attribute(button, "aria-expanded", String(open));
    body.hidden = !open;
  };
  button.addEventListener("click", () => {
    setOpen(body.hidden);
    if (!body.hidden) onOpen?.();
  });
  setOpen(isOpen);
  return element;
}

/** Lines of text, the first dozen until a person asks for all; remembers that between renderings. */
export class Listing {
  constructor(className) {
    this.pre = el("pre", { class: "lines" });
    this.more = el("button", { class: "more", type: "button", on: { click: () => this.toggle() } });
    this.element = el("div", { class: `listing ${className}`, hidden: true }, this.pre, this.more);
    this.isExpanded = false;
    this.key = null;
  }

  /** @param {{kind?: string, text: string}[]} lines */
  render(lines) {
    this.lines = lines;
    const shown = this.isExpanded ? lines : lines.slice(0, CLAMP_LINES);
    const rest = lines.length - CLAMP_LINES;
    const isCut = rest > 0 || lines.some((line) => line.text.length > CLAMP_CHARACTERS);
    this.element.hidden = lines.length === 0;
    this.pre.replaceChildren(...shown.map((line) => this.line(line)));
    this.more.hidden = !isCut;
    if (isCut) this.more.textContent = this.isExpanded ? "Show less" : moreLabel(rest);
  }

  renderText(text, kind) {
    if (this.key === text) return;
    this.key = text;
    this.render(
      text === ""
        ? []
        : text
            .replace(/\n$/, "")
            .split("\n")
            .map((line) => ({ kind, text: line })),
    );
  }

  line({ kind, text }) {
    const isLong = !this.isExpanded && text.length > CLAMP_CHARACTERS;
    return el("span", {
      class: "line",
      data: kind ? { kind } : {},
      text: `${isLong ? `${text.slice(0, CLAMP_CHARACTERS)}…` : text}\n`,
    });
  }

  toggle() {
    this.isExpanded = !this.isExpanded;
    this.render(this.lines);
  }
}

function moreLabel(rest) {
  return rest > 0 ? `Show ${plural(rest, "more line")}` : "Show whole lines";
}

/** A picture drawn from its bytes. A canvas needs no `blob:` or `data:` in the page's security policy. */
export function picture(bytes, mediaType, label) {
  const canvas = el("canvas", { class: "picture", role: "img", "aria-label": label });
  createImageBitmap(new Blob([bytes], { type: mediaType })).then(
    (bitmap) => {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
    },
    () => canvas.replaceWith(el("p", { class: "quiet", text: "This picture cannot be shown." })),
  );
  return canvas;
}

/** Bytes of base64 text; null where it is none. */
export function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}

/** An image part of a message or a tool's output. */
export function imagePart(part, label) {
  const bytes = part.source?.type === "base64" ? fromBase64(part.source.data) : null;
  if (!bytes) return el("p", { class: "quiet", text: "(a picture that cannot be shown)" });
  return picture(bytes, part.source.media_type ?? part.source.mediaType, label);
}
