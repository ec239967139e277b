-- +goose Up

-- What is known of the store itself: head_epoch, deleted_seq, deleted_epoch, alive_at (Unix ns), boot_id, sync, clean.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- The journal. seq counts up by one without holes, from deleted_seq + 1. json is the entry as every wire has it; labels
-- are beside it because filters need them and the wire does not have them. What nobody searches for is no column of its
-- own: each would cost a tenth of the rate at which entries can be appended.
CREATE TABLE entries (
    seq       INTEGER PRIMARY KEY,
    server_id TEXT,
    ts        INTEGER NOT NULL, -- Unix ms
    labels    TEXT,
    json      BLOB NOT NULL
) STRICT;

-- The same for people, with what they ask for.
CREATE VIEW journal AS
SELECT seq, json ->> '$.epoch' AS epoch, json ->> '$.kind' AS kind, strftime('%Y-%m-%dT%H:%M:%fZ', ts / 1000.0, 'unixepoch') AS time,
       server_id, json ->> '$.environment_id' AS environment_id, labels, CAST(json AS TEXT) AS json
FROM entries;

-- The index by server is cut into segments of 2048 entries. One index over everything would make each of a batch's
-- entries dirty a page of its own (each server has its own place in it), which costs several times what the entries do;
-- a segment has few pages, and old ones are never touched again.
CREATE INDEX entries_by_server ON entries (seq >> 11, server_id) WHERE server_id IS NOT NULL;

-- Which times each segment may hold, so that a history looks only where something can be.
CREATE TABLE segments (
    segment INTEGER PRIMARY KEY, -- seq >> 11
    ts_min  INTEGER NOT NULL,
    ts_max  INTEGER NOT NULL
) STRICT;

CREATE TABLE records (
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;

-- +goose Down
DROP TABLE records;
DROP TABLE segments;
DROP VIEW journal;
DROP TABLE entries;
DROP TABLE meta;
