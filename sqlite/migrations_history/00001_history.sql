-- +goose Up

-- history.db: counts of probes and spans of uptime, beside the journal, so that writing them never holds an append.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Rows name their server by number: it is small, and a minute's rows are appended in order.
CREATE TABLE servers (
    num INTEGER PRIMARY KEY,
    id  TEXT NOT NULL UNIQUE
) STRICT;

-- Keyed by time first: a flush appends at the end, and what is old goes from the beginning.
CREATE TABLE minutes (
    minute   INTEGER NOT NULL, -- Unix minutes
    server   INTEGER NOT NULL,
    count    INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    sketch   BLOB,             -- DDSketch of the latencies in ms of those that did not fail
    PRIMARY KEY (minute, server)
) STRICT, WITHOUT ROWID;

CREATE TABLE hours (
    hour     INTEGER NOT NULL, -- Unix hours
    server   INTEGER NOT NULL,
    count    INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    sketch   BLOB,
    PRIMARY KEY (hour, server)
) STRICT, WITHOUT ROWID;

-- A span lasts until the next of its server.
CREATE TABLE spans (
    server  INTEGER NOT NULL,
    begin   INTEGER NOT NULL, -- Unix ms
    class   INTEGER NOT NULL, -- 1 unavailable 2 available 3 limited 4 changing 5 off 6 unknown 7 maintenance 8 removed
    reason  TEXT,
    cause   TEXT,
    details TEXT,
    PRIMARY KEY (server, begin)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE spans;
DROP TABLE hours;
DROP TABLE minutes;
DROP TABLE servers;
DROP TABLE meta;
