-- The key by which routers tell each other's announcements of tenants from others (docs/decisions/0008-notifications.md).
-- Two random UUIDs have 244 random bits.

CREATE TABLE notification_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key      text NOT NULL
);
INSERT INTO notification_key (key) VALUES (replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''));

CREATE OR REPLACE FUNCTION grant_router(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA switchyard TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON switchyard.topology_version, switchyard.settings,
            switchyard.buckets, switchyard.tenants, switchyard.placements, switchyard.users,
            switchyard.jwt_issuers, switchyard.deleted, switchyard.plans, switchyard.notification_key TO %I', role);
    EXECUTE format('REVOKE SELECT ON switchyard.shards FROM %I', role);
    EXECUTE format(
        'GRANT SELECT (name, host, port, other_hosts, database, login_user, login_password, tls, pool, cordoned, weight,
                       created_at)
            ON switchyard.shards TO %I', role);
    EXECUTE format('GRANT INSERT (id) ON switchyard.tenants TO %I', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION switchyard.report, switchyard.lease TO %I', role);
END $$;
SELECT grant_routers_again();
