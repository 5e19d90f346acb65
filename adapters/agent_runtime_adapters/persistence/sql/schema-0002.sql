-- What a starting runtime takes up again is found in two small indexes: they hold only the sessions
-- that have a sandbox and the turns that are not over, however many others sleep beside them.
-- A damaged record is passed over here, so that it cannot keep the whole file from being opened.

ALTER TABLE sessions ADD COLUMN sandbox_id TEXT;
UPDATE sessions SET sandbox_id = json_extract(record, '$.sandbox.sandboxId')
    WHERE CASE WHEN json_valid(record) THEN json_extract(record, '$.sandbox.sandboxId') END IS NOT NULL;
CREATE INDEX sessions_with_sandbox ON sessions (sandbox_id) WHERE sandbox_id IS NOT NULL;

ALTER TABLE turns ADD COLUMN is_unfinished INTEGER NOT NULL DEFAULT 0;
UPDATE turns SET is_unfinished = 1
    WHERE CASE WHEN json_valid(turn) THEN json_extract(turn, '$.status') END IN ('queued', 'running');
CREATE INDEX turns_unfinished ON turns (is_unfinished, session) WHERE is_unfinished = 1;
