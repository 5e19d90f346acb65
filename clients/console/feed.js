// Keeps the state of one joined session supplied: joins, gathers live events for a frame, folds them,
// and joins again from its position after a lost connection or at a hole. Knows neither Socket.IO nor
// the DOM: `join`, `schedule` and `wait` are given, which is how it is tested.

import { fold, positionOf, reduce } from "./reducer.js";

const RETRY_MS = [0, 250, 1000, 3000];

export class Feed {
  /**
   * @param {object} options
   * @param {string} options.sessionId
   * @param {(payload: object) => Promise<object>} options.join  the ack of `session:join`, ok or not
   * @param {(task: () => void) => void} options.schedule        runs a task with the next frame
   * @param {(ms: number) => Promise<void>} options.wait
   * @param {(state: object) => void} options.onState
   * @param {(problem: object) => void} options.onProblem        the join was refused for good
   */
  constructor({ sessionId, join, schedule, wait, onState, onProblem }) {
    Object.assign(this, { sessionId, schedule, wait, onState, onProblem });
    this.sendJoin = join;
    this.state = null;
    this.waiting = [];
    this.isScheduled = false;
    this.isJoined = false;
    this.isClosed = false;
    this.attempt = 0;
    this.failures = 0;
  }

  /** Join, from the position that was reached or from nothing. A newer call overtakes an older one. */
  async join() {
    if (this.isClosed) return;
    const attempt = ++this.attempt;
    this.isJoined = false;
    const position = this.state ? positionOf(this.state) : undefined;
    const answer = await this.sendJoin({ sessionId: this.sessionId, ...(position && { position }) });
    if (attempt !== this.attempt) return;
    if (!answer.ok) return this.refused(answer.error);
    this.isJoined = true;
    this.state = reduce(this.state, answer);
    this.onState(this.state);
    this.flush();
  }

  /** A live event of this session. While a join is under way it waits; the fold skips what is old. */
  receive(envelope) {
    this.waiting.push(envelope);
    if (this.isScheduled || !this.isJoined) return;
    this.isScheduled = true;
    this.schedule(() => {
      this.isScheduled = false;
      this.flush();
    });
  }

  /** Change the state by something that is not an event (an older page). */
  update(change) {
    if (this.isClosed || !this.state) return;
    this.state = change(this.state);
    this.onState(this.state);
  }

  /** The connection is gone: what is buffered may have holes, and the next join brings it anyway. */
  pause() {
    this.attempt++;
    this.isJoined = false;
    this.waiting = [];
  }

  /** Nothing that arrives later changes anything. */
  close() {
    this.isClosed = true;
    this.pause();
  }

  flush() {
    if (!this.isJoined || this.waiting.length === 0) return;
    const before = this.state;
    this.state = fold(before, this.waiting);
    this.waiting = [];
    this.onState(this.state);
    if (this.state.hole) this.rejoin();
    else this.failures = 0;
  }

  async rejoin() {
    const attempt = this.attempt;
    this.isJoined = false;
    await this.wait(RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)]);
    if (attempt === this.attempt) await this.join();
  }

  async refused(error) {
    if (error?.retryable || error?.code === "no_answer") return this.rejoin();
    this.onProblem(error);
  }
}
