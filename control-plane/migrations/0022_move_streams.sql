-- The change streams that the mover has open, one for each source database. Written by the mover that leads.
CREATE TABLE move_streams (
    shard     text COLLATE "C" NOT NULL,
    database  text NOT NULL,
    -- Bytes of log that its slot retains, and most that it may: beyond that it is dropped.
    retained  bigint NOT NULL,
    budget    bigint NOT NULL,
    looked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, database)
);
