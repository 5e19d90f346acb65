// The Socket.IO connection of the page: one socket, the list of sessions, at most one joined session.
// Turns lost and refused connections into a plain status; what a session's events mean is `feed.js`.

import { Feed } from "./feed.js";
import { io } from "./vendor/socket.io.esm.min.js";

const ACK_TIMEOUT_MS = 15_000;
const HIDDEN_FLUSH_MS = 250;
const NO_ANSWER = { code: "no_answer", detail: "The server does not answer.", retryable: true };

export class Connection {
  /**
   * @param {object} options
   * @param {string|null} options.token
   * @param {(status: {phase: "connecting"|"connected"|"lost"|"refused", detail?: string}) => void} options.onStatus
   * @param {(change: {type: string, [field: string]: any}) => void} options.onSessions
   *   `session_list` with the first page, then `session_created|changed|deleted` as they come
   */
  constructor({ token, onStatus, onSessions }) {
    this.onStatus = onStatus;
    this.onSessions = onSessions;
    this.feed = null;
    const path = new URL("socket.io", location.href).pathname;
    this.socket = io({
      path,
      auth: token ? { token } : {},
      reconnectionDelay: 300,
      reconnectionDelayMax: 5000,
    });
    this.onStatus({ phase: "connecting" });
    this.socket.on("connect", () => this.connected());
    this.socket.on("disconnect", (reason) => this.disconnected(reason));
    this.socket.on("connect_error", (error) => this.failed(error));
    this.socket.onAny((type, payload) => this.heard(type, payload));
  }

  /** Join a session and keep its state coming until another one is opened or `leave` is called. */
  open(sessionId, { onState, onProblem }) {
    this.leave();
    this.feed = new Feed({
      sessionId,
      join: (payload) => this.request("session:join", payload),
      schedule: nextFrame,
      wait: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
      onState,
      onProblem,
    });
    if (this.socket.connected) this.feed.join();
    return this.feed;
  }

  leave() {
    if (!this.feed) return;
    this.feed.close();
    if (this.socket.connected) this.request("session:leave", { sessionId: this.feed.sessionId });
    this.feed = null;
  }

  /** Send a command; resolves to its ack, also when none comes in time. */
  async request(event, payload) {
    if (!this.socket.connected) return { ok: false, error: NO_ANSWER };
    try {
      return await this.socket.timeout(ACK_TIMEOUT_MS).emitWithAck(event, payload);
    } catch {
      return { ok: false, error: NO_ANSWER };
    }
  }

  close() {
    this.feed?.close();
    this.socket.disconnect();
  }

  async connected() {
    this.onStatus({ phase: "connected" });
    this.feed?.join();
    const page = await this.request("sessions:watch", { limit: 50 });
    if (page.ok) this.onSessions({ type: "session_list", ...page });
  }

  disconnected(reason) {
    this.feed?.pause();
    if (reason === "io client disconnect") return;
    this.onStatus({ phase: "lost" });
    // A server that closed on purpose (a slow consumer, a restart) is not tried again by the library.
    if (reason === "io server disconnect") setTimeout(() => this.socket.connect(), 500);
  }

  failed(error) {
    if (this.socket.active) this.onStatus({ phase: "lost" });
    else this.onStatus({ phase: "refused", detail: error.message });
  }

  heard(type, payload) {
    if (!payload || typeof payload !== "object") return;
    if (type.startsWith("session_") && payload.seq === undefined) this.onSessions({ ...payload, type });
    else if (payload.sessionId === this.feed?.sessionId) this.feed.receive(payload);
  }
}

/** With the next frame; frames stand still in a hidden page, and events must not pile up there. */
function nextFrame(task) {
  let isDone = false;
  const once = () => {
    if (isDone) return;
    isDone = true;
    task();
  };
  requestAnimationFrame(once);
  setTimeout(once, HIDDEN_FLUSH_MS);
}
