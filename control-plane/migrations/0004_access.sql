-- Who may do what, what was done (as a chain that shows where something is missing), and requests
-- that are sent twice.

ALTER TABLE api_tokens
    -- The one tenant that it is good for; every tenant if null.
    ADD tenant     text COLLATE "C" REFERENCES tenants ON DELETE CASCADE,
    ADD created_by text,
    ADD last_used  timestamptz,
    DROP CONSTRAINT api_tokens_role_check,
    ADD CONSTRAINT api_tokens_role_check
        CHECK (role IN ('admin', 'operator', 'viewer', 'metrics', 'application')),
    -- An application has the values of one tenant.
    ADD CONSTRAINT api_tokens_application_check CHECK (role <> 'application' OR tenant IS NOT NULL);
CREATE INDEX api_tokens_tenant ON api_tokens (tenant) WHERE tenant IS NOT NULL;

ALTER TABLE audit
    ALTER id DROP IDENTITY,
    -- How the actor proved who it is: `token`, `oidc`, or `process`.
    ADD method     text,
    -- The address that the request came from.
    ADD source     text,
    ADD request_id text,
    ADD tenant     text COLLATE "C",
    -- `done`, `refused` or `failed`.
    ADD outcome    text NOT NULL DEFAULT 'done',
    ADD prev       bytea,
    ADD hash       bytea;
CREATE INDEX audit_tenant ON audit (tenant, id) WHERE tenant IS NOT NULL;

-- What the hash is taken of, behind the hash of the row before. The export has this text, so that
-- anybody can verify it without asking this database.
CREATE FUNCTION audit_text(a audit) RETURNS text STABLE LANGUAGE sql AS $$
    SELECT jsonb_build_array(a.id, to_char(a.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), a.actor,
        a.method, a.source, a.request_id, a.action, a.kind, a.target, a.tenant, a.outcome, a.before, a.after)::text
$$;

-- The last row: ids have no gaps, so a row that is missing is seen.
CREATE TABLE audit_head (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    id   bigint NOT NULL,
    hash bytea NOT NULL
);
INSERT INTO audit_head (id, hash) VALUES (0, sha256(''));

CREATE FUNCTION chain_audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
DECLARE
    last audit_head;
BEGIN
    -- Before the head's lock, in the order in which operations take it.
    PERFORM take_event_order();
    SELECT * INTO last FROM audit_head FOR UPDATE;
    NEW.id := last.id + 1;
    NEW.at := clock_timestamp();
    NEW.prev := last.hash;
    NEW.hash := sha256(last.hash || convert_to(audit_text(NEW), 'UTF8'));
    UPDATE audit_head SET id = NEW.id, hash = NEW.hash;
    INSERT INTO events (kind, target, tenant, what, data)
    VALUES (NEW.kind, NEW.target, NEW.tenant, NEW.action,
            jsonb_build_object('actor', NEW.actor, 'audit', NEW.id, 'outcome', NEW.outcome));
    PERFORM pg_notify('switchyard_events', '');
    RETURN NEW;
END $$;

-- What was there before there was a chain.
ALTER TABLE audit DISABLE TRIGGER append_only;
DO $$
DECLARE
    a    audit;
    n    bigint := 0;
    last bytea := sha256('');
BEGIN
    FOR a IN SELECT * FROM audit ORDER BY id LOOP
        n := n + 1;
        UPDATE audit SET id = n, prev = last WHERE id = a.id RETURNING * INTO a;
        last := sha256(last || convert_to(audit_text(a), 'UTF8'));
        UPDATE audit SET hash = last WHERE id = n;
    END LOOP;
    UPDATE audit_head SET id = n, hash = last;
END $$;
ALTER TABLE audit ENABLE TRIGGER append_only;
ALTER TABLE audit ALTER prev SET NOT NULL, ALTER hash SET NOT NULL;
CREATE TRIGGER chain BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION chain_audit();

CREATE TABLE idempotency (
    -- SHA-256 of the caller's name and the key.
    key        bytea PRIMARY KEY,
    -- SHA-256 of method, path and body.
    request    bytea NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    -- None while the request is under way.
    status     integer,
    -- The answer, sealed with a key made of the idempotency key itself: it may hold a password.
    answer     bytea
);
CREATE INDEX idempotency_started ON idempotency (started_at);
