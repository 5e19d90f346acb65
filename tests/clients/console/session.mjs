// Snapshots and envelopes as a server would send them, for the tests beside this file.

export const SESSION = {
  sessionId: "s1",
  architecture: "claude-agent-sdk",
  agentProfileReference: "default",
  sessionOptions: {},
  metadata: {},
  createdAt: "2026-01-01T00:00:00.000Z",
  lastActivity: "2026-01-01T00:00:00.000Z",
  runtime: { isLoaded: true, phase: "ready", queueLength: 0, pendingRequests: 0 },
};

export function snapshot(fields = {}) {
  return {
    ok: true,
    resume: "snapshot",
    session: SESSION,
    position: "e1:0",
    blocks: [],
    hasMore: false,
    subagents: [],
    queue: [],
    files: [],
    ...fields,
  };
}

/** Numbers envelopes in order, as a log does. */
export function numbering(from = 0, epoch = "e1") {
  let seq = from;
  return (type, fields = {}) => ({
    v: 1,
    sessionId: "s1",
    epoch,
    seq: ++seq,
    ts: "2026-01-01T00:00:00.000Z",
    type,
    ...fields,
  });
}

export function block(id, type, fields = {}) {
  return {
    id,
    type,
    conversationId: "main",
    timestamp: "2026-01-01T00:00:00.000Z",
    state: "complete",
    ...fields,
  };
}

/** One turn with everything in it: thought, text, a tool, a subagent with a block of its own. */
export function turn() {
  const event = numbering();
  const text = block("t1", "assistant_text", { content: "" });
  const tool = block("u1", "tool_use", { toolName: "Bash", toolUseId: "u1", input: {}, status: "pending" });
  const call = block("u2", "tool_use", {
    toolName: "Agent",
    toolUseId: "u2",
    input: { prompt: "look" },
    status: "running",
  });
  const child = block("u2:subagent", "subagent", {
    subagentId: "a1",
    toolUseId: "u2",
    input: {},
    status: "running",
  });
  const start = (one) => event("block_start", { block: { ...one, state: "streaming" } });
  const complete = (one) => event("block_complete", { blockId: one.id, block: one });
  return [
    event("turn_start", { turn: { turnId: "t", index: 0, status: "running" } }),
    complete(block("t", "user_message", { content: "Do it", messageId: "m1" })),
    start(text),
    event("text_delta", { blockId: "t1", delta: "I will " }),
    event("text_delta", { blockId: "t1", delta: "do it." }),
    complete({ ...text, content: "I will do it." }),
    start(tool),
    event("input_delta", { blockId: "u1", delta: '{"command": "l' }),
    event("input_delta", { blockId: "u1", delta: 's"}' }),
    complete({ ...tool, input: { command: "ls" }, status: "running" }),
    event("block_update", { blockId: "u1", updates: { status: "success" } }),
    complete(block("u1:result", "tool_result", { toolUseId: "u1", output: "a.txt", isError: false })),
    event("file_changed", {
      change: "created",
      file: { path: "a.txt", sizeBytes: 1, sha256: "00", encoding: "utf-8", content: "a" },
    }),
    start(call),
    complete(call),
    complete(child),
    start(block("c1", "assistant_text", { conversationId: "a1", content: "" })),
    event("text_delta", { blockId: "c1", delta: "Seen." }),
    complete(block("c1", "assistant_text", { conversationId: "a1", content: "Seen." })),
    event("block_update", { blockId: "u2:subagent", updates: { status: "success", durationMs: 5 } }),
    event("metadata_update", { usage: { inputTokens: 10, outputTokens: 2 }, costUsd: 0.01, model: "m" }),
    event("turn_end", { turn: { turnId: "t", index: 0, status: "completed" } }),
  ];
}
