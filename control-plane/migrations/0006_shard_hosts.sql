-- Further hosts of a shard, as [{"host": ..., "port": ...}]: one of them is the primary if the first is not.
ALTER TABLE shards ADD COLUMN other_hosts jsonb NOT NULL DEFAULT '[]';

CREATE OR REPLACE FUNCTION grant_router(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA switchyard TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON switchyard.topology_version, switchyard.settings,
            switchyard.buckets, switchyard.tenants, switchyard.placements, switchyard.users,
            switchyard.jwt_issuers, switchyard.deleted, switchyard.plans TO %I', role);
    EXECUTE format('REVOKE SELECT ON switchyard.shards FROM %I', role);
    EXECUTE format(
        'GRANT SELECT (name, host, port, other_hosts, database, login_user, login_password, tls, pool, cordoned, weight,
                       created_at)
            ON switchyard.shards TO %I', role);
    EXECUTE format('GRANT INSERT (id) ON switchyard.tenants TO %I', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION switchyard.report TO %I', role);
END $$;
SELECT grant_routers_again();
