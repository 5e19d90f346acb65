"""What must hold after any story, whatever was done to it. Each returns what is wrong, in words.

From the client's side: what viewers folded, what senders were told. From the store: what is in the file
once no process has it open.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_sandbox.drivers.scripted import digest
from tests.chaos.causes import Causes
from tests.chaos.deeds import Sent, processes_below
from tests.chaos.story import GIVEN, Story
from tests.seen_from_outside import files_of

Told = dict[str, Any]
FINAL = {"completed", "failed", "cancelled"}


async def wrong(story: Story) -> list[str]:
    """All that is wrong, before and after the runtime ends."""
    found = [*story.defects]
    workspaces = [_workspace(story, session) for session in range(len(story.fresh))]
    for session, fresh in enumerate(story.fresh):
        found += _viewers(story, session, fresh)
        found += _messages(story, session)
        found += _turns(story, session)
        found += _agents(story, session, fresh["blocks"])
        found += _sandboxes(story, session)
    if sorted(story.listed) != sorted(story.sessions):
        found.append(f"there are the sessions {story.listed}, made and kept were {story.sessions}")
    await story.end()
    store = SqlitePersistence(story.data / "agent-runtime.db")
    await store.open()
    try:
        for session in range(len(story.fresh)):
            found += await _stored(story, session, store, workspaces[session])
        for session_id in story.doomed:
            if await store.load_session(session_id) is not None or await store.load_manifest(session_id):
                found.append(f"{session_id} was deleted and is still in the store")
    finally:
        await store.close()
    return found + [defect for defect in story.defects if defect not in found]


def _viewers(story: Story, session: int, fresh: Told) -> Iterator[str]:
    files = {file["path"]: file["sha256"] for file in fresh["files"]}
    shown = [fresh["blocks"], fresh["queue"], files, fresh["session"]["runtime"]["phase"]]
    told = json.dumps(shown, sort_keys=True).encode()
    for viewer, seen in zip(story.viewers[session], story.seen[session], strict=True):
        if seen != told:
            difference = _difference(seen, told)
            yield f"viewer {viewer.name} differs from a fresh snapshot: {difference}"


def _difference(one: bytes, other: bytes) -> str:
    first, second = json.loads(one), json.loads(other)
    for part, (left, right) in enumerate(zip(first, second, strict=True)):
        if left == right:
            continue
        if part == 0:
            pairs = [(a, b) for a, b in zip(left, right, strict=False) if a != b]
            return f"{len(left)} against {len(right)} blocks; first difference {str(pairs[:1])[:600]}"
        return f"{str(left)[:300]} against {str(right)[:300]}"
    return "nothing"


def _messages(story: Story, session: int) -> Iterator[str]:
    """Each acknowledged message has one turn; one that was refused at once has none."""
    turns = Counter(turn.get("messageId") for turn in story.turns[session])
    ids = {turn.get("messageId"): turn["turnId"] for turn in story.turns[session]}
    for sent in _sent(story, session):
        message_id = sent.said.order.message_id
        if sent.turn_id is not None:
            if turns[message_id] != 1:
                yield f"{message_id} was acknowledged and has {turns[message_id]} turns"
            elif ids[message_id] != sent.turn_id:
                yield f"{message_id} was acknowledged with a turn that is not its own"
        elif sent.tries == 0 and turns[message_id]:
            yield f"{message_id} was refused and has a turn all the same"
    for message_id, count in turns.items():
        if message_id is None or count != 1:
            yield f"{count} turns for message {message_id}"


def _turns(story: Story, session: int) -> Iterator[str]:
    """Each has a final status, and one that did not complete has a cause of its own."""
    orders = {sent.said.order.message_id: sent for sent in _sent(story, session)}
    causes = Causes(story, session)
    for turn in story.turns[session]:
        if turn["status"] not in FINAL:
            yield f"a turn is {turn['status']} for ever: {turn}"
        elif turn.get("stopReason") == "steered" and orders[turn["messageId"]].when_busy != "steer":
            yield f"{turn['messageId']} was steered, which nobody asked for"
    ended = [turn for turn in story.turns[session] if turn["status"] in {"failed", "cancelled"}]
    for turn in sorted(ended, key=lambda turn: str(turn["endedAt"])):
        if turn.get("messageId") in orders and not causes.excuse(turn):
            what = f"{turn['messageId']} {turn['status']} without a cause"
            yield f"{what}: {turn.get('error')}; {causes.left()}"


def _blocks(story: Story, session: int, blocks: list[Told], taken_in: set[str]) -> Iterator[str]:
    """As they were ordered; a message that was taken in is answered in the turn of another."""
    ids = Counter(block["id"] for block in blocks)
    yield from (f"block {block_id} is there {count} times" for block_id, count in ids.items() if count > 1)
    yield from (f"block {block['id']} is open for ever" for block in blocks if block["state"] == "streaming")
    called = Counter(block["toolUseId"] for block in blocks if block["type"] == "tool_use")
    answered = Counter(block["toolUseId"] for block in blocks if block["type"] == "tool_result")
    if called != answered:
        yield f"calls without answer {called - answered}, answers without call {answered - called}"
    orders = {sent.said.order.message_id: sent for sent in _sent(story, session)}
    for turn in story.turns[session]:
        mine = [block for block in blocks if _is_of(block, turn)]
        said = [b for b in blocks if b["type"] == "user_message" and b["turnId"] == turn["turnId"]]
        sent = orders.get(turn.get("messageId"))
        if sent is None or turn["status"] not in FINAL:
            continue
        order = sent.said.order
        if [block["content"] for block in said] != [order.text] or said[0]["messageId"] != order.message_id:
            yield f"{order.message_id} has {len(said)} user messages, or another's"
        if turn.get("stopReason") != "steered":
            yield from _agents_blocks(turn, () if turn["turnId"] in taken_in else order.blocks, mine)
        if not any(sent.said.when_busy == "steer" for sent in _sent(story, session)):
            strays = {block.get("turnId") for block in mine} - {turn["turnId"]}
            others = {
                each["turnId"]: (each.get("messageId"), each["status"]) for each in story.turns[session]
            }
            if strays:
                where = [others.get(turn_id or "", turn_id) for turn_id in strays]
                said = {key: value for key, value in turn.items() if key != "content"}
                yield f"{len(mine)} blocks of {said} are in turns {where}"


def _is_of(block: Told, turn: Told) -> bool:
    """The ids of an order's blocks begin with its message's id."""
    return block["id"].removeprefix("call-").startswith(f"{turn.get('messageId')}-")


def _agents_blocks(turn: Told, expected: tuple[Told, ...], found: list[Told]) -> Iterator[str]:
    name = turn["messageId"]
    bare = [{key: value for key, value in block.items() if key != "turnId"} for block in found]
    bare = [block | {"message": "$AGENT"} if block.get("subtype") == "agent" else block for block in bare]
    ids, wanted = [block["id"] for block in bare], [block["id"] for block in expected]
    if turn["status"] == "completed":
        if ids != wanted:
            missing, surplus = [i for i in wanted if i not in ids], [i for i in ids if i not in wanted]
            yield f"{name} completed; blocks missing {missing}, too many {surplus}, or in another order"
        elif bare != list(expected):
            pairs = [(a, b) for a, b in zip(bare, expected, strict=True) if a != b]
            yield f"{name} completed with other blocks than were said: {str(pairs[0])[:500]}"
        return
    yield from _begun_of(turn, expected, bare)


def _begun_of(turn: Told, expected: tuple[Told, ...], bare: list[Told]) -> Iterator[str]:
    """A turn that was cut off has a beginning of what was said; what it left open was closed for it."""
    name, ids, wanted = (
        turn["messageId"],
        [block["id"] for block in bare],
        [block["id"] for block in expected],
    )
    closed_for_it = {f"{block.get('toolUseId')}:result" for block in expected}
    own = [i for i in ids if i not in closed_for_it or i in wanted[: len(ids)]]
    if [i for i in own if i not in wanted]:
        yield f"{name} {turn['status']} with blocks of somebody else: {[i for i in own if i not in wanted]}"
    order = [i for i in wanted if i in ids and not i.endswith(":result")]
    if order != [i for i in ids if i in wanted and not i.endswith(":result")]:
        yield f"{name} {turn['status']} with its blocks in another order"
    if order != [i for i in wanted if not i.endswith(":result")][: len(order)]:
        yield f"{name} {turn['status']} with holes among its blocks"
    known = {block["id"]: block for block in expected}
    for block in bare:
        wholly = known.get(block["id"])
        if wholly is None or "content" not in wholly:
            continue
        if block["state"] == "complete" and block != wholly:
            yield f"{name}: block {block['id']} changed"
        if block["state"] == "aborted" and not wholly["content"].startswith(block.get("content", "")):
            yield f"{name}: aborted block {block['id']} holds what was never said"


def _agents(story: Story, session: int, blocks: list[Told]) -> Iterator[str]:
    """An agent changes only where something was done to it; to the runtime alone is nothing to it."""
    if story.plan.idle:
        return
    names = list(dict.fromkeys(block["message"] for block in blocks if block.get("subtype") == "agent"))
    ends = {"kill-sandbox", "stop", "interrupt", "withdraw"}
    deeds = sum(deed.session == session and deed.what in ends for deed in story.deeds)
    exits = sum(sent.said.order.fate == "exits" for sent in _sent(story, session))
    if len(names) > 1 + deeds + exits:
        yield f"session {session} had {len(names)} agents with {deeds} deeds and {exits} exits to account for"


async def _stored(
    story: Story, session: int, store: SqlitePersistence, workspace: dict[str, str] | None
) -> list[str]:
    session_id, fresh = story.sessions[session], story.fresh[session]
    found = []
    page = await store.load_blocks(session_id, limit=10_000)
    if [stored.block.to_json() for stored in page.blocks] != fresh["blocks"]:
        found.append(f"session {session}: the store holds other blocks than were told")
    if [stored.index for stored in page.blocks] != list(range(len(page.blocks))):
        found.append(f"session {session}: the blocks' places have holes")
    turns = await store.load_turns(session_id, limit=10_000)
    if [turn.to_json() for turn in turns] != story.turns[session]:
        found.append(f"session {session}: the store holds other turns than were told")
    manifest = {file.path: file.sha256 for file in await store.load_manifest(session_id)}
    if manifest != {file["path"]: file["sha256"] for file in fresh["files"]}:
        found.append(f"session {session}: the store's manifest is not what was told")
    if workspace is not None and workspace != manifest:
        found.append(f"session {session}: the workspace holds {workspace}, the store {manifest}")
    transcript = (await store.load_transcript(session_id)).get("main", [])
    record = await store.load_session(session_id)
    taken_in = {entry["turn"] for entry in transcript if "takenIn" in entry}
    found += _blocks(story, session, fresh["blocks"], taken_in)
    found += _options(story, session, transcript, record.session_options if record is not None else {})
    return (
        found
        + list(_transcript(story, session, transcript))
        + list(_heard(story, session, transcript))
        + list(_files(story, session, manifest, taken_in))
    )


def _transcript(story: Story, session: int, entries: list[Told]) -> Iterator[str]:
    places = [entry["n"] for entry in entries]
    if places != list(range(len(places))):
        yield f"session {session}: transcript entries {places}"
    per_turn = Counter(entry["turn"] for entry in entries)
    taken_in = {entry["turn"] for entry in entries if "takenIn" in entry}
    orders = {sent.said.order.message_id: sent.said.order for sent in _sent(story, session)}
    for turn in story.turns[session]:
        order = orders.get(turn.get("messageId"))
        if order is None or turn["turnId"] in taken_in or turn.get("stopReason") == "steered":
            continue
        if turn["status"] == "completed" and per_turn[turn["turnId"]] != order.entries:
            count = per_turn[turn["turnId"]]
            yield f"{order.message_id} has {count} entries in the transcript, not {order.entries}"


def _heard(story: Story, session: int, entries: list[Told]) -> Iterator[str]:
    """What was said reached the agent once, and each agent began with all that was remembered until then."""
    orders = {sent.said.order.message_id: sent.said.order for sent in _sent(story, session)}
    heard = [entry for entry in entries if "heard" in entry]
    times = Counter(entry["turn"] for entry in heard)
    lossy = any(deed.what == "kill-sandbox" and deed.session == session for deed in story.deeds)
    steered_ids = {turn["turnId"] for turn in story.turns[session] if turn.get("stopReason") == "steered"}
    # One that was handed over early takes in the one whose turn it is: then that is what ends.
    answered_together = any("takenIn" in entry and entry["turn"] not in steered_ids for entry in heard)
    for turn in story.turns[session]:
        order, count = orders.get(turn.get("messageId")), times[turn["turnId"]]
        steered = turn.get("stopReason") == "steered"
        if count > 1 or (not count and turn["status"] == "completed" and not (steered and lossy)):
            how = turn.get("stopReason") or turn["status"]
            yield f"{turn.get('messageId')} ({how}) was heard {count} times"
        mine = [entry for entry in heard if entry["turn"] == turn["turnId"]]
        if steered and any("takenIn" not in entry for entry in mine) and not answered_together:
            yield f"{turn.get('messageId')} is called steered, and had a turn of its own"
        wanted = None if order is None else hashlib.sha256(order.text.encode()).hexdigest()
        if any(entry["heard"] != wanted for entry in mine):
            yield f"{turn.get('messageId')} was not heard as it was said"
    begun: set[str] = set()
    for place, entry in enumerate(entries):
        if "heard" in entry and entry["agent"] not in begun:
            begun.add(entry["agent"])
            if entry["recalled"] != digest(entries[:place]):
                yield f"session {session}: agent {len(begun)} did not recall the {place} entries before it"


def _options(story: Story, session: int, entries: list[Told], stored: Told) -> Iterator[str]:
    """The last wish counts; an agent knows of each that was acknowledged before its turn began."""
    wishes = story.wishes[session]
    if wishes and stored.get("mood") != wishes[-1].mood:
        yield f"session {session}: the last option was {wishes[-1].mood}, stored is {stored}"
    moods = {each["turn"]: each["mood"] for each in entries if "heard" in each and "takenIn" not in each}
    for turn in story.turns[session]:
        began = datetime.fromisoformat(turn["startedAt"])
        before = [wish.mood for wish in wishes if wish.acknowledged < began]
        mood = moods.get(turn["turnId"])
        if not before or mood is None:
            continue
        if not isinstance(mood, int) or mood < before[-1]:
            yield f"{turn.get('messageId')} began after option {before[-1]} with {mood}"


def _files(story: Story, session: int, manifest: dict[str, str], taken_in: set[str]) -> Iterator[str]:
    """What completed turns wrote is kept, but for files that others write too; so is what a client gave."""
    if manifest.get(GIVEN["path"]) != hashlib.sha256(GIVEN["content"].encode()).hexdigest():
        yield f"session {session}: the file that the client gave is {manifest.get(GIVEN['path'])}"
    orders = {sent.said.order.message_id: sent.said.order for sent in _sent(story, session)}
    for turn in story.turns[session]:
        order = orders.get(turn.get("messageId"))
        passed = turn["turnId"] in taken_in or turn.get("stopReason") == "steered"
        if order is None or turn["status"] != "completed" or passed or _died_at_its_end(story, session, turn):
            continue
        for file in order.files:
            sha256 = hashlib.sha256(file.text.encode()).hexdigest()
            if file.path != "shared.txt" and manifest.get(file.path) != sha256:
                yield f"{order.message_id} wrote {file.path}, which is {manifest.get(file.path)} in the store"


def _died_at_its_end(story: Story, session: int, turn: dict[str, Any]) -> bool:
    """Whether the sandbox was killed around the turn's end: what it had not told died with it."""
    ended = datetime.fromisoformat(turn["endedAt"])
    kills = [deed.at for deed in story.deeds if deed.what == "kill-sandbox" and deed.session == session]
    return any(abs(ended - at) < timedelta(seconds=1) for at in kills)


def _workspace(story: Story, session: int) -> dict[str, str] | None:
    """Path to hash of what is in the living sandbox; None where none lives."""
    shown = story.fresh[session]["session"]["runtime"].get("sandbox")
    if shown is None:
        return None
    folder = files_of(story.data / "sandboxes" / shown["sandboxId"])
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _sandboxes(story: Story, session: int) -> Iterator[str]:
    """A session has the one sandbox that it shows, or none; folders of what never came up do not count."""
    shown = story.fresh[session]["session"]["runtime"].get("sandbox")
    expected = [] if shown is None else [shown["sandboxId"]]
    found = [
        file.parent.name
        for file in story.data.glob("sandboxes/*/record.json")
        if json.loads(file.read_text())["sessionId"] == story.sessions[session]
        and processes_below(file.parent)
    ]
    if found != expected:
        yield f"session {session} shows sandbox {expected}; there are {found}"


def _sent(story: Story, session: int) -> list[Sent]:
    return [sent for sent in story.sent if sent.said.session == session]
