// The composition of the console: token, connection, address and the views that they bring about.

import { SessionActions, titleOf } from "./actions.js";
import { Api, newId } from "./rest.js";
import { Connection } from "./connection.js";
import { forgetToken, keepToken, takeToken } from "./token.js";
import { el } from "./views/dom.js";
import { SessionView } from "./views/session.js";
import { SessionsView, applySessions } from "./views/sessions.js";
import { signInView } from "./views/signin.js";
import { StartView } from "./views/start.js";

class Console {
  constructor(root) {
    this.root = root;
    this.token = takeToken();
    this.api = new Api(() => this.token);
    this.sessions = new Map();
    this.cursor = null;
    this.isConnected = false;
    this.first = null;
    addEventListener("hashchange", () => this.addressChanged());
    addEventListener("keydown", (event) => this.pressed(event));
  }

  start() {
    this.list = new SessionsView({ loadMore: (cursor) => this.loadMore(cursor) });
    this.place = el("div", { class: "place" });
    this.curtain = el("button", {
      class: "curtain",
      type: "button",
      "aria-label": "Close the list of sessions",
      on: { click: () => this.showMenu(false) },
    });
    this.frame = el("div", { class: "frame" }, this.list.element, this.curtain, this.place);
    this.root.replaceChildren(this.frame);
    this.connection = new Connection({
      token: this.token,
      onStatus: (status) => this.connectionChanged(status),
      onSessions: (change) => this.sessionsChanged(change),
    });
    this.route();
  }

  connectionChanged({ phase, detail }) {
    this.isConnected = phase === "connected";
    if (phase === "refused") return this.refused(detail);
    this.list.showConnection(phase);
    this.session?.connection(this.isConnected);
  }

  /** The handshake was refused. Ask for a token; whatever is open comes back after it. */
  refused() {
    const wasRefused = Boolean(this.token);
    this.connection?.close();
    forgetToken();
    const onToken = (token) => {
      keepToken(token);
      this.token = token;
      this.start();
    };
    this.root.replaceChildren(signInView({ wasRefused, onToken }));
    this.root.querySelector("#token").focus();
  }

  sessionsChanged(change) {
    this.sessions = applySessions(this.sessions, change);
    if (change.type === "session_list") this.cursor = change.nextCursor ?? null;
    if (change.type === "session_deleted" && change.sessionId === this.session?.sessionId) {
      this.session.fail({ detail: "It was deleted." });
    }
    this.showSessions();
  }

  showSessions() {
    this.list.update({ sessions: this.sessions, cursor: this.cursor, currentId: this.session?.sessionId });
  }

  async loadMore(cursor) {
    const page = await this.api.sessions(cursor);
    this.sessions = new Map([
      ...this.sessions,
      ...page.sessions.map((session) => [session.sessionId, session]),
    ]);
    this.cursor = page.nextCursor ?? null;
    this.showSessions();
  }

  addressChanged() {
    const before = this.token;
    this.token = takeToken();
    if (this.token === before && this.frame?.isConnected) return this.route();
    this.connection?.close();
    this.start();
  }

  route() {
    const [, id] = location.hash.match(/^#\/s\/([^/?]+)/) ?? [];
    this.showMenu(false);
    if (id) this.openSession(decodeURIComponent(id));
    else this.openStart();
    this.showSessions();
  }

  openStart() {
    this.connection.leave();
    this.session = null;
    document.title = "agent-runtime";
    const view = new StartView({
      loadProfiles: () => this.api.profiles(),
      create: (request) => this.createSession(request),
      showMenu: () => this.showMenu(true),
    });
    this.place.replaceChildren(view.element);
    view.focus();
  }

  openSession(sessionId) {
    const feed = this.connection.open(sessionId, {
      onState: (state) => this.stateChanged(sessionId, state),
      onProblem: (problem) => this.session?.fail(problem),
    });
    const actions = new SessionActions(sessionId, {
      api: this.api,
      connection: this.connection,
      feed,
      showMenu: () => this.showMenu(true),
      leave: () => this.left(sessionId),
    });
    this.session = new SessionView(sessionId, actions);
    this.place.replaceChildren(this.session.element);
    this.session.connection(this.isConnected);
    if (this.first?.sessionId === sessionId) this.session.begin(this.first);
    this.first = null;
    this.session.focus();
  }

  stateChanged(sessionId, state) {
    if (this.session?.sessionId !== sessionId) return;
    this.session.update(state);
    document.title = `${state.session.name ?? "Session"} · agent-runtime`;
  }

  async createSession({ profileId, name, message }) {
    const hasMessage = message.trim() !== "";
    const title = name || (hasMessage ? titleOf(message) : "");
    const session = await this.api.createSession({
      agentProfileRef: profileId,
      ...(title && { name: title }),
    });
    if (hasMessage) {
      const said = { sessionId: session.sessionId, content: message, messageId: newId() };
      const answer = await this.connection.request("session:send", said);
      this.first = { ...said, problem: answer.ok ? null : answer.error };
    }
    this.sessionsChanged({ type: "session_created", session });
    location.hash = `#/s/${encodeURIComponent(session.sessionId)}`;
  }

  left(sessionId) {
    location.hash = "#/";
    this.sessions.delete(sessionId);
    this.showSessions();
  }

  showMenu(isShown) {
    this.frame.classList.toggle("is-menu-open", isShown);
    if (isShown) this.list.element.querySelector("a")?.focus();
  }

  pressed(event) {
    if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (this.frame?.classList.contains("is-menu-open")) this.showMenu(false);
    else if (this.session?.escape()) event.preventDefault();
  }
}

new Console(document.getElementById("app")).start();
