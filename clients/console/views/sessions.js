// The list of sessions at the side: newest first, kept in step with what the server says, with the
// state of the connection below it. `applySessions` is the pure part.

import { attribute, arrange, el, setText, show } from "./dom.js";
import { PHASES, ago, sessionTitle } from "./words.js";

const AGO_EVERY_MS = 30_000;

/** What is said of the connection; absent while all is well. */
const CONNECTION = {
  connecting: "Connecting …",
  connected: "Connected",
  lost: "Connection lost, trying again …",
  refused: "The server refused the connection.",
};

/** Fold what the server says about its sessions into a map of them. */
export function applySessions(sessions, change) {
  if (change.type === "session_list")
    return new Map(change.sessions.map((session) => [session.sessionId, session]));
  const next = new Map(sessions);
  if (change.type === "session_deleted") next.delete(change.sessionId ?? change.session?.sessionId);
  else if (change.session) next.set(change.session.sessionId, change.session);
  return next;
}

export class SessionsView {
  /** @param {{loadMore: (cursor: string) => Promise<void>}} options */
  constructor({ loadMore }) {
    this.items = new Map();
    this.list = el("nav", { class: "session-list", "aria-label": "Sessions" });
    this.empty = el("p", { class: "quiet", text: "No sessions yet.", hidden: true });
    this.more = el("button", {
      class: "more",
      type: "button",
      text: "Older sessions",
      hidden: true,
      on: { click: () => loadMore(this.cursor) },
    });
    this.connection = el("p", { class: "connection", role: "status" });
    this.element = el(
      "aside",
      { class: "sidebar", id: "sidebar" },
      el(
        "header",
        {},
        el("a", { class: "brand", href: "#/", text: "agent-runtime" }),
        el("a", { class: "button", href: "#/", text: "New session" }),
      ),
      el("div", { class: "session-scroll" }, this.list, this.empty, this.more),
      this.connection,
    );
    setInterval(() => this.renderAgo(), AGO_EVERY_MS);
  }

  update({ sessions, cursor, currentId }) {
    this.cursor = cursor;
    const ordered = [...sessions.values()].sort((a, b) => b.createdAt.localeCompare(a.createdAt));
    for (const id of this.items.keys()) if (!sessions.has(id)) this.items.delete(id);
    for (const session of ordered) this.item(session, session.sessionId === currentId);
    arrange(
      this.list,
      ordered.map((session) => this.items.get(session.sessionId).element),
    );
    show(this.empty, ordered.length === 0);
    show(this.more, Boolean(cursor));
  }

  showConnection(phase) {
    this.connection.dataset.phase = phase;
    setText(this.connection, CONNECTION[phase]);
  }

  item(session, isCurrent) {
    const known = this.items.get(session.sessionId) ?? this.makeItem(session.sessionId);
    const { phase } = session.runtime;
    setText(known.name, sessionTitle(session));
    setText(known.phase, PHASES[phase]?.label ?? phase);
    known.phase.dataset.phase = phase;
    attribute(known.element, "aria-current", isCurrent ? "page" : null);
    known.lastActivity = session.lastActivity;
    setText(known.ago, ago(known.lastActivity, Date.now()));
  }

  makeItem(sessionId) {
    const name = el("span", { class: "name" });
    const phase = el("span", { class: "phase" });
    const when = el("span", { class: "ago" });
    const element = el(
      "a",
      { class: "session-item", href: `#/s/${encodeURIComponent(sessionId)}` },
      name,
      el("span", { class: "facts" }, phase, when),
    );
    const made = { element, name, phase, ago: when };
    this.items.set(sessionId, made);
    return made;
  }

  renderAgo() {
    for (const item of this.items.values()) setText(item.ago, ago(item.lastActivity, Date.now()));
  }
}
