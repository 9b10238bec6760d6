-- Plans and limits, states between active and deleted, and what tenants have used up.

CREATE TABLE plans (
    name        text COLLATE "C" PRIMARY KEY
                CHECK (octet_length(name) BETWEEN 1 AND 63 AND name !~ '[\x01-\x1f\x7f-\x9f]'),
    -- Whose limits it inherits.
    extends     text COLLATE "C" REFERENCES plans,
    description text,
    -- What it says itself: fields of LimitSet.
    limits      jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(limits) = 'object'),
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX plans_extends ON plans (extends);
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON plans EXECUTE FUNCTION bump('layout');

-- The plan of tenants that have none.
ALTER TABLE settings ADD default_plan text COLLATE "C" REFERENCES plans;

ALTER TABLE tenants
    ADD plan         text COLLATE "C" REFERENCES plans,
    -- What the tenant has otherwise than its plan says.
    ADD limits       jsonb CHECK (jsonb_typeof(limits) = 'object'),
    -- What it has used up: {"kind": "storage"} or {"kind": "quota", "until": seconds since 1970}.
    ADD restriction  jsonb CHECK (jsonb_typeof(restriction) = 'object'),
    -- When its rows are deleted, while it is in state `deleting`, and the state that it came from.
    ADD delete_after timestamptz,
    ADD state_before text,
    DROP CONSTRAINT tenants_state_check,
    ADD CONSTRAINT tenants_state_check CHECK (state IN ('active', 'read-only', 'suspended', 'deleting')),
    ADD CONSTRAINT tenants_delete_after_check CHECK ((state = 'deleting') = (delete_after IS NOT NULL));
CREATE INDEX tenants_plan ON tenants (plan) WHERE plan IS NOT NULL;
CREATE INDEX tenants_delete_after ON tenants (delete_after) WHERE delete_after IS NOT NULL;
CREATE INDEX tenants_restricted ON tenants (id) WHERE restriction IS NOT NULL;

CREATE OR REPLACE FUNCTION grant_router(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA switchyard TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON switchyard.topology_version, switchyard.settings, switchyard.shards,
            switchyard.buckets, switchyard.tenants, switchyard.placements, switchyard.users,
            switchyard.jwt_issuers, switchyard.deleted, switchyard.plans TO %I', role);
    EXECUTE format('GRANT INSERT (id) ON switchyard.tenants TO %I', role);
END $$;

-- Roles that were granted what a router needs are granted it anew; so does every later step.
CREATE FUNCTION grant_routers_again() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    role name;
BEGIN
    FOR role IN
        SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
        WHERE c.oid = 'switchyard.topology_version'::regclass AND a.privilege_type = 'SELECT'
          AND a.grantee <> c.relowner
    LOOP
        PERFORM grant_router(role);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION grant_routers_again FROM PUBLIC;
SELECT grant_routers_again();
