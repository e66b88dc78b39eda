-- Version 1. Applied in one transaction together with `PRAGMA user_version`.
--
-- Times are microseconds since 1970, UTC. Names of files are the bytes on disk. Texts that UTF-8 cannot hold (lone
-- surrogates) are stored as blobs.

CREATE TABLE journal (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    id           TEXT    NOT NULL,
    generation   INTEGER NOT NULL,
    held_until   INTEGER,
    held_detail  TEXT
);

-- Deliveries under way live apart from the finished ones: few rows, no index to keep beside the id, written five times
-- each; and what a restart decides by can be checked in full however long the history is.
CREATE TABLE unfinished (
    id TEXT NOT NULL UNIQUE, inbox TEXT NOT NULL, name BLOB NOT NULL, state TEXT NOT NULL,
    size INTEGER NOT NULL, version TEXT NOT NULL, claimed_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    tries INTEGER NOT NULL, strikes INTEGER NOT NULL, next_try_at INTEGER,
    last_reason TEXT, last_detail TEXT, last_step TEXT, last_http_status INTEGER, last_correlation_id TEXT,
    guest_id TEXT, attachment_id TEXT, file_name TEXT, content_type TEXT, document_size INTEGER, sha256 TEXT,
    text TEXT, posts INTEGER,
    has_receipt INTEGER NOT NULL, conversation_id TEXT, message_id TEXT,
    reason TEXT, detail TEXT, step TEXT, http_status INTEGER, correlation_id TEXT, filed_as BLOB
);

CREATE TABLE finished (
    id TEXT NOT NULL UNIQUE, inbox TEXT NOT NULL, name BLOB NOT NULL, state TEXT NOT NULL,
    size INTEGER NOT NULL, version TEXT NOT NULL, claimed_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    tries INTEGER NOT NULL, strikes INTEGER NOT NULL, next_try_at INTEGER,
    last_reason TEXT, last_detail TEXT, last_step TEXT, last_http_status INTEGER, last_correlation_id TEXT,
    guest_id TEXT, attachment_id TEXT, file_name TEXT, content_type TEXT, document_size INTEGER, sha256 TEXT,
    text TEXT, posts INTEGER,
    has_receipt INTEGER NOT NULL, conversation_id TEXT, message_id TEXT,
    reason TEXT, detail TEXT, step TEXT, http_status INTEGER, correlation_id TEXT, filed_as BLOB
);

-- The newest of all, or of an inbox, are the newest sent and the newest failed, merged.
CREATE INDEX finished_by_state ON finished (state, updated_at);
CREATE INDEX finished_by_inbox ON finished (inbox, state, updated_at);
CREATE INDEX finished_by_name ON finished (name, inbox, updated_at);

CREATE TABLE finished_counts (
    inbox TEXT NOT NULL,
    state TEXT NOT NULL,
    n     INTEGER NOT NULL,
    PRIMARY KEY (inbox, state)
) WITHOUT ROWID;
