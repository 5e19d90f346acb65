// The bottom of a session: messages that wait, what the sandbox is doing, the box to write in, and why
// it cannot be used when it cannot. Sending itself is given from outside.

import { blocksOf } from "../reducer.js";
import { el, setText, show } from "./dom.js";

const HINT = "Enter sends, Shift+Enter makes a new line.";
const BUSY_HINT = "Enter queues it for the next turn, Esc interrupts this one.";
const BUSY = new Set(["running", "waiting"]);

export class Composer {
  /**
   * @param {object} options
   * @param {(text: string) => Promise<void>} options.send  rejects with an error to show
   * @param {() => Promise<void>} options.interrupt
   */
  constructor({ send, interrupt }) {
    this.send = send;
    this.interrupt = interrupt;
    this.progress = el("p", { class: "progress", role: "status", hidden: true });
    this.queue = el("ul", { class: "queue", "aria-label": "Waiting messages", hidden: true });
    this.trouble = el("p", { class: "trouble", role: "alert", hidden: true });
    this.box = el("textarea", {
      id: "message",
      rows: "1",
      "aria-label": "Message to the agent",
      on: { keydown: (event) => this.pressed(event), input: () => this.typed() },
    });
    this.stopButton = el("button", {
      class: "interrupt",
      type: "button",
      text: "Interrupt",
      title: "Interrupt (Esc)",
      hidden: true,
      on: { click: () => this.interruptTurn() },
    });
    this.sendButton = el("button", { class: "primary", type: "submit", text: "Send" });
    this.hint = el("p", { class: "hint" });
    const form = el(
      "form",
      { class: "box" },
      this.box,
      el("div", { class: "actions" }, this.stopButton, this.sendButton),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.element = el(
      "footer",
      { class: "composer" },
      this.progress,
      this.queue,
      this.trouble,
      form,
      this.hint,
    );
    this.isSending = false;
  }

  /** @param {{state: object|null, isConnected: boolean}} page */
  update({ state, isConnected }) {
    this.runtime = state?.session.runtime;
    this.isConnected = isConnected;
    const isBusy = BUSY.has(this.runtime?.phase);
    show(this.stopButton, isBusy);
    if (!isBusy) this.isInterrupting = false;
    this.stopButton.disabled = !isConnected || this.isInterrupting;
    setText(this.stopButton, this.isInterrupting ? "Interrupting" : "Interrupt");
    this.box.placeholder = isBusy ? "Say something for the next turn" : "Message the agent";
    this.showProgress();
    this.showQueue(state?.queue ?? []);
    this.showTurn(state);
    this.enable();
  }

  focus() {
    this.box.focus();
  }

  /** Interrupt the running turn; returns whether there was one. */
  interruptTurn() {
    if (this.stopButton.hidden || this.stopButton.disabled) return false;
    this.isInterrupting = true;
    this.stopButton.disabled = true;
    setText(this.stopButton, "Interrupting");
    this.interrupt().catch((problem) => {
      this.isInterrupting = false;
      this.complain(problem.message);
    });
    return true;
  }

  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  async submit() {
    const text = this.box.value;
    if (this.sendButton.disabled || this.isSending) return;
    this.isSending = true;
    this.enable();
    try {
      await this.send(text);
      if (this.box.value === text) this.box.value = "";
      show(this.trouble, false);
    } catch (problem) {
      this.complain(`Not sent: ${problem.message}`);
    }
    this.isSending = false;
    this.typed();
    this.focus();
  }

  /** A message that could not be sent from elsewhere comes back into the box. */
  giveBack(content, reason) {
    this.box.value = content;
    this.typed();
    this.complain(`Not sent: ${reason}`);
  }

  complain(sentence) {
    setText(this.trouble, sentence);
    show(this.trouble, true);
  }

  typed() {
    this.box.style.height = "auto";
    this.box.style.height = `${this.box.scrollHeight + 2}px`;
    this.enable();
  }

  enable() {
    const reason = this.whyNot();
    this.box.readOnly = this.isSending;
    this.sendButton.disabled = Boolean(reason) || this.isSending || this.box.value.trim() === "";
    setText(this.sendButton, this.isSending ? "Sending" : BUSY.has(this.runtime?.phase) ? "Queue" : "Send");
    setText(this.hint, reason ?? (BUSY.has(this.runtime.phase) ? BUSY_HINT : HINT));
  }

  whyNot() {
    if (!this.isConnected) return "Not connected. What you write here stays until the connection is back.";
    if (!this.runtime) return "Opening the session.";
    if (this.runtime.phase === "stopping")
      return "The sandbox is being stopped. Sending works again in a moment.";
    return null;
  }

  showProgress() {
    const { phase, statusMessage } = this.runtime ?? {};
    const isWaking = phase === "waking" || phase === "stopping";
    show(this.progress, isWaking);
    if (isWaking)
      setText(
        this.progress,
        statusMessage ?? (phase === "waking" ? "Starting the sandbox" : "Stopping the sandbox"),
      );
  }

  showQueue(queue) {
    if (queue === this.shownQueue) return;
    this.shownQueue = queue;
    show(this.queue, queue.length > 0);
    this.queue.replaceChildren(
      ...queue.map(({ preview }) =>
        el(
          "li",
          {},
          el("span", { class: "badge", text: "Waiting" }),
          el("span", { class: "preview", text: preview }),
        ),
      ),
    );
  }

  /** Why the last turn failed, unless an error block says so already. */
  showTurn(state) {
    const turn = state?.turn;
    if (turn === this.turn) return;
    this.turn = turn;
    const isTold = (block) => block.type === "error" && block.turnId === turn.turnId;
    if (turn?.status === "failed" && !blocksOf(state, "main").some(isTold))
      this.complain(`The turn failed: ${turn.error?.message ?? turn.stopReason ?? "no reason was given"}`);
    else show(this.trouble, false);
  }
}
