// What is shown of tools and files, as far as it needs no page.

import assert from "node:assert/strict";
import { test } from "node:test";

import { titleOf } from "../../../clients/console/actions.js";
import { diffLines } from "../../../clients/console/diff.js";
import { readPartialJson } from "../../../clients/console/partial_json.js";
import { treeOf } from "../../../clients/console/views/files.js";
import { applySessions } from "../../../clients/console/views/sessions.js";
import { workspacePath } from "../../../clients/console/views/tools.js";
import { ago, bytes, count, duration, money, tokens } from "../../../clients/console/views/words.js";
import { SESSION } from "./session.mjs";

test("the input of a tool can be read at every moment of its being written", () => {
  const value = {
    file_path: "a\u00e9\\b.py",
    content: 'line\n"quoted" \u2028 {[,',
    edits: [1, { deep: true }],
    empty: {},
  };
  const json = JSON.stringify(value);
  for (let at = 0; at <= json.length; at++) {
    const seen = readPartialJson(json.slice(0, at));
    for (const [name, part] of Object.entries(seen)) {
      if (typeof part === "string") assert.ok(value[name].startsWith(part), `${name} at ${at}`);
    }
  }
  assert.deepEqual(readPartialJson(json), value);
  assert.equal(readPartialJson('{"command": "echo he').command, "echo he");
});

test("nonsense in place of a tool's input is nothing", () => {
  for (const text of ["", "nonsense", "[1, 2", '"text"', "}}}", '{"a" "b"', "null", "{,}"])
    assert.deepEqual(readPartialJson(text), {});
});

test("an edit shows what changed between its common beginning and end", () => {
  const lines = diffLines("a\nb\nc\nd", "a\nx\ny\nc\nd");
  assert.deepEqual(
    lines.map(({ kind, text }) => `${kind} ${text}`),
    ["same a", "old b", "new x", "new y", "same c", "same d"],
  );
  assert.deepEqual(diffLines("", "new"), [{ kind: "new", text: "new" }]);
  assert.deepEqual(diffLines("gone", ""), [{ kind: "old", text: "gone" }]);
  assert.deepEqual(diffLines("same", "same"), [{ kind: "same", text: "same" }]);
});

test("a tool's path is found in the workspace wherever the sandbox has it", () => {
  const files = new Map([
    ["src/a.py", {}],
    ["a.py", {}],
  ]);
  assert.equal(workspacePath("/workspace/src/a.py", files), "src/a.py");
  assert.equal(workspacePath("./a.py", files), "a.py");
  assert.equal(workspacePath("/etc/passwd", files), null);
});

test("paths become a tree of folders", () => {
  const tree = treeOf([{ path: "a/b/c.txt" }, { path: "a/d.txt" }, { path: "__proto__/x" }, { path: "e" }]);
  assert.deepEqual([...tree.folders.keys()], ["a", "__proto__"]);
  assert.deepEqual([...tree.folders.get("a").folders.get("b").files.keys()], ["c.txt"]);
  assert.deepEqual([...tree.files.keys()], ["e"]);
});

test("the list of sessions follows what the server tells", () => {
  const other = { ...SESSION, sessionId: "s2" };
  let sessions = applySessions(new Map(), { type: "session_list", sessions: [SESSION] });
  sessions = applySessions(sessions, { type: "session_created", sessionId: "s2", session: other });
  sessions = applySessions(sessions, {
    type: "session_changed",
    sessionId: "s2",
    session: { ...other, name: "Named" },
  });
  sessions = applySessions(sessions, { type: "session_deleted", sessionId: "s1" });
  assert.deepEqual(
    [...sessions.values()].map(({ name }) => name),
    ["Named"],
  );
});

test("numbers are written for people", () => {
  assert.deepEqual([12, 1500, 65_000, 3_200_000].map(count), ["12", "1.5k", "65k", "3.2M"]);
  assert.deepEqual([20, 3200, 61_000].map(duration), ["20 ms", "3.2 s", "1 min 1 s"]);
  assert.deepEqual([10, 2048, 5_000_000].map(bytes), ["10 B", "2.0 KB", "4.8 MB"]);
  assert.deepEqual([0.0123, 1.5].map(money), ["$0.0123", "$1.50"]);
  assert.equal(tokens({ inputTokens: 3, outputTokens: 4 }), 7);
  assert.equal(tokens({}), null);
  assert.equal(tokens(undefined), null);
  assert.equal(ago("2026-01-01T00:00:00Z", Date.parse("2026-01-01T02:30:00Z")), "2 h ago");
});

test("a session is named by the beginning of what was said first", () => {
  assert.equal(titleOf("  Fix the\tbug \n and more"), "Fix the bug");
  assert.ok(titleOf("word ".repeat(40)).length <= 61);
});
