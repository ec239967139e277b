-- +goose Up

-- The tokens of agents whose environments a database defines, as they were last read there: agents must be let in while
-- that database is away. Only hashes, as in agent_tokens.
CREATE TABLE database_agents (
    registry       TEXT NOT NULL, -- the name of the registry in the configuration
    hash           BLOB NOT NULL, -- SHA-256
    environment_id TEXT NOT NULL,
    PRIMARY KEY (registry, hash)
) STRICT;

-- +goose Down
DROP TABLE database_agents;
