// Tool calls as cards: what was asked, how it stands, what came back. `PRESENTERS` knows how the input
// of each well-known tool reads best; any other tool shows its fields. Results belong to their card.

import { diffLines } from "../diff.js";
import { readPartialJson } from "../partial_json.js";
import { attribute, el, setText, show } from "./dom.js";
import { Listing, disclosure, imagePart } from "./parts.js";
import { TOOL_STATUS, duration } from "./words.js";

const FINAL = new Set(["success", "error", "denied", "cancelled"]);

export class ToolCard {
  constructor(block, context) {
    this.id = block.id;
    this.context = context;
    this.presenter = PRESENTERS[block.toolName] ?? OTHER;
    this.subject = el("span", { class: "subject" });
    this.status = el("span", { class: "status-text" });
    this.openFile = el("button", {
      class: "link",
      type: "button",
      text: "Open file",
      hidden: true,
      on: { click: () => context.openFile(this.file) },
    });
    this.input = new Listing("tool-input");
    this.output = new Listing("tool-output");
    this.pictures = el("div", { class: "pictures" });
    this.note = el("p", { class: "quiet", hidden: true });
    this.element = disclosure({
      className: "tool",
      header: [
        el("span", { class: "tool-name", text: block.displayName ?? block.toolName }),
        this.subject,
        this.status,
      ],
      extra: [this.openFile],
      body: el(
        "div",
        { class: "fold-body" },
        this.input.element,
        this.output.element,
        this.pictures,
        this.note,
      ),
      isOpen: this.presenter.isOpen,
    });
  }

  update(state) {
    const block = state.blocks.get(this.id);
    const draft = state.drafts.get(this.id);
    const result = state.blocks.get(state.results.get(block.toolUseId));
    if (block !== this.block || draft !== this.draft) this.showInput(block, draft);
    if (block !== this.block || result !== this.result) this.showResult(block, result);
    this.showFile(state);
    Object.assign(this, { block, draft, result });
  }

  showInput(block, draft) {
    const input = block.state === "streaming" && draft ? readPartialJson(draft) : block.input;
    this.path = this.presenter.path?.(input);
    setText(this.subject, this.presenter.subject(input, block) || block.description || "");
    attribute(this.subject, "title", this.subject.textContent);
    this.input.render(this.presenter.lines(input));
  }

  showResult(block, result) {
    const isOver = Boolean(result) && result.state !== "streaming";
    const status = isOver && !FINAL.has(block.status) ? (result.isError ? "error" : "success") : block.status;
    this.element.dataset.status = status;
    const time = isOver && result.durationMs != null ? ` · ${duration(result.durationMs)}` : "";
    setText(this.status, `${TOOL_STATUS[status] ?? status}${time}`);
    if (!result) return;
    const parts = typeof result.output === "string" ? [{ type: "text", text: result.output }] : result.output;
    const text = parts.map(partText).filter(Boolean).join("\n");
    const isWorthShowing = result.isError || !this.presenter.hidesOutput;
    this.output.renderText(isWorthShowing ? text : "", result.isError ? "error" : undefined);
    const images = parts.filter((part) => part.type === "image");
    if (images.length !== this.pictures.childElementCount)
      this.pictures.replaceChildren(...images.map((part) => imagePart(part, "Picture from a tool")));
    setText(
      this.note,
      isOver && text === "" && images.length === 0 ? "No output." : "The output was cut short.",
    );
    show(
      this.note,
      Boolean(result.truncated) || (isOver && text === "" && images.length === 0 && this.presenter.isOpen),
    );
  }

  showFile(state) {
    if (state.files === this.files && this.path === this.knownPath) return;
    this.file = this.path ? workspacePath(this.path, state.files) : null;
    show(this.openFile, Boolean(this.file));
    Object.assign(this, { files: state.files, knownPath: this.path });
  }
}

/** The manifest's path for a path as the agent writes it, which may be absolute in its sandbox. */
export function workspacePath(path, files) {
  if (files.has(path)) return path;
  const parts = path.split("/").filter((part) => part && part !== ".");
  for (let from = 0; from < parts.length; from++) {
    const candidate = parts.slice(from).join("/");
    if (files.has(candidate)) return candidate;
  }
  return null;
}

function partText(part) {
  if (part.type === "text") return part.text;
  return part.type === "image" ? "" : JSON.stringify(part, null, 2);
}

function text(value) {
  return typeof value === "string" ? value : value == null ? "" : JSON.stringify(value);
}

function plain(value, kind) {
  const lines = text(value);
  return lines === ""
    ? []
    : lines
        .replace(/\n$/, "")
        .split("\n")
        .map((line) => ({ kind, text: line }));
}

function fileName(path) {
  return text(path).replace(/^\/(?:workspace|work|home\/[^/]+\/workspace)\//, "");
}

function edits(input) {
  const list = Array.isArray(input.edits) ? input.edits : [input];
  return list.flatMap((edit, at) => [
    ...(at ? [{ kind: "gap", text: "…" }] : []),
    ...diffLines(text(edit?.old_string), text(edit?.new_string)),
  ]);
}

function todoLine(todo) {
  const mark = { completed: "☑", in_progress: "◐" }[todo?.status] ?? "☐";
  return { kind: todo?.status === "completed" ? "past" : undefined, text: `${mark} ${text(todo?.content)}` };
}

function fields(input) {
  return Object.entries(input ?? {}).flatMap(([name, value]) => {
    const shown = typeof value === "string" ? value : JSON.stringify(value, null, 2);
    return plain(`${name}: ${shown}`);
  });
}

const path = (input) => text(input.file_path ?? input.notebook_path ?? input.path);
const none = () => [];

const EDIT = {
  isOpen: true,
  hidesOutput: true,
  path,
  subject: (input) => fileName(path(input)),
  lines: edits,
};
const SEARCH = {
  isOpen: false,
  subject: (input) => [text(input.pattern), fileName(input.path ?? "")].filter(Boolean).join("  in "),
  lines: none,
};
const OTHER = { isOpen: true, subject: () => "", lines: fields };

const PRESENTERS = {
  Bash: {
    isOpen: true,
    subject: (input, block) =>
      text(input.description) || block.description || text(input.command).split("\n", 1)[0],
    lines: (input) => plain(input.command, "command"),
  },
  Write: {
    isOpen: true,
    hidesOutput: true,
    path,
    subject: (input) => fileName(path(input)),
    lines: (input) => plain(input.content, "new"),
  },
  Edit: EDIT,
  MultiEdit: EDIT,
  NotebookEdit: { ...EDIT, lines: (input) => plain(input.new_source, "new") },
  Read: {
    isOpen: false,
    path,
    subject: (input) => fileName(path(input)) + (input.offset ? `, from line ${input.offset}` : ""),
    lines: none,
  },
  Glob: SEARCH,
  Grep: SEARCH,
  LS: { isOpen: false, subject: (input) => fileName(path(input)), lines: none },
  WebFetch: { isOpen: false, subject: (input) => text(input.url), lines: (input) => plain(input.prompt) },
  WebSearch: { isOpen: false, subject: (input) => text(input.query), lines: none },
  TodoWrite: {
    isOpen: true,
    hidesOutput: true,
    subject: () => "",
    lines: (input) => (Array.isArray(input.todos) ? input.todos.map(todoLine) : []),
  },
};
