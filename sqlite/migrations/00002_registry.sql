-- +goose Up

-- The managed registry: what people define by API. Everything here is also in the engine's records, except the secrets
-- and the tokens; this is where it is defined.
CREATE TABLE managed_environments (
    id   TEXT PRIMARY KEY,
    json BLOB NOT NULL
) STRICT;

CREATE TABLE managed_servers (
    id      TEXT PRIMARY KEY,
    json    BLOB NOT NULL,
    headers BLOB -- a JSON object: the headers of its probes. They are credentials
) STRICT;

-- The agents' tokens are kept as hashes: whoever reads the file can't report for an agent.
CREATE TABLE agent_tokens (
    hash           BLOB PRIMARY KEY, -- SHA-256
    environment_id TEXT NOT NULL,
    created_at     INTEGER NOT NULL  -- Unix ns
) STRICT;
CREATE INDEX agent_tokens_by_environment ON agent_tokens (environment_id);

-- +goose Down
DROP TABLE agent_tokens;
DROP TABLE managed_servers;
DROP TABLE managed_environments;
