import assert from "node:assert/strict";
import { test } from "node:test";

import { blocksOf, fold, positionOf, reduce, withOlder } from "../../../clients/console/reducer.js";
import { block, numbering, snapshot, turn } from "./session.mjs";

const empty = () => reduce(null, snapshot());

test("a turn folds into its blocks, in order, each in its conversation", () => {
  const state = fold(empty(), turn());
  assert.deepEqual(
    blocksOf(state, "main").map(({ id }) => id),
    ["t", "t1", "u1", "u1:result", "u2", "u2:subagent"],
  );
  assert.deepEqual(
    blocksOf(state, "a1").map(({ content }) => content),
    ["Seen."],
  );
  assert.equal(state.blocks.get("t1").content, "I will do it.");
  assert.deepEqual(state.blocks.get("u1").input, { command: "ls" });
  assert.equal(state.blocks.get("u1").status, "success");
  assert.equal(state.results.get("u1"), "u1:result");
  assert.equal(state.subagents.get("u2"), "u2:subagent");
  assert.equal(state.turn.status, "completed");
  assert.deepEqual(state.totals, { usage: { inputTokens: 10, outputTokens: 2 }, costUsd: 0.01, model: "m" });
});

test("one by one, all at once and in any two halves come to the same", () => {
  const events = turn();
  const whole = fold(empty(), events);
  assert.deepEqual(events.reduce(reduce, empty()), whole);
  for (let at = 0; at <= events.length; at++) {
    assert.deepEqual(fold(fold(empty(), events.slice(0, at)), events.slice(at)), whole);
  }
});

test("a viewer that left at any event and came back by replay sees what one that stayed sees", () => {
  const events = turn();
  const whole = fold(empty(), events);
  for (let at = 0; at <= events.length; at++) {
    const before = fold(empty(), events.slice(0, at));
    const missed = events.slice(at).filter(({ type }) => type !== "input_delta"); // those of finished blocks are left out
    const after = reduce(before, {
      ok: true,
      resume: "replay",
      events: missed,
      position: `e1:${events.length}`,
    });
    assert.deepEqual(after, whole);
  }
});

test("text grows by its deltas and the final block replaces it", () => {
  const events = turn();
  assert.equal(fold(empty(), events.slice(0, 4)).blocks.get("t1").content, "I will ");
  assert.equal(fold(empty(), events.slice(0, 4)).blocks.get("t1").state, "streaming");
  assert.equal(fold(empty(), events.slice(0, 6)).blocks.get("t1").state, "complete");
});

test("a tool's input is kept as text while it is written and forgotten when it is whole", () => {
  const events = turn();
  assert.equal(fold(empty(), events.slice(0, 9)).drafts.get("u1"), '{"command": "ls"}');
  assert.equal(fold(empty(), events.slice(0, 10)).drafts.size, 0);
});

test("an event that was seen already changes nothing", () => {
  const events = turn();
  const state = fold(empty(), events);
  assert.deepEqual(fold(state, events), state);
});

test("at a hole nothing is folded any further and the position stays before it", () => {
  const events = turn();
  const state = fold(empty(), [...events.slice(0, 3), ...events.slice(4)]);
  assert.equal(state.hole, true);
  assert.equal(positionOf(state), "e1:3");
  assert.equal(state.blocks.get("t1").content, "");
  const healed = reduce(state, {
    ok: true,
    resume: "replay",
    events: events.slice(3),
    position: `e1:${events.length}`,
  });
  assert.equal(healed.hole, false);
  assert.deepEqual(healed, fold(empty(), events));
});

test("an event of another epoch is a hole", () => {
  assert.equal(fold(empty(), [numbering(0, "e2")("queue_changed", { queue: [] })]).hole, true);
});

test("a snapshot in mid-turn goes on where the open block stands", () => {
  const open = block("t1", "assistant_text", { content: "I will ", state: "streaming" });
  const state = reduce(null, snapshot({ position: "e1:4", blocks: [open] }));
  const event = numbering(4);
  const next = fold(state, [event("text_delta", { blockId: "t1", delta: "go on." })]);
  assert.equal(next.blocks.get("t1").content, "I will go on.");
});

test("a snapshot replaces whatever was known", () => {
  const state = reduce(fold(empty(), turn()), snapshot({ position: "e9:7" }));
  assert.deepEqual(state, reduce(null, snapshot({ position: "e9:7" })));
});

test("a subagent at work is shown although its block is older than the page", () => {
  const child = block("u2:subagent", "subagent", { subagentId: "a1", input: {}, status: "running" });
  const done = { ...child, id: "u3:subagent", status: "success" };
  const state = reduce(
    null,
    snapshot({
      subagents: [child, done],
      blocks: [block("t1", "assistant_text", { content: "x" })],
      hasMore: true,
    }),
  );
  assert.deepEqual(
    blocksOf(state, "main").map(({ id }) => id),
    ["u2:subagent", "t1"],
  );
});

test("an older page comes before what is known, with nothing doubled and newer knowledge kept", () => {
  const state = reduce(
    null,
    snapshot({ blocks: [block("b2", "assistant_text", { content: "new" })], hasMore: true }),
  );
  const page = {
    blocks: [
      block("b1", "assistant_text", { content: "old" }),
      block("b2", "assistant_text", { content: "stale" }),
    ],
    hasMore: false,
  };
  const next = withOlder(state, "main", page);
  assert.deepEqual(
    blocksOf(next, "main").map(({ content }) => content),
    ["old", "new"],
  );
  assert.equal(next.hasMore.get("main"), false);
});

test("files come, change and go, and their content is not kept", () => {
  const event = numbering();
  const file = { path: "a", sizeBytes: 1, sha256: "00", encoding: "utf-8", content: "x" };
  const created = fold(empty(), [event("file_changed", { change: "created", file })]);
  assert.deepEqual([...created.files], [["a", { path: "a", sizeBytes: 1, sha256: "00", encoding: "utf-8" }]]);
  assert.equal(fold(created, [event("file_changed", { change: "deleted", file })]).files.size, 0);
});

test("what is unknown is skipped: event types, and events about unknown blocks", () => {
  const event = numbering();
  const state = fold(empty(), [
    event("moon_phase", { phase: "full" }),
    event("text_delta", { blockId: "nobody", delta: "x" }),
    event("input_delta", { blockId: "nobody", delta: "x" }),
    event("block_update", { blockId: "nobody", updates: {} }),
  ]);
  assert.equal(state.seq, 4);
  assert.deepEqual({ ...state, seq: 0 }, empty());
});

test("a state is never changed in place", () => {
  const frozen = deepFreeze(empty());
  const events = turn();
  let state = frozen;
  for (const event of events) state = deepFreeze(fold(state, [event]));
  assert.deepEqual(frozen, empty());
});

test("a long text is folded delta by delta without its cost growing with the session", () => {
  const event = numbering();
  const blocks = Array.from({ length: 2000 }, (_, at) => block(`b${at}`, "assistant_text", { content: "x" }));
  const start = event("block_start", {
    block: block("t1", "assistant_text", { content: "", state: "streaming" }),
  });
  let state = fold(reduce(null, snapshot({ blocks })), [start]);
  const deltas = Array.from({ length: 20_000 }, () => event("text_delta", { blockId: "t1", delta: "word " }));
  const before = performance.now();
  for (let at = 0; at < deltas.length; at += 100) state = fold(state, deltas.slice(at, at + 100));
  assert.equal(state.blocks.get("t1").content.length, 100_000);
  assert.ok(performance.now() - before < 2000);
});

function deepFreeze(value) {
  if (value instanceof Map) {
    const refuse = { configurable: true, value: () => assert.fail("a map of an old state was written to") };
    Object.defineProperties(value, { set: refuse, delete: refuse });
  } else if (value && typeof value === "object") {
    Object.values(Object.freeze(value)).forEach(deepFreeze);
  }
  return value;
}
