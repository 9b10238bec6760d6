-- What each router has of a tenant's limits. The parts of all routers that live come to no more than the limit, whoever
-- asks when: what one is to have more, another has given back first.

CREATE TABLE leases (
    tenant     text COLLATE "C" NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('connections', 'transactions', 'rate', 'bytes')),
    router     text COLLATE "C" NOT NULL,
    -- What it cannot give back now, what it would use, and what it has. Of `rate` and `bytes`: thousandths per second.
    used       bigint NOT NULL,
    demand     bigint NOT NULL,
    held       bigint NOT NULL,
    renewed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, kind, router)
);
CREATE INDEX leases_router ON leases (router);
CREATE INDEX leases_renewed ON leases (renewed_at);

-- A router says what it uses and would use of which limit, and is told what it may have from now on. Where there is
-- enough for all, each has what it wants and an equal part of the rest; else parts go by what is wanted. What does not
-- divide goes to one of them, another every 5 seconds. What is in use beyond its part is given to nobody else until it
-- is free. A router that has not asked for 10 seconds has nothing.
CREATE FUNCTION lease(me text, asked jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
DECLARE
    at     timestamptz;
    turn   text;
    answer jsonb;
BEGIN
    -- One at a time: `swyd-lea` in ASCII.
    PERFORM pg_advisory_xact_lock(x'737779642d6c6561'::bigint);
    at := clock_timestamp();
    turn := floor(extract(epoch FROM at) / 5)::text;
    DELETE FROM leases WHERE renewed_at < at - interval '10 s';
    DELETE FROM leases l WHERE l.router = me AND NOT EXISTS (
        SELECT FROM jsonb_to_recordset(asked) AS a (tenant text, kind text)
        WHERE (a.tenant, a.kind) = (l.tenant, l.kind));
    WITH wanted AS (
        SELECT a.tenant, a.kind, a.most, a.used, greatest(a.demand, a.used, 0)::numeric AS demand,
               COALESCE(sum(l.held), 0) AS held, COALESCE(sum(l.demand), 0) AS others, count(l.router) AS n,
               COALESCE(sum(l.used), 0)::bigint AS elsewhere,
               hashtext(me || turn) >= COALESCE(max(hashtext(l.router || turn)), hashtext(me || turn)) AS first
        FROM jsonb_to_recordset(asked) AS a (tenant text, kind text, most bigint, used bigint, demand bigint)
        LEFT JOIN leases l ON (l.tenant, l.kind) = (a.tenant, a.kind) AND l.router <> me
        GROUP BY a.tenant, a.kind, a.most, a.used, a.demand
    ), divided AS (
        SELECT w.*, CASE WHEN w.demand + w.others <= w.most
                        THEN w.demand + (w.most - w.demand - w.others) / (w.n + 1)
                        ELSE w.most * w.demand / (w.demand + w.others) END AS part
        FROM wanted w
    ), parts AS (
        SELECT d.*, greatest(0, least(d.most - d.held, CASE WHEN d.first THEN ceil(part) ELSE floor(part) END))::bigint AS has
        FROM divided d
    ), given AS (
        INSERT INTO leases AS l (tenant, kind, router, used, demand, held, renewed_at)
        SELECT p.tenant, p.kind, me, p.used, p.demand, greatest(p.used, p.has), at
        FROM parts p ORDER BY p.tenant, p.kind
        ON CONFLICT (tenant, kind, router) DO UPDATE SET used = excluded.used, demand = excluded.demand,
            held = excluded.held, renewed_at = at
    )
    SELECT jsonb_agg(jsonb_build_object('tenant', tenant, 'kind', kind, 'held', has, 'elsewhere', elsewhere,
                                        'alone', n = 0))
    INTO answer FROM parts;
    RETURN COALESCE(answer, '[]');
END $$;
REVOKE ALL ON FUNCTION lease FROM PUBLIC;

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
    EXECUTE format('GRANT EXECUTE ON FUNCTION switchyard.report, switchyard.lease TO %I', role);
END $$;
SELECT grant_routers_again();
