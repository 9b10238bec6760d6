-- Long work: what was asked for, how far it is, and who is at it; and what happened, in order.

CREATE TABLE operations (
    -- op_ and 26 characters, of which the first tell the time: later ones sort behind.
    id          text COLLATE "C" PRIMARY KEY,
    -- `tenant.delete`, `move`, ...: who runs it knows by this what to do.
    kind        text NOT NULL,
    -- What it is about: `tenant`, `shard`, ..., and its id.
    target_kind text NOT NULL,
    target      text COLLATE "C" NOT NULL,
    -- Whose tenant's it is, where it is one's; a token of that tenant may see it.
    tenant      text COLLATE "C",
    state       text NOT NULL DEFAULT 'pending'
                CHECK (state IN ('pending', 'running', 'paused', 'succeeded', 'failed', 'canceled')),
    -- What it is at, in words of its kind.
    phase       text,
    done        bigint,
    total       bigint,
    unit        text,
    -- What was asked for. Never a secret.
    input       jsonb NOT NULL DEFAULT '{}',
    -- Where it is, for whoever goes on with it.
    journal     jsonb NOT NULL DEFAULT '{}',
    result      jsonb,
    -- {"code": ..., "message": ...}
    error       jsonb,
    -- [{"name": ..., "state": ..., "at": ...}]
    steps       jsonb NOT NULL DEFAULT '[]',
    -- Commands that may come next, for people.
    next_steps  text[] NOT NULL DEFAULT '{}',
    cancelable  boolean NOT NULL DEFAULT false,
    -- Somebody asks it to stop: `cancel`, `pause` or `resume`.
    wish        text CHECK (wish IN ('cancel', 'pause', 'resume')),
    created_by  text NOT NULL,
    -- The term of the control plane that runs it: one of a lower term may write no more.
    owner       text,
    owner_term  bigint NOT NULL DEFAULT 0,
    not_before  timestamptz NOT NULL DEFAULT now(),
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'canceled')))
);
CREATE INDEX operations_open ON operations (not_before) WHERE finished_at IS NULL;
CREATE INDEX operations_target ON operations (target_kind, target, id);
CREATE INDEX operations_tenant ON operations (tenant, id);
-- One at a time does what excludes others of its kind on the same target.
CREATE UNIQUE INDEX operations_one_at_a_time ON operations (kind, target_kind, target)
    WHERE finished_at IS NULL;

-- Which control plane leads. Its term rises with every change of leader; whoever leads holds the
-- advisory lock of `leader_lock()` on a connection of its own.
CREATE TABLE leader (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    term  bigint NOT NULL,
    name  text NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
INSERT INTO leader (term, name) VALUES (0, 'nobody');

-- `swyd-led` in ASCII.
CREATE FUNCTION leader_lock() RETURNS bigint IMMUTABLE LANGUAGE sql AS
    'SELECT 8320252307756049764::bigint';

-- A write by a leader that is one no more fails: to be called in the transaction that writes.
CREATE FUNCTION still_leads(of_term bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM leader WHERE term = of_term FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another control plane leads by now' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END $$;

-- What happened, for those who listen. Ids are given in the order of commits.
CREATE TABLE events (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- `operation`, or the kind of thing that was changed.
    kind   text NOT NULL,
    target text COLLATE "C" NOT NULL,
    tenant text COLLATE "C",
    what   text NOT NULL,
    data   jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX events_at ON events (at);

-- Serialises those who write events until they commit: else a later id could be seen before an
-- earlier one, and who reads on behind it would miss that. `swyd-evt` in ASCII.
CREATE FUNCTION take_event_order() RETURNS void LANGUAGE sql AS
    'SELECT pg_advisory_xact_lock(8320252307755595380)';

CREATE FUNCTION tell_of_operation() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    PERFORM take_event_order();
    INSERT INTO events (kind, target, tenant, what, data)
    VALUES ('operation', NEW.id, NEW.tenant, NEW.state, jsonb_build_object(
        'kind', NEW.kind, 'target_kind', NEW.target_kind, 'target', NEW.target, 'phase', NEW.phase,
        'done', NEW.done, 'total', NEW.total, 'unit', NEW.unit));
    PERFORM pg_notify('switchyard_events', '');
    IF NEW.state IN ('pending', 'running') THEN
        PERFORM pg_notify('switchyard_operations', '');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tell BEFORE INSERT OR UPDATE ON operations FOR EACH ROW EXECUTE FUNCTION tell_of_operation();
