import assert from "node:assert/strict";
import { test } from "node:test";

import { Feed } from "../../../clients/console/feed.js";
import { fold, positionOf, reduce } from "../../../clients/console/reducer.js";
import { snapshot, turn } from "./session.mjs";

/** A feed on a server that holds `events`; frames and pauses happen when the test says so. */
function watching(events) {
  const seen = { joins: [], frames: [], problems: [], answers: [], states: [] };
  const feed = new Feed({
    sessionId: "s1",
    join: async (payload) => {
      seen.joins.push(payload);
      const { position } = payload;
      if (seen.answers.length) return seen.answers.shift();
      if (!position) return snapshot();
      const after = Number(position.split(":")[1]);
      return { ok: true, resume: "replay", events: events.slice(after), position: `e1:${events.length}` };
    },
    schedule: (task) => seen.frames.push(task),
    wait: async () => {},
    onState: (state) => seen.states.push(state),
    onProblem: (problem) => seen.problems.push(problem),
  });
  return { feed, ...seen, frame: () => seen.frames.splice(0).forEach((task) => task()) };
}

const settled = () => new Promise((resolve) => setTimeout(resolve, 0));
const whole = () => fold(reduce(null, snapshot()), turn());

test("events of one frame are one change", async () => {
  const events = turn();
  const { feed, states, frames, frame } = watching(events);
  await feed.join();
  events.forEach((event) => feed.receive(event));
  assert.equal(frames.length, 1);
  frame();
  assert.equal(states.length, 2);
  assert.deepEqual(feed.state, whole());
});

test("events that come while a join is under way are kept and folded after it", async () => {
  const events = turn();
  const { feed, frames } = watching(events);
  const joined = feed.join();
  events.forEach((event) => feed.receive(event));
  assert.equal(frames.length, 0);
  await joined;
  assert.deepEqual(feed.state, whole());
});

test("after a lost connection it joins from its position and has everything", async () => {
  const events = turn();
  const { feed, joins, frame } = watching(events);
  await feed.join();
  events.slice(0, 4).forEach((event) => feed.receive(event));
  frame();
  feed.receive(events[4]);
  feed.pause();
  frame();
  await feed.join();
  assert.deepEqual(joins, [{ sessionId: "s1" }, { sessionId: "s1", position: "e1:4" }]);
  assert.deepEqual(feed.state, whole());
});

test("at a hole it joins again from before the hole", async () => {
  const events = turn();
  const { feed, joins, frame } = watching(events);
  await feed.join();
  [...events.slice(0, 3), ...events.slice(5, 7)].forEach((event) => feed.receive(event));
  frame();
  await settled();
  assert.equal(joins.at(-1).position, "e1:3");
  assert.deepEqual(feed.state, whole());
});

test("a session that does not exist is a problem to show, and is not asked for again", async () => {
  const { feed, joins, answers, problems } = watching([]);
  answers.push({ ok: false, error: { code: "session_not_found", retryable: false } });
  await feed.join();
  await settled();
  assert.equal(problems[0].code, "session_not_found");
  assert.equal(joins.length, 1);
});

test("a refusal that may pass is tried again", async () => {
  const { feed, joins, answers, problems } = watching(turn());
  answers.push({ ok: false, error: { code: "rate_limited", retryable: true } });
  await feed.join();
  await settled();
  assert.equal(joins.length, 2);
  assert.equal(problems.length, 0);
  assert.equal(positionOf(feed.state), "e1:0");
});

test("a closed feed changes nothing any more, not even by an answer under way", async () => {
  const { feed, states } = watching(turn());
  const joined = feed.join();
  feed.close();
  await joined;
  feed.update((state) => state);
  await feed.join();
  assert.equal(states.length, 0);
});
