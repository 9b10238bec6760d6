-- Where the tenant of a session is kept: in `backtrace_functions`, the one stock parameter that is free
-- text, that everybody may read, and that only a superuser may set, or who has been granted that.
-- As a list of functions it names none: `sx_` and `sc_` begin no name of a C function.
-- The value is sc_EPOCH_TENANT, or sx_EPOCH_HEX where the id has characters that the parameter refuses.

CREATE OR REPLACE FUNCTION switchyard.enter(token text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
BEGIN
    s := switchyard.spend(token);
    IF s.tenant ~ '^[0-9A-Za-z_]+$' THEN
        PERFORM set_config('backtrace_functions', 'sc_' || s.epoch || '_' || s.tenant, false);
    ELSE
        PERFORM set_config('backtrace_functions',
                           'sx_' || s.epoch || '_' || encode(convert_to(s.tenant, 'UTF8'), 'hex'), false);
    END IF;
END $$;

-- The tenant that this session was entered for. For policies, as (SELECT switchyard.tenant_id()), which is
-- evaluated once per statement. STABLE, never IMMUTABLE: a plan prepared for one tenant is run for another.
CREATE OR REPLACE FUNCTION switchyard.tenant_id() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER AS $$
DECLARE
    c text := pg_catalog.current_setting('backtrace_functions');
    e text := pg_catalog.split_part(c, '_', 2);
    t text := pg_catalog.substr(c, 5 OPERATOR(pg_catalog.+) pg_catalog.length(e));
BEGIN
    IF pg_catalog.starts_with(c, 'sx_') THEN
        t := pg_catalog.convert_from(pg_catalog.decode(t, 'hex'), 'UTF8');
    ELSIF NOT pg_catalog.starts_with(c, 'sc_') THEN
        RAISE EXCEPTION 'no tenant has been entered' USING ERRCODE = 'TN001';
    END IF;
    IF EXISTS (SELECT FROM switchyard.fence f WHERE f.tenant_id OPERATOR(pg_catalog.=) t
               AND (f.state OPERATOR(pg_catalog.<>) 'active'
                    OR f.epoch OPERATOR(pg_catalog.>) e::pg_catalog.int8)) THEN
        PERFORM switchyard.check_fence(t, e::pg_catalog.int8);
    END IF;
    RETURN t;
END $$;
