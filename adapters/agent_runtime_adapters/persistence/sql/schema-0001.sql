-- Sessions and all that belongs to them. Other tables name a session by its number, which is never
-- given out twice, so that rows of a deleted session can never appear under a new one of the same id.
-- Records are JSON text; columns beside it are what is searched or ordered by.

CREATE TABLE sessions (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id  TEXT    NOT NULL UNIQUE,
    owner       TEXT    NOT NULL,
    created_us  INTEGER NOT NULL,           -- microseconds since 1970, UTC
    record      TEXT    NOT NULL
);
CREATE INDEX sessions_newest_first ON sessions (owner, created_us, session_id);

CREATE TABLE blocks (
    session          INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    block_index      INTEGER NOT NULL,
    block_id         TEXT    NOT NULL,
    conversation_id  TEXT    NOT NULL,
    block            TEXT    NOT NULL,
    UNIQUE (session, block_id)
);
-- The conversation is part of it so that paging through one conversation skips the others in the index.
CREATE INDEX blocks_in_order ON blocks (session, block_index, conversation_id);

CREATE TABLE turns (
    session     INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    turn_index  INTEGER NOT NULL,
    turn_id     TEXT    NOT NULL,
    message_id  TEXT,
    turn        TEXT    NOT NULL,
    UNIQUE (session, turn_id)
);
CREATE INDEX turns_in_order ON turns (session, turn_index);
CREATE INDEX turns_by_message ON turns (session, message_id, turn_index) WHERE message_id IS NOT NULL;

CREATE TABLE transcript (
    session  INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    key      TEXT    NOT NULL,
    place    INTEGER NOT NULL,
    entry    TEXT    NOT NULL,
    UNIQUE (session, key, place)
);

-- A path is bytes, because names of files need not be Unicode; content is bytes and comes last, so
-- that a manifest is read without it.
CREATE TABLE files (
    session  INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    path     BLOB    NOT NULL,
    facts    TEXT    NOT NULL,
    content  BLOB,
    UNIQUE (session, path)
);

CREATE TABLE profiles (
    profile_id  TEXT PRIMARY KEY,
    profile     TEXT NOT NULL
) WITHOUT ROWID;
