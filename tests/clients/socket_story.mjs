// A story told with the official Socket.IO client: node socket_story.mjs <base url> <token>.
// It joins, sends, leaves in the middle of a text, comes back by its position, and misbehaves. The last
// line that it prints is its result in JSON; it exits with 1 and a sentence where something is wrong.

import assert from "node:assert/strict";
import { io } from "socket.io-client";

import { positionOf, reduce } from "../../clients/console/reducer.js";

const [base, token] = process.argv.slice(2);
const ACK_MS = 10_000;
const TURN_MS = 40_000;

/** One connection that folds what it hears of one session, and keeps the order of what came. */
class Viewer {
  constructor(sessionId) {
    this.sessionId = sessionId;
    this.state = null;
    this.heard = [];
    this.early = 0;
    this.socket = io(base, { auth: { token }, autoConnect: false, forceNew: true, reconnection: false });
    this.socket.onAny((type, envelope) => this.hear(type, envelope));
  }

  async connect() {
    this.isJoined = false;
    const connected = new Promise((resolve, reject) => {
      this.socket.once("connect", resolve);
      this.socket.once("connect_error", reject);
    });
    this.socket.connect();
    await within(ACK_MS, connected, "a connection");
    const position = this.state ? positionOf(this.state) : undefined;
    const answer = await this.ask("session:join", {
      sessionId: this.sessionId,
      ...(position && { position }),
    });
    assert.equal(answer.ok, true, JSON.stringify(answer));
    this.state = reduce(this.state, answer);
    this.isJoined = true;
    return answer;
  }

  hear(type, envelope) {
    if (envelope.sessionId !== this.sessionId || envelope.seq === undefined) return;
    if (!this.isJoined) this.early++;
    assert.equal(envelope.type, type);
    this.heard.push(envelope);
    this.state = reduce(this.state, envelope);
    assert.equal(this.state.hole, false, `an event is missing before ${envelope.seq}`);
    this.onEvent?.(envelope);
  }

  ask(event, payload) {
    return this.socket.timeout(ACK_MS).emitWithAck(event, payload);
  }

  send(content, messageId) {
    return this.ask("session:send", { sessionId: this.sessionId, content, messageId });
  }
}

await aWrongTokenIsRefused();
const sessionId = await create();
const stayed = new Viewer(sessionId);
const left = new Viewer(sessionId);
const late = new Viewer(sessionId);

const first = await stayed.connect();
assert.equal(first.resume, "snapshot");
await left.connect();
const turnId = await aMessageStartsOneTurnHoweverOftenItIsSent();
const comeback = await leaveInTheMiddleOfATextAndComeBack();
await late.connect();
await rest(turnId);
theSameWasSeenByAll();
await theSequenceHasNoHoles();
await nonsenseHarmsNobody();
await aHugeMessageIsATypedError();
await aTurnIsInterrupted();
await whoLeavesHearsNothing();
for (const viewer of [stayed, left, late]) viewer.socket.disconnect();
console.log(
  JSON.stringify({
    events: stayed.heard.length,
    blocks: stayed.state.blocks.size,
    replayed: comeback,
    turnId,
  }),
);
process.exit(0);

async function aWrongTokenIsRefused() {
  for (const auth of [{ token: "wrong" }, {}, { token: 7 }]) {
    const socket = io(base, { auth, forceNew: true, reconnection: false });
    const refusal = new Promise((resolve, reject) => {
      socket.once("connect_error", resolve);
      socket.once("connect", () => reject(new Error("a wrong token was accepted")));
    });
    const error = await within(ACK_MS, refusal, "a refusal");
    assert.equal(error.data?.code, "unauthenticated", error.message);
    socket.disconnect();
  }
}

async function create() {
  const answer = await fetch(`${base}/api/sessions`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ agentProfileRef: "default", name: "Socket story" }),
  });
  assert.equal(answer.status, 201, await answer.clone().text());
  return (await answer.json()).sessionId;
}

async function aMessageStartsOneTurnHoweverOftenItIsSent() {
  const [one, two] = await Promise.all([
    stayed.send("[[script:demo]]", "m-1"),
    left.send("[[script:demo]]", "m-1"),
  ]);
  const again = await stayed.send("[[script:demo]]", "m-1");
  assert.deepEqual([one.ok, two.ok, again.ok], [true, true, true]);
  assert.equal(new Set([one.turnId, two.turnId, again.turnId]).size, 1);
  assert.equal([one, two].filter(({ duplicate }) => duplicate).length, 1);
  assert.equal(again.duplicate, true);
  return again.turnId;
}

async function leaveInTheMiddleOfATextAndComeBack() {
  let deltas = 0;
  await happens(left, ({ type }) => type === "text_delta" && ++deltas === 5, "text streams in");
  const before = left.state.seq;
  left.socket.disconnect();
  await happens(
    stayed,
    ({ type, block }) => type === "block_complete" && block.type === "tool_result",
    "a tool answers",
  );
  const answer = await left.connect();
  assert.equal(answer.resume, "replay");
  assert.ok(answer.events.length > 0);
  return { missed: left.state.seq - before, events: answer.events.length };
}

async function rest(turn) {
  await settled(
    stayed,
    (state) =>
      state.turn?.turnId === turn &&
      state.turn.status === "completed" &&
      state.session.runtime.phase === "ready",
  );
  for (const viewer of [left, late]) await settled(viewer, (state) => state.seq === stayed.state.seq);
}

function theSameWasSeenByAll() {
  assert.deepEqual(left.state, stayed.state);
  for (const part of [
    "blocks",
    "conversations",
    "results",
    "subagents",
    "files",
    "queue",
    "totals",
    "turn",
    "drafts",
  ]) {
    assert.deepEqual(late.state[part], stayed.state[part], part);
  }
  const kinds = new Set([...stayed.state.blocks.values()].map(({ type }) => type));
  for (const kind of ["user_message", "thinking", "assistant_text", "tool_use", "tool_result", "subagent"])
    assert.ok(kinds.has(kind), `no ${kind}`);
  assert.ok([...stayed.state.blocks.values()].every(({ state }) => state === "complete"));
}

async function theSequenceHasNoHoles() {
  const numbers = stayed.heard.map(({ seq }) => seq);
  assert.deepEqual(
    numbers,
    numbers.map((_, at) => numbers[0] + at),
  );
  assert.deepEqual(
    [stayed.early, left.early, late.early],
    [0, 0, 0],
    "an event came before the ack of its join",
  );
  assert.equal(stayed.heard.filter(({ type }) => type === "turn_end").length, 1);
}

async function nonsenseHarmsNobody() {
  const { socket } = late;
  const strange = [
    undefined,
    null,
    7,
    "",
    "x",
    [],
    {},
    { sessionId: 7 },
    { sessionId: "nobody" },
    { sessionId, position: 7 },
    { sessionId, content: {} },
  ];
  const commands = [
    "session:join",
    "session:leave",
    "session:send",
    "session:interrupt",
    "sessions:watch",
    "sessions:unwatch",
    "session:unheard-of",
    "disconnect-me",
  ];
  for (const command of commands) for (const payload of strange) socket.emit(command, payload); // no ack
  for (const command of ["session:send", "session:interrupt", "session:unheard-of"]) {
    for (const payload of strange) {
      const answer = await late.ask(command, payload);
      if (!answer.ok) assert.match(answer.error.code, /^[a-z_]+$/);
      else assert.equal(command, "session:interrupt");
    }
  }
  assert.equal((await late.ask("session:join", { sessionId: "nobody" })).error.code, "session_not_found");
  assert.equal((await late.ask("session:join", { sessionId })).ok, true);
}

async function aHugeMessageIsATypedError() {
  const answer = await stayed.send("x".repeat(2 * 1024 * 1024), "m-huge");
  assert.equal(answer.ok, false);
  assert.equal(answer.error.code, "message_too_large");
  assert.equal(stayed.socket.connected, true);
}

async function aTurnIsInterrupted() {
  const sent = await stayed.send("[[script:slow n=5000 delay=0.02]]", "m-2");
  assert.equal(sent.ok, true, JSON.stringify(sent));
  await happens(stayed, ({ type }) => type === "text_delta", "the slow text begins");
  const answer = await stayed.ask("session:interrupt", { sessionId });
  assert.equal(answer.interrupted, true);
  await settled(stayed, (state) => state.turn.turnId === sent.turnId && state.turn.status === "cancelled");
  assert.ok([...stayed.state.blocks.values()].every(({ state }) => state !== "streaming"));
}

async function whoLeavesHearsNothing() {
  assert.equal((await left.ask("session:leave", { sessionId })).ok, true);
  const known = left.heard.length;
  const sent = await stayed.send("[[script:text]]", "m-3");
  await settled(stayed, (state) => state.turn.turnId === sent.turnId && state.turn.status === "completed");
  assert.equal(left.heard.length, known);
}

function happens(viewer, isIt, what) {
  const happened = new Promise((resolve) => {
    viewer.onEvent = (envelope) => isIt(envelope) && resolve();
  });
  return within(TURN_MS, happened, what).finally(() => (viewer.onEvent = null));
}

async function settled(viewer, isSettled) {
  if (isSettled(viewer.state)) return;
  await happens(viewer, () => isSettled(viewer.state), "the session settles");
}

function within(ms, promise, what) {
  const late = new Promise((_, reject) =>
    setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms).unref(),
  );
  return Promise.race([promise, late]);
}
