// The one fold of the console: what is known of a session, and how a snapshot, a replay or an event
// changes it. Pure: no DOM, no clock, no network; a state is never changed in place, so that a view
// finds out what moved by comparing identities. Beside it: `feed.js` keeps it supplied, `views/` show it.

/**
 * @typedef {object} State
 * @property {string} epoch
 * @property {number} seq             position of the newest event that is folded in
 * @property {boolean} hole           an event is missing after `seq`; join again from there
 * @property {object} session         as the wire shows it, `runtime` kept current
 * @property {Map<string, object>} blocks           id -> block
 * @property {Map<string, string[]>} conversations  conversation -> block ids in order
 * @property {Map<string, boolean>} hasMore         conversation -> whether older blocks exist
 * @property {Map<string, string>} results          toolUseId -> id of its tool_result block
 * @property {Map<string, string>} subagents        toolUseId -> id of the subagent block that it started
 * @property {Map<string, string>} drafts           block id -> a tool's input so far, as JSON text
 * @property {Map<string, object>} files            path -> file, without content
 * @property {object[]} queue
 * @property {object} totals          usage, costUsd, model, contextTokens as far as they are known
 * @property {object|null} turn       the newest turn that was heard of
 */

const MAPS = ["blocks", "conversations", "hasMore", "results", "subagents", "drafts", "files"];
const TOTALS = ["usage", "costUsd", "model", "contextTokens"];

/**
 * Fold a snapshot, a replay or one envelope into a state.
 * A snapshot replaces everything; without a state only a snapshot means something.
 */
export function reduce(state, input) {
  if (input.resume === "snapshot" || input.type === "snapshot") return fromSnapshot(input);
  if (input.resume === "replay") return replay(state, input);
  return fold(state, [input]);
}

/** Fold live envelopes in order. Old ones are skipped; at a hole the rest is left and `hole` is set. */
export function fold(state, envelopes) {
  const draft = new Draft(state);
  for (const envelope of envelopes) {
    if (envelope.epoch === draft.next.epoch && envelope.seq <= draft.next.seq) continue;
    if (envelope.epoch !== draft.next.epoch || envelope.seq !== draft.next.seq + 1) {
      draft.next.hole = true;
      break;
    }
    draft.next.seq = envelope.seq;
    APPLY[envelope.type]?.(draft, envelope);
  }
  return draft.next;
}

/** Put an older page (`{blocks, hasMore}`) before what is known of a conversation. */
export function withOlder(state, conversationId, page) {
  const draft = new Draft(state);
  for (const block of page.blocks) if (!draft.next.blocks.has(block.id)) draft.put(block);
  const older = page.blocks.map((block) => block.id);
  const known = (draft.next.conversations.get(conversationId) ?? []).filter((id) => !older.includes(id));
  draft.map("conversations").set(conversationId, [...older, ...known]);
  draft.map("hasMore").set(conversationId, Boolean(page.hasMore));
  return draft.next;
}

/** `epoch:seq`, as a client sends it to join again. */
export function positionOf(state) {
  return `${state.epoch}:${state.seq}`;
}

/** The blocks of a conversation in order. */
export function blocksOf(state, conversationId) {
  return (state.conversations.get(conversationId) ?? []).map((id) => state.blocks.get(id));
}

function fromSnapshot(snapshot) {
  const [epoch, seq] = splitPosition(snapshot.position);
  const session = snapshot.session;
  const draft = new Draft({
    epoch,
    seq,
    hole: false,
    session,
    queue: snapshot.queue ?? [],
    totals: pick(session, TOTALS),
    turn: null,
    ...Object.fromEntries(MAPS.map((name) => [name, new Map()])),
  });
  draft.map("conversations").set("main", []);
  const blocks = snapshot.blocks ?? [];
  for (const block of [...unseenAtWork(snapshot.subagents ?? [], blocks), ...blocks]) draft.append(block);
  for (const id of draft.next.conversations.keys()) draft.map("hasMore").set(id, Boolean(snapshot.hasMore));
  for (const file of snapshot.files ?? []) draft.map("files").set(file.path, withoutContent(file));
  return draft.next;
}

/** Subagents that still work although their own block is older than the page. */
function unseenAtWork(subagents, blocks) {
  const shown = new Set(blocks.map((block) => block.id));
  return subagents.filter(
    ({ id, status }) => !shown.has(id) && (status === "pending" || status === "running"),
  );
}

/** A replay may leave out sequence numbers (merged deltas); its `position` says where it ends. */
function replay(state, answer) {
  const draft = new Draft(state);
  for (const envelope of answer.events) APPLY[envelope.type]?.(draft, envelope);
  const [epoch, seq] = splitPosition(answer.position);
  Object.assign(draft.next, { epoch, seq, hole: false });
  return draft.next;
}

/** A state in the making: every map is copied once, when it is first written. */
class Draft {
  constructor(state) {
    this.next = { ...state };
    this.owned = new Set();
  }

  map(name) {
    if (!this.owned.has(name)) {
      this.owned.add(name);
      this.next[name] = new Map(this.next[name]);
    }
    return this.next[name];
  }

  put(block) {
    this.map("blocks").set(block.id, block);
    if (block.type === "tool_result") this.map("results").set(block.toolUseId, block.id);
    if (block.type === "subagent" && block.toolUseId) this.map("subagents").set(block.toolUseId, block.id);
  }

  /** Add a block at the end of its conversation, or replace it where it stands. */
  append(block) {
    const isNew = !this.next.blocks.has(block.id);
    this.put(block);
    if (!isNew) return;
    const ids = this.next.conversations.get(block.conversationId) ?? [];
    this.map("conversations").set(block.conversationId, [...ids, block.id]);
  }

  /** Change a block that exists; an event about an unknown block changes nothing. */
  change(id, updates) {
    const block = this.next.blocks.get(id);
    if (block) this.map("blocks").set(id, { ...block, ...updates });
  }

  forget(name, id) {
    if (this.next[name].has(id)) this.map(name).delete(id);
  }
}

const APPLY = {
  session_status(draft, { runtime }) {
    draft.next.session = { ...draft.next.session, runtime };
  },
  turn_start(draft, { turn }) {
    draft.next.turn = turn;
  },
  turn_end(draft, { turn }) {
    draft.next.turn = turn;
  },
  block_start(draft, { block }) {
    draft.append(block);
  },
  text_delta(draft, { blockId, delta }) {
    const block = draft.next.blocks.get(blockId);
    if (block) draft.change(blockId, { content: (block.content ?? "") + delta });
  },
  input_delta(draft, { blockId, delta }) {
    if (!draft.next.blocks.has(blockId)) return;
    draft.map("drafts").set(blockId, (draft.next.drafts.get(blockId) ?? "") + delta);
  },
  block_update(draft, { blockId, updates }) {
    draft.change(blockId, updates);
  },
  block_complete(draft, { blockId, block }) {
    draft.append(block);
    draft.forget("drafts", blockId);
  },
  metadata_update(draft, envelope) {
    draft.next.totals = { ...draft.next.totals, ...pick(envelope, TOTALS) };
  },
  file_changed(draft, { change, file }) {
    if (change === "deleted") draft.forget("files", file.path);
    else draft.map("files").set(file.path, withoutContent(file));
  },
  queue_changed(draft, { queue }) {
    draft.next.queue = queue;
  },
  options_changed(draft, { sessionOptions }) {
    draft.next.session = { ...draft.next.session, sessionOptions };
  },
};

function splitPosition(position) {
  const colon = position.lastIndexOf(":");
  return [position.slice(0, colon), Number(position.slice(colon + 1))];
}

function withoutContent({ content: _, ...file }) {
  return file;
}

function pick(source, names) {
  return Object.fromEntries(names.filter((name) => source[name] != null).map((name) => [name, source[name]]));
}
