-- Moves of tenants between shards. Written by the control plane (what is asked for) and by the mover
-- (what is done); the truth about where a tenant may write is on the shards, in switchyard.fence.

-- Whom the mover logs in as on a shard: a role that sees all rows and may replicate. Apart from the
-- shards, because routers read those.
CREATE TABLE shard_admins (
    shard          text COLLATE "C" PRIMARY KEY REFERENCES shards ON DELETE CASCADE ON UPDATE CASCADE,
    login_user     text NOT NULL CHECK (login_user <> ''),
    login_password text
);

CREATE TABLE moves (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Not a reference: a move outlives its tenant as a record.
    tenant      text COLLATE "C" NOT NULL,
    source      text COLLATE "C" NOT NULL,
    target      text COLLATE "C" NOT NULL,
    -- move: all of it. rehearse: all but the cutover. plan: preflight and estimates only.
    kind        text NOT NULL CHECK (kind IN ('move', 'rehearse', 'plan')),
    -- Journalled before the mover acts on it.
    phase       text NOT NULL DEFAULT 'queued' CHECK (phase IN (
                    'queued', 'preparing', 'copying', 'catching_up', 'verifying', 'cutover', 'moved',
                    'completing', 'rolling_back', 'aborting', 'done')),
    -- What operators want of it; the mover follows.
    wish        text NOT NULL DEFAULT 'run' CHECK (wish IN ('run', 'pause', 'abort', 'rollback', 'complete')),
    outcome     text CHECK (outcome IN ('completed', 'rolled_back', 'aborted', 'refused', 'failed', 'planned',
                    'rehearsed')),
    options     jsonb NOT NULL DEFAULT '{}',
    -- Who works on it, and since which takeover. Every write of a mover names its term: one that
    -- was overtaken changes nothing.
    owner       text,
    term        bigint NOT NULL DEFAULT 0,
    epoch       bigint,
    progress    jsonb NOT NULL DEFAULT '{}',
    plan        jsonb,
    receipt     jsonb,
    error       text,
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    moved_at    timestamptz,
    finished_at timestamptz,
    CHECK ((phase = 'done') = (outcome IS NOT NULL)),
    CHECK (source <> target)
);
-- A tenant moves once at a time; a plan is no move, and one that has gone over makes way for the next.
CREATE UNIQUE INDEX moves_open ON moves (tenant)
    WHERE phase NOT IN ('moved', 'completing', 'done') AND kind <> 'plan';
CREATE INDEX moves_unfinished ON moves (id) WHERE phase <> 'done';
CREATE INDEX moves_tenant ON moves (tenant, id);

CREATE TABLE move_events (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    move_id bigint NOT NULL REFERENCES moves ON DELETE CASCADE,
    at      timestamptz NOT NULL DEFAULT now(),
    phase   text NOT NULL,
    what    text NOT NULL
);
CREATE INDEX move_events_move ON move_events (move_id, id);

-- The mover hears of new wishes by this.
CREATE FUNCTION announce_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
BEGIN
    PERFORM pg_notify('switchyard_move_wishes', '1');
    RETURN NULL;
END $$;
CREATE TRIGGER announce AFTER INSERT OR UPDATE OF wish ON moves EXECUTE FUNCTION announce_move();
