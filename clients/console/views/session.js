// One open session: its heading and status, the conversation, the composer and the files. It shows
// states that a feed gives and turns what a person does into the calls that it was given.

import { blocksOf, withOlder } from "../reducer.js";
import { Composer } from "./composer.js";
import { ConversationView } from "./conversation.js";
import { button, el, setText, show } from "./dom.js";
import { FilesPanel } from "./files.js";
import { confirmDialog, portDialog, renameDialog } from "./dialogs.js";
import { PHASES, count, money, sessionTitle, tokens } from "./words.js";

const NEAR_BOTTOM_PX = 80;
const QUIET = new Set(["dormant", "ready", "failed"]);

export class SessionView {
  /**
   * @param {string} sessionId
   * @param {import("../actions.js").SessionActions} actions
   */
  constructor(sessionId, actions) {
    this.sessionId = sessionId;
    this.actions = actions;
    this.state = null;
    this.isConnected = false;
    this.isStuck = true;
    this.files = new FilesPanel({
      fetchFile: (path) => actions.file(path),
      onClose: () => this.showFiles(false),
    });
    this.outbox = new Outbox();
    this.composer = new Composer({ send: (text) => this.send(text), interrupt: () => actions.interrupt() });
    this.conversation = new ConversationView("main", {
      openFile: (path) => this.openFile(path),
      loadOlder: (conversationId) => this.loadOlder(conversationId),
    });
    const column = el("div", { class: "column" }, this.heading(), this.reading(), this.composer.element);
    this.element = el("div", { class: "session" }, column, this.files.element);
    this.showFiles(matchMedia("(min-width: 1100px)").matches);
    this.refresh();
  }

  update(state) {
    const hadBlocks = Boolean(this.state);
    this.state = state;
    this.conversation.update(state);
    this.outbox.update(state);
    this.files.update(state);
    this.refresh();
    if (this.isStuck || !hadBlocks) this.scrollToEnd();
  }

  connection(isConnected) {
    this.isConnected = isConnected;
    this.refresh();
  }

  /** The session cannot be shown, for good. */
  fail(problem) {
    this.column.replaceChildren(
      el(
        "div",
        { class: "blank" },
        el("h2", { text: "This session cannot be opened" }),
        el("p", { text: problem?.detail ?? "There is no such session." }),
        el("a", { class: "button", href: "#/", text: "Start a new one" }),
      ),
    );
    for (const element of [this.composer.element, this.files.element, this.buttons]) show(element, false);
  }

  /** Esc: close the open file, or else interrupt. */
  escape() {
    return this.files.closeFile() || this.composer.interruptTurn();
  }

  focus() {
    this.composer.focus();
  }

  async send(text) {
    this.sent(await this.actions.send(text));
  }

  /** What was said when the session was made. */
  begin({ content, messageId, problem }) {
    if (!problem) return this.sent({ content, messageId });
    this.actions.keepUnanswered({ content, messageId });
    this.composer.giveBack(content, problem.detail ?? "no reason was given");
  }

  /** A message that the server has and that no event has told of yet. */
  sent(message) {
    this.outbox.add(message, this.state);
    this.refresh();
    this.scrollToEnd();
  }

  heading() {
    this.title = button("title", "", () => this.rename(), "Rename");
    this.status = el("p", { class: "status", role: "status" });
    this.filesButton = button("plain", "Files", () => this.showFiles(this.files.element.hidden));
    const stopHint = "Ends the sandbox and keeps the session";
    this.stopButton = button("plain", "Stop sandbox", () => this.act(this.actions.stop()), stopHint);
    const portHint = "Shows what a server in the sandbox serves";
    this.portButton = button("plain", "Open port", () => this.openPort(), portHint);
    const remove = button("plain danger", "Delete", () => this.remove());
    const buttons = [this.filesButton, this.portButton, this.stopButton, remove];
    this.buttons = el("div", { class: "actions" }, ...buttons);
    const menu = button("plain menu", "Sessions", () => this.actions.showMenu());
    const name = el("div", { class: "session-name" }, el("h1", {}, this.title), this.status);
    return el("header", { class: "session-head" }, menu, name, this.buttons);
  }

  reading() {
    this.loading = el("p", { class: "quiet centred", text: "Opening the session …" });
    this.blank = el(
      "div",
      { class: "blank", hidden: true },
      el("h2", { text: "Nothing said yet" }),
      el("p", { text: "Write below what the agent is to do. Its sandbox starts with the first message." }),
    );
    this.working = el("p", { class: "working", text: "Working" });
    const said = [this.conversation.element, this.outbox.element];
    this.column = el("div", { class: "reading" }, this.loading, this.blank, ...said, this.working);
    this.scroller = el("div", { class: "scroller", tabindex: "-1" }, this.column);
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.isStuck && this.scrollToEnd()).observe(this.scroller);
    this.jump = button("jump", "Jump to the newest", () => this.scrollToEnd());
    show(this.jump, false);
    return el("main", { class: "middle" }, this.scroller, this.jump);
  }

  refresh() {
    const { state } = this;
    const session = state?.session;
    show(this.loading, !state);
    const isQuiet = QUIET.has(session?.runtime.phase) && this.outbox.size === 0 && !state.queue.length;
    show(this.blank, isQuiet && !state.conversations.get("main").length);
    this.working.classList.toggle("is-on", isWorking(state));
    setText(this.title, session ? sessionTitle(session) : " ");
    const sandbox = session?.runtime.sandbox;
    this.stopButton.disabled = !this.isConnected || !sandbox || session.runtime.phase === "stopping";
    this.portButton.disabled = this.stopButton.disabled;
    if (session) this.showStatus(session.runtime, state.totals);
    this.composer.update({ state, isConnected: this.isConnected });
  }

  showStatus(runtime, totals) {
    const phase = PHASES[runtime.phase] ?? { label: runtime.phase };
    const facts = [
      tokens(totals.usage) != null && [
        `${count(tokens(totals.usage))} tokens`,
        "In, out and cached, as the agent reported them",
      ],
      totals.costUsd != null && [money(totals.costUsd), "Cost of the session so far"],
      totals.model && [totals.model, "Model"],
      runtime.sandbox && [sandboxLabel(runtime.sandbox), "The sandbox's provider and how it is isolated"],
    ].filter(Boolean);
    const key = [runtime.phase, ...facts].join("|");
    if (key === this.statusKey) return;
    this.statusKey = key;
    this.status.replaceChildren(
      el("span", {
        class: "phase",
        data: { phase: runtime.phase },
        title: phase.hint ?? "",
        text: phase.label,
      }),
      ...facts.map(([text, title]) => el("span", { class: "fact", title, text })),
    );
  }

  showFiles(isShown) {
    show(this.files.element, isShown);
    this.filesButton.setAttribute("aria-pressed", String(isShown));
  }

  openFile(path) {
    this.showFiles(true);
    this.files.openFile(path);
  }

  /** Fetch the page before what is known, and keep what is being read where it stands. */
  async loadOlder(conversationId) {
    const known = this.state.conversations.get(conversationId) ?? [];
    const page = await this.actions.older(conversationId, known[0]);
    const fromEnd = this.scroller.scrollHeight - this.scroller.scrollTop;
    this.actions.change((state) => withOlder(state, conversationId, page));
    if (conversationId === "main") this.scroller.scrollTop = this.scroller.scrollHeight - fromEnd;
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isStuck = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
    show(this.jump, !this.isStuck);
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    show(this.jump, false);
  }

  async rename() {
    if (!this.state) return;
    const name = await renameDialog(this.state.session.name ?? "");
    if (name != null) await this.act(this.actions.rename(name));
  }

  async openPort() {
    const port = await portDialog();
    if (port != null) await this.act(this.actions.openPort(port));
  }

  async remove() {
    const isSure = await confirmDialog({
      title: `Delete “${this.state ? sessionTitle(this.state.session) : "this session"}”?`,
      text: "Its conversation, its files and its sandbox are removed for ever.",
      action: "Delete for ever",
    });
    if (isSure) await this.act(this.actions.remove());
  }

  /** Wait for an action and say so when it fails. */
  async act(action) {
    try {
      await action;
    } catch (problem) {
      this.composer.complain(problem.message);
    }
  }
}

/** Sent messages from their acknowledgement until they are seen as a block or in the queue. */
class Outbox {
  constructor() {
    this.waiting = new Map();
    this.element = el("div", { class: "blocks outbox" });
  }

  get size() {
    return this.waiting.size;
  }

  add({ messageId, content }, state) {
    const element = el("article", { class: "user-message", "aria-label": "You" }, el("p", { text: content }));
    this.waiting.set(messageId, element);
    this.element.append(element);
    if (state) this.update(state);
  }

  update(state) {
    if (this.size === 0) return;
    const said = new Set(blocksOf(state, "main").map((block) => block.messageId));
    for (const { messageId } of state.queue) said.add(messageId);
    for (const [messageId, element] of this.waiting) {
      if (!said.has(messageId)) continue;
      element.remove();
      this.waiting.delete(messageId);
    }
  }
}

/** Whether the agent is at work and nothing on the page moves. */
function isWorking(state) {
  if (state?.session.runtime.phase !== "running") return false;
  const last = blocksOf(state, "main").at(-1);
  return !last || (last.state !== "streaming" && !["pending", "running"].includes(last.status));
}

function sandboxLabel({ provider, isolation, status }) {
  const name = `${provider} sandbox, ${isolation === "none" ? "not isolated" : isolation}`;
  return status === "ready" ? name : `${name} (${status})`;
}
