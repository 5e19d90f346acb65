// The law of joining again for the console's own fold, over every recording of a real agent: a viewer
// that takes a snapshot, or comes back by a replay, after any event ends in the very text of one that
// stayed. `tests/runtime/test_rejoin_law.py` has the same law for the runtime's fold.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { blocksOf, fold, positionOf, reduce } from "../../../clients/console/reducer.js";
import { numbering, snapshot } from "./session.mjs";

const RECORDINGS = new URL("../../adapters/golden/claude/", import.meta.url);
const PIECE = /.{1,7}/gsu; // of a delta, so that there are many places to leave in the middle of a text

const recordings = readdirSync(RECORDINGS).sort();

/** What a session sends of a recording, deltas in small pieces, turns numbered. */
function session(recording) {
  const event = numbering();
  const lines = readFileSync(new URL(`${recording}/events.jsonl`, RECORDINGS), "utf8").trim().split("\n");
  let index = 0;
  return lines.map((line) => JSON.parse(line)).flatMap((fact) => {
    const turn = { turnId: `t${index}`, index };
    if (fact.report === "AgentTurnBegan")
      return [event("turn_start", { turn: { ...turn, status: "running" } })];
    if (fact.report === "AgentTurnEnded") {
      index++;
      return [event("turn_end", { turn: { ...turn, status: fact.status } })];
    }
    if (fact.report) return [];
    if (!isDelta(fact)) return [event(fact.type, fact)];
    const pieces = fact.delta.match(PIECE);
    return pieces.map((delta) => event(fact.type, { ...fact, delta }));
  });
}

const isDelta = ({ type }) => type === "text_delta" || type === "input_delta";

const empty = () => reduce(null, snapshot());

/** All that is shown of the blocks, as one text: ids, order, content, state, and what hangs together. */
function shown(state) {
  const conversations = [...state.conversations.keys()].sort();
  const sorted = (map) => [...map].sort(([one], [other]) => (one < other ? -1 : 1));
  return JSON.stringify([
    positionOf(state),
    state.hole,
    conversations.map((id) => [id, blocksOf(state, id)]),
    sorted(state.results),
    sorted(state.subagents),
  ]);
}

/** A snapshot tells nothing of a tool's input that is being written, a replay does. */
const shownWithDrafts = (state) => shown(state) + JSON.stringify([...state.drafts].sort());

/** The blocks as these events tell of each, without a fold: its newest whole, then what came after it. */
function told(events) {
  const about = new Map();
  for (const one of events) about.set(aboutWhich(one), [...(about.get(aboutWhich(one)) ?? []), one]);
  about.delete(undefined);
  return [...about.values()].map((its) => {
    const newest = its.findLastIndex((one) => one.block);
    const after = its.slice(newest + 1);
    const text = after.filter(({ type }) => type === "text_delta").map(({ delta }) => delta);
    const whole = Object.assign({}, its[newest].block, ...after.map(({ updates }) => updates));
    return text.length ? { ...whole, content: whole.content + text.join("") } : whole;
  });
}

const aboutWhich = ({ block, blockId }) => block?.id ?? blockId;

/** What a server would answer who folded this state: JSON, blocks in the order of their beginning. */
function snapshotOf(state) {
  const blocks = [...state.blocks.values()];
  const subagents = blocks.filter(({ type }) => type === "subagent");
  return JSON.parse(JSON.stringify(snapshot({ position: positionOf(state), blocks, subagents })));
}

/** What a server answers to a position: deltas of blocks that were finished left out, others merged. */
function replayOf(missed, position) {
  const ends = new Map(missed.map((one, at) => [one.type === "block_complete" ? one.blockId : null, at]));
  const events = [];
  for (const [at, one] of missed.entries()) {
    const last = events.at(-1);
    if (!isDelta(one)) events.push(one);
    else if (ends.get(one.blockId) > at) continue;
    else if (last?.type === one.type && last.blockId === one.blockId)
      events[events.length - 1] = { ...one, delta: last.delta + one.delta };
    else events.push(one);
  }
  return { ok: true, resume: "replay", events, position };
}

/** The states after each number of events, from none to all, and what each showed when it was new. */
function stay(events) {
  const every = [empty()];
  const texts = [shown(every[0])];
  for (const event of events) texts.push(shown(every[every.push(reduce(every.at(-1), event)) - 1]));
  return { every, texts };
}

test("there are recordings, and deltas to be cut in", () => {
  assert.ok(recordings.length > 40);
  const deltas = recordings.flatMap(session).filter(isDelta);
  assert.ok(deltas.length > 500, `only ${deltas.length} deltas`);
});

for (const recording of recordings) {
  const events = session(recording);
  const { every, texts } = stay(events);
  const whole = texts.at(-1);

  test(`${recording}: one that stays sees what was told of each block, and in the end nothing half written`, () => {
    for (const [at, state] of every.entries()) {
      const blocks = told(events.slice(0, at));
      assert.deepEqual([...state.blocks.values()], blocks);
      assert.equal(state.results.size, blocks.filter(({ type }) => type === "tool_result").length);
    }
    assert.equal(every.at(-1).drafts.size, 0);
    for (const { id, state } of every.at(-1).blocks.values()) assert.notEqual(state, "streaming", id);
  });

  test(`${recording}: any beginning and the rest are the whole, told twice or not`, () => {
    for (const [at, before] of every.entries()) {
      assert.equal(shown(fold(before, events.slice(at))), whole);
      assert.equal(shown(fold(before, events)), whole);
      assert.equal(shown(before), texts[at], "a state that was given away has changed");
    }
  });

  test(`${recording}: a snapshot at any event and the rest are the whole`, () => {
    for (const [at, before] of every.entries()) {
      const joined = reduce(null, snapshotOf(before));
      for (let after = at; after <= Math.min(at + 3, events.length); after++) {
        const now = shown(fold(joined, events.slice(at, after)));
        assert.equal(now, texts[after], `joined after ${at}, differs after ${after}`);
      }
      assert.equal(shownWithDrafts(fold(joined, events.slice(at))), shownWithDrafts(every.at(-1)));
    }
  });

  test(`${recording}: a replay from any event to any later one leads to what one that stayed sees`, () => {
    for (const [left, before] of every.entries()) {
      for (let back = left; back <= events.length; back += 1 + ((left + back) % 5)) {
        const after = reduce(before, replayOf(events.slice(left, back), positionOf(every[back])));
        assert.equal(shown(after), texts[back], `away from ${left} to ${back}`);
        assert.equal(shownWithDrafts(after), shownWithDrafts(every[back]));
      }
    }
  });

  test(`${recording}: a viewer that missed an event stops before it and is healed by a replay`, () => {
    for (const [at, before] of every.slice(0, -2).entries()) {
      const cut = fold(before, events.slice(at + 1));
      assert.equal(cut.hole, true);
      assert.equal(positionOf(cut), positionOf(before));
      assert.equal(shown(reduce(cut, replayOf(events.slice(at), positionOf(every.at(-1))))), whole);
    }
  });
}
