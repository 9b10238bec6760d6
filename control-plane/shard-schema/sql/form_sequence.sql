-- Where the tenant of a session is kept if nobody may grant the right to set a parameter: as the value that
-- the session has of a sequence (currval), which only this schema's owner may set. It is not undone by a
-- rollback, and DISCARD ALL takes it away.

CREATE OR REPLACE FUNCTION switchyard.enter(token text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s  record;
    id bigint;
BEGIN
    s := switchyard.spend(token);
    SELECT x.n INTO id FROM switchyard.entered x WHERE x.tenant_id = s.tenant AND x.epoch = s.epoch;
    IF NOT FOUND THEN
        INSERT INTO switchyard.entered (tenant_id, epoch) VALUES (s.tenant, s.epoch) ON CONFLICT DO NOTHING;
        SELECT x.n INTO STRICT id FROM switchyard.entered x WHERE x.tenant_id = s.tenant AND x.epoch = s.epoch;
    END IF;
    PERFORM setval('switchyard.session_tenant', id);
END $$;

-- The tenant that this session was entered for; without one, currval fails with 55000.
CREATE OR REPLACE FUNCTION switchyard.tenant_id() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER AS $$
DECLARE
    id bigint := pg_catalog.currval('switchyard.session_tenant');
    t  text;
    e  bigint;
BEGIN
    SELECT x.tenant_id, x.epoch INTO t, e FROM switchyard.entered x WHERE x.n OPERATOR(pg_catalog.=) id;
    IF t IS NULL THEN
        RAISE EXCEPTION 'no tenant has been entered' USING ERRCODE = 'TN001';
    END IF;
    IF EXISTS (SELECT FROM switchyard.fence f WHERE f.tenant_id OPERATOR(pg_catalog.=) t
               AND (f.state OPERATOR(pg_catalog.<>) 'active' OR f.epoch OPERATOR(pg_catalog.>) e)) THEN
        PERFORM switchyard.check_fence(t, e);
    END IF;
    RETURN t;
END $$;
