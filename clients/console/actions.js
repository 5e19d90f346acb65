// What a person can do to one session, as promises that fail with a `Problem`. Stands between the
// views, which know no transport, and the connection and REST calls, which know no session page.

import { Problem, newId } from "./rest.js";

const TITLE_LENGTH = 60;

export class SessionActions {
  constructor(sessionId, { api, connection, feed, showMenu, leave }) {
    Object.assign(this, { sessionId, api, connection, feed, showMenu, leave });
    this.unanswered = null;
  }

  /**
   * Send a message; resolves to it with its id once the server has it for good. The same text after a
   * failure keeps its id, so that it can never be said twice.
   */
  async send(content) {
    if (this.unanswered?.content !== content) this.unanswered = { content, messageId: newId() };
    const message = this.unanswered;
    await this.command("session:send", message);
    this.unanswered = null;
    if (!this.feed.state?.session.name) this.rename(titleOf(content)).catch(() => {}); // only a nicety
    return message;
  }

  /** A message of which it is not known whether it arrived; sending its text again uses its id. */
  keepUnanswered({ content, messageId }) {
    this.unanswered = { content, messageId };
  }

  async interrupt() {
    await this.command("session:interrupt", {});
  }

  async rename(name) {
    const session = await this.api.rename(this.sessionId, name);
    this.change((state) => ({ ...state, session: { ...state.session, name: session.name } }));
  }

  async stop() {
    await this.api.stopSandbox(this.sessionId);
  }

  /** Show a port of the sandbox in a tab of its own, which learns nothing of this one. */
  async openPort(port) {
    const { url } = await this.api.openPort(this.sessionId, port);
    window.open(new URL(url, location.href), "_blank", "noopener,noreferrer");
  }

  async remove() {
    await this.api.deleteSession(this.sessionId);
    this.leave();
  }

  file(path) {
    return this.api.file(this.sessionId, path);
  }

  older(conversationId, before) {
    return this.api.blocks(this.sessionId, { conversationId, before });
  }

  change(change) {
    this.feed.update(change);
  }

  async command(event, payload) {
    const answer = await this.connection.request(event, { sessionId: this.sessionId, ...payload });
    if (!answer.ok) throw new Problem(answer.error ?? {});
    return answer;
  }
}

/** The beginning of a first message as a session's name, cut at a word. */
export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ").trim();
  if (line.length <= TITLE_LENGTH) return line;
  return `${line.slice(0, TITLE_LENGTH).replace(/\s\S*$/, "")}…`;
}
