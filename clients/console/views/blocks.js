// One view per kind of block. Each has an `element` and `update(state)`, which is called with every
// frame that changed something and returns at once where its own block is the same as before.

import { pieces } from "../markdown.js";
import { copyButton, el, growText, paint, setText, show } from "./dom.js";
import { disclosure, imagePart } from "./parts.js";
import { contentText, duration } from "./words.js";

/** A view whose look depends on its block alone. */
class BlockView {
  constructor(block, context) {
    this.id = block.id;
    this.context = context;
  }

  update(state) {
    const block = state.blocks.get(this.id);
    if (block === this.block) return;
    this.render(block);
    this.block = block;
  }
}

export class UserMessageView extends BlockView {
  constructor(block, context) {
    super(block, context);
    this.element = el("article", {
      class: "user-message",
      "aria-label": block.conversationId === "main" ? "You" : "Task",
    });
  }

  render(block) {
    const images =
      typeof block.content === "string" ? [] : block.content.filter((part) => part.type === "image");
    this.element.replaceChildren(
      el("p", { text: contentText(block.content) }),
      ...images.map((part) => imagePart(part, "Picture that you sent")),
    );
  }
}

/** Markdown that may still grow: pieces that did not change keep their nodes. */
export class AssistantTextView extends BlockView {
  constructor(block, context) {
    super(block, context);
    this.shown = [];
    this.body = el("div", { class: "markdown" });
    this.cut = el("p", { class: "quiet", text: "This text was cut off.", hidden: true });
    this.element = el("article", { class: "assistant-text", "aria-label": "Agent" }, this.body, this.cut);
  }

  render(block) {
    this.element.dataset.state = block.state;
    const wanted = pieces(block.content);
    let same = 0;
    while (same < wanted.length && wanted[same].raw === this.shown[same]?.raw) same++;
    for (const { element } of this.shown.splice(same)) element.remove();
    for (const piece of wanted.slice(same)) {
      const element = decorated(paint(piece.tree()));
      this.body.append(element);
      this.shown.push({ raw: piece.raw, element });
    }
    show(this.cut, block.state === "aborted");
  }
}

function decorated(node) {
  if (node.nodeName !== "PRE" || !node.dataset.language) return node;
  const bar = el(
    "div",
    { class: "code-bar" },
    el("span", { text: node.dataset.language }),
    copyButton(() => node.textContent),
  );
  return el("div", { class: "code" }, bar, node);
}

export class ThinkingView extends BlockView {
  constructor(block, context) {
    super(block, context);
    this.label = el("span", { class: "thinking-label" });
    this.preview = el("span", { class: "thinking-preview" });
    this.text = el("p", { class: "thinking-text" });
    this.element = disclosure({
      className: "thinking",
      header: [this.label, this.preview],
      body: el("div", { class: "fold-body" }, this.text),
      isOpen: false,
    });
  }

  render(block) {
    const isStreaming = block.state === "streaming";
    this.element.dataset.state = block.state;
    setText(this.label, isStreaming ? "Thinking" : thoughtLabel(block));
    setText(this.preview, isStreaming ? lastLine(block.content) : (block.summary ?? ""));
    growText(this.text, block.content || "The model does not show this thought.");
  }
}

function thoughtLabel(block) {
  if (block.state === "aborted") return "Thought, cut off";
  return block.durationMs == null ? "Thought" : `Thought for ${duration(block.durationMs)}`;
}

function lastLine(text) {
  return text.trimEnd().split("\n").at(-1).slice(-160);
}

export class SystemView extends BlockView {
  constructor(block, context) {
    super(block, context);
    this.element = el("p", { class: "system-block" });
  }

  render(block) {
    setText(this.element, block.message || block.subtype);
  }
}

export class ErrorView extends BlockView {
  constructor(block, context) {
    super(block, context);
    this.message = el("p", {});
    this.code = el("p", { class: "quiet" });
    this.element = el(
      "article",
      { class: "error-block", role: "alert" },
      el("strong", { text: "Error" }),
      this.message,
      this.code,
    );
  }

  render(block) {
    setText(this.message, block.message);
    setText(this.code, block.retryable ? `${block.code} · may work when tried again` : block.code);
  }
}
