// A conversation as a list of block views, kept in step with the state; and the subagent's card, which
// holds a conversation of its own. Tool results have no view: they are part of their tool's card.

import { blocksOf } from "../reducer.js";
import { Problem } from "../rest.js";
import { AssistantTextView, ErrorView, SystemView, ThinkingView, UserMessageView } from "./blocks.js";
import { arrange, el, setText, show } from "./dom.js";
import { disclosure } from "./parts.js";
import { ToolCard } from "./tools.js";
import { TOOL_STATUS, duration, plural } from "./words.js";

/**
 * @typedef {object} Context  what block views may ask of the session's page
 * @property {(path: string) => void} openFile
 * @property {(conversationId: string) => Promise<void>} loadOlder  fetch the page before what is known
 */

export class ConversationView {
  /** @param {Context} context */
  constructor(conversationId, context) {
    this.conversationId = conversationId;
    this.context = context;
    this.views = new Map();
    this.older = el("button", {
      class: "older",
      type: "button",
      text: "Load older",
      hidden: true,
      on: { click: () => this.loadOlder() },
    });
    this.list = el("div", { class: "blocks" });
    this.element = el("div", { class: "conversation" }, this.older, this.list);
  }

  update(state) {
    const ids = state.conversations.get(this.conversationId) ?? [];
    show(this.older, Boolean(state.hasMore.get(this.conversationId)));
    if (ids !== this.ids || state.subagents !== this.subagents) this.arrange(ids, state);
    for (const view of this.views.values()) view.update(state);
  }

  arrange(ids, state) {
    Object.assign(this, { ids, subagents: state.subagents });
    const views = new Map();
    for (const id of ids) {
      const view =
        isShown(state.blocks.get(id), state) && (this.views.get(id) ?? this.make(state.blocks.get(id)));
      if (view) views.set(id, view);
    }
    this.views = views;
    arrange(
      this.list,
      [...views.values()].map((view) => view.element),
    );
  }

  make(block) {
    const View = VIEWS[block.type];
    if (!View) return null;
    const view = new View(block, this.context);
    view.element.dataset.block = block.id;
    return view;
  }

  async loadOlder() {
    this.older.disabled = true;
    setText(this.older, "Loading …");
    try {
      await this.context.loadOlder(this.conversationId);
      setText(this.older, "Load older");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      setText(this.older, `${problem.message} Try again`);
    } finally {
      this.older.disabled = false;
    }
  }
}

/** A subagent's card replaces the card of the tool call that started it. */
function isShown(block, state) {
  return block.type !== "tool_use" || !state.subagents.has(block.toolUseId);
}

class SubagentCard {
  constructor(block, context) {
    this.id = block.id;
    this.context = context;
    this.name = el("span", { class: "tool-name" });
    this.subject = el("span", { class: "subject" });
    this.status = el("span", { class: "status-text" });
    this.task = el("p", { class: "task" });
    this.answer = el("p", { class: "answer", hidden: true });
    this.conversation = new ConversationView(block.subagentId, context);
    this.body = el("div", { class: "fold-body" }, this.task, this.conversation.element, this.answer);
    this.element = disclosure({
      className: "subagent",
      header: [this.name, this.subject, this.status],
      body: this.body,
      isOpen: block.status === "pending" || block.status === "running",
      onOpen: () => this.opened(),
    });
  }

  /** After a reload the blocks of an old subagent are still to be fetched. */
  opened() {
    const { hasMore, conversations } = this.state;
    const { conversationId } = this.conversation;
    this.conversation.update(this.state);
    if (!conversations.has(conversationId) || hasMore.get(conversationId)) this.conversation.loadOlder();
  }

  update(state) {
    const block = state.blocks.get(this.id);
    if (block !== this.block) this.render(block);
    const steps = blocksOf(state, block.subagentId).filter(({ type }) => !UNCOUNTED.has(type)).length;
    const facts = [
      TOOL_STATUS[block.status] ?? block.status,
      steps && plural(steps, "step"),
      time(block.durationMs),
    ];
    setText(this.status, facts.filter(Boolean).join(" · "));
    setText(this.answer, block.output ?? "");
    show(this.task, steps === 0); // its conversation begins with the same
    show(this.answer, Boolean(block.output) && steps === 0); // and ends with the same
    if (!this.body.hidden) this.conversation.update(state);
    Object.assign(this, { block, state });
  }

  render(block) {
    this.element.dataset.status = block.status;
    setText(this.name, block.name ?? "Subagent");
    setText(this.subject, block.input.description ?? "");
    setText(
      this.task,
      typeof block.input.prompt === "string" ? block.input.prompt : JSON.stringify(block.input, null, 2),
    );
  }
}

const UNCOUNTED = new Set(["tool_result", "user_message"]);

function time(ms) {
  return ms == null ? "" : duration(ms);
}

const VIEWS = {
  user_message: UserMessageView,
  assistant_text: AssistantTextView,
  thinking: ThinkingView,
  tool_use: ToolCard,
  subagent: SubagentCard,
  system: SystemView,
  error: ErrorView,
};
