// The workspace as a tree, and one file at a time beside it: text with line numbers, pictures, and a
// download for everything. Files are fetched when they are opened and again when they change.

import { Problem } from "../rest.js";
import { arrange, el, setText, show } from "./dom.js";
import { fromBase64, picture } from "./parts.js";
import { bytes, plural } from "./words.js";

const MAX_LINES = 5000;
const PICTURES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/avif"]);

export class FilesPanel {
  /** @param {{fetchFile: (path: string) => Promise<object>, onClose: () => void}} options */
  constructor({ fetchFile, onClose }) {
    this.fetchFile = fetchFile;
    this.folded = new Set();
    this.title = el("h2", { text: "Files" });
    this.tree = el("div", { class: "tree" });
    this.empty = el("p", { class: "quiet", text: "No files yet. What the agent writes appears here." });
    this.viewer = el("section", { class: "viewer", hidden: true });
    const close = el("button", { class: "plain", type: "button", text: "Hide", on: { click: onClose } });
    this.element = el(
      "aside",
      { class: "files", "aria-label": "Files" },
      el("header", {}, this.title, close),
      this.empty,
      this.tree,
      this.viewer,
    );
  }

  update(state) {
    if (state.files === this.files) return;
    this.files = state.files;
    setText(this.title, this.files.size ? plural(this.files.size, "file") : "Files");
    show(this.empty, this.files.size === 0);
    this.showTree();
    const current = this.open && this.files.get(this.open.path);
    if (this.open && !current) this.showGone();
    else if (current && current.sha256 !== this.open.sha256) this.openFile(this.open.path);
  }

  showTree() {
    const { nodes } = this.branch(treeOf([...this.files.values()]), "");
    this.tree.replaceChildren(...nodes);
  }

  branch(folder, prefix) {
    const nodes = [];
    for (const [name, child] of [...folder.folders].sort(byName)) {
      const path = `${prefix}${name}/`;
      const details = el(
        "details",
        { open: !this.folded.has(path) },
        el("summary", { text: name }),
        ...this.branch(child, path).nodes,
      );
      details.addEventListener("toggle", () =>
        details.open ? this.folded.delete(path) : this.folded.add(path),
      );
      nodes.push(details);
    }
    for (const [name, file] of [...folder.files].sort(byName)) {
      const button = el(
        "button",
        { class: "file", type: "button", title: file.path, on: { click: () => this.openFile(file.path) } },
        el("span", { class: "name", text: name }),
        el("span", { class: "quiet", text: bytes(file.sizeBytes) }),
      );
      if (file.path === this.open?.path) button.setAttribute("aria-current", "true");
      nodes.push(button);
    }
    return { nodes };
  }

  async openFile(path) {
    const isAgain = this.open?.path === path;
    this.open = { path, sha256: this.files.get(path)?.sha256 };
    const { open } = this;
    this.showTree();
    if (!isAgain) this.showViewer(el("p", { class: "quiet", text: "Loading …" }));
    try {
      const file = await this.fetchFile(path);
      if (this.open === open) this.showViewer(contentView(file), file);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (this.open === open) this.showViewer(el("p", { class: "trouble", text: problem.message }));
    }
  }

  /** Close the open file; returns whether there was one. */
  closeFile() {
    if (!this.open) return false;
    this.open = null;
    this.element.classList.remove("is-reading");
    show(this.viewer, false);
    this.showTree();
    return true;
  }

  showGone() {
    this.showViewer(el("p", { class: "quiet", text: "This file was deleted." }));
  }

  showViewer(content, file) {
    const close = el("button", {
      class: "plain",
      type: "button",
      text: "Close",
      on: { click: () => this.closeFile() },
    });
    const head = el(
      "header",
      {},
      el("h3", { text: this.open.path, title: this.open.path }),
      file && el("span", { class: "quiet", text: bytes(file.sizeBytes) }),
      file &&
        el("button", {
          class: "plain",
          type: "button",
          text: "Download",
          on: { click: () => download(file) },
        }),
      close,
    );
    const top = this.viewer.querySelector(".file-content")?.scrollTop ?? 0;
    const body = el("div", { class: "file-content", tabindex: "0" }, content);
    arrange(this.viewer, [head, body]);
    this.element.classList.add("is-reading");
    show(this.viewer, true);
    body.scrollTop = top;
  }
}

/** Paths as nested maps of folders and files. */
export function treeOf(files) {
  const root = { folders: new Map(), files: new Map() };
  for (const file of files) {
    const parts = file.path.split("/");
    const name = parts.pop();
    let folder = root;
    for (const part of parts) {
      if (!folder.folders.has(part)) folder.folders.set(part, { folders: new Map(), files: new Map() });
      folder = folder.folders.get(part);
    }
    folder.files.set(name, file);
  }
  return root;
}

function byName([first], [second]) {
  return first.localeCompare(second);
}

function contentView(file) {
  if (PICTURES.has(file.mimeType)) {
    const data = bytesOf(file);
    if (data) return picture(data, file.mimeType, file.path);
  }
  if (file.encoding === "utf-8") return numbered(file.content ?? "");
  return el("p", {
    class: "quiet",
    text: "This is not text, and no picture that can be shown. It can be downloaded.",
  });
}

function numbered(text) {
  if (text === "") return el("p", { class: "quiet", text: "The file is empty." });
  const lines = text.replace(/\n$/, "").split("\n");
  const shown = lines.slice(0, MAX_LINES);
  const numbers = shown.map((_, at) => at + 1).join("\n");
  return el(
    "div",
    { class: "numbered" },
    el("pre", { class: "numbers", "aria-hidden": "true", text: numbers }),
    el("pre", { class: "text", text: shown.join("\n") }),
    lines.length > MAX_LINES &&
      el("p", {
        class: "quiet",
        text: `${plural(lines.length - MAX_LINES, "more line")}; download the file to see all.`,
      }),
  );
}

function bytesOf(file) {
  return file.encoding === "base64"
    ? fromBase64(file.content ?? "")
    : new TextEncoder().encode(file.content ?? "");
}

/** Save a file; always as opaque bytes, so that the browser never renders what an agent wrote. */
function download(file) {
  const url = URL.createObjectURL(new Blob([bytesOf(file)], { type: "application/octet-stream" }));
  el("a", { href: url, download: file.path.split("/").at(-1) }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
