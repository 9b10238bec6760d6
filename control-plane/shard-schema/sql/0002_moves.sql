-- What the mover of tenants needs, besides the fence.

-- The mover's own record on either side of a move: whose turn it is, and how far it has come. What is
-- applied and how far that is are committed together.
CREATE TABLE switchyard.moves (
    move_id   text NOT NULL,
    -- The shard's part in it.
    side      text NOT NULL CHECK (side IN ('source', 'target')),
    tenant_id text COLLATE "C" NOT NULL,
    -- The takeover of the mover that may write: one of an earlier term finds no row.
    term      bigint NOT NULL,
    -- The attempt at a cutover that may succeed.
    attempt   integer NOT NULL DEFAULT 0,
    -- End of the last transaction of the other side that has been applied here.
    applied   pg_lsn NOT NULL DEFAULT '0/0',
    -- Snapshot that the rows were copied at: what is visible in it is not applied again.
    snapshot  pg_snapshot,
    -- Where the activation of this side was committed, in its own log.
    activated pg_lsn,
    started   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (move_id, side)
);
