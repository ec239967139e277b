-- +goose Up

-- What a server was and how well, beside what its time counts as: places in the lists of states and healths, from 1.
ALTER TABLE spans ADD COLUMN state INTEGER;
ALTER TABLE spans ADD COLUMN health INTEGER;

-- What agents tell of their hosts. Rows name their environment by number, as those of probes name their server.
CREATE TABLE environments (
    num  INTEGER PRIMARY KEY,
    id   TEXT NOT NULL UNIQUE,
    seen INTEGER NOT NULL -- Unix hour of the newest row: who has none any more is forgotten
) STRICT;

-- cpu: hundredths of a percent; memory and disk: KiB. *_n is how many samples there were, *_total the newest size.
CREATE TABLE resource_minutes (
    minute      INTEGER NOT NULL, -- Unix minutes
    environment INTEGER NOT NULL,
    cpu_n INTEGER NOT NULL, cpu_sum INTEGER NOT NULL, cpu_max INTEGER NOT NULL,
    memory_n INTEGER NOT NULL, memory_sum INTEGER NOT NULL, memory_max INTEGER NOT NULL, memory_total INTEGER NOT NULL,
    disk_n INTEGER NOT NULL, disk_sum INTEGER NOT NULL, disk_max INTEGER NOT NULL, disk_total INTEGER NOT NULL,
    PRIMARY KEY (minute, environment)
) STRICT, WITHOUT ROWID;

CREATE TABLE resource_hours (
    hour        INTEGER NOT NULL, -- Unix hours
    environment INTEGER NOT NULL,
    cpu_n INTEGER NOT NULL, cpu_sum INTEGER NOT NULL, cpu_max INTEGER NOT NULL,
    memory_n INTEGER NOT NULL, memory_sum INTEGER NOT NULL, memory_max INTEGER NOT NULL, memory_total INTEGER NOT NULL,
    disk_n INTEGER NOT NULL, disk_sum INTEGER NOT NULL, disk_max INTEGER NOT NULL, disk_total INTEGER NOT NULL,
    PRIMARY KEY (hour, environment)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE resource_hours;
DROP TABLE resource_minutes;
DROP TABLE environments;
ALTER TABLE spans DROP COLUMN health;
ALTER TABLE spans DROP COLUMN state;
