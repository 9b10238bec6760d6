-- Tenants as a service: provisioning, values, routers, usage, sign-ins, webhooks.

ALTER TABLE shards
    -- Share of new tenants, relative to other shards.
    ADD weight         integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 10000),
    -- A role that may make schemas, databases and roles, and look behind row-level security to
    -- measure. Routers are not granted these columns.
    ADD admin_user     text,
    ADD admin_password text;

ALTER TABLE settings
    -- Where new tenants go that do not say: `bucket`, or `least-loaded`.
    ADD placement text NOT NULL DEFAULT 'bucket' CHECK (placement IN ('bucket', 'least-loaded')),
    -- {"schema_sql", "seed_sql", "template_database"}
    ADD provision jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(provision) = 'object');

-- Data keys, one per tenant, each sealed by a key that the control plane holds.
CREATE TABLE data_keys (
    tenant     text COLLATE "C" PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    -- Which of the control plane's keys sealed it.
    kid        text NOT NULL,
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    rotated_at timestamptz
);

-- Values that applications read. One that is secret is sealed by its tenant's data key.
CREATE TABLE tenant_values (
    tenant     text COLLATE "C" NOT NULL REFERENCES tenants ON DELETE CASCADE,
    name       text COLLATE "C" NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 128),
    value      jsonb,
    sealed     bytea,
    version    bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text NOT NULL,
    PRIMARY KEY (tenant, name),
    CHECK ((value IS NULL) <> (sealed IS NULL))
);

-- Routers, as they report themselves.
CREATE TABLE routers (
    -- Made by the router when it starts.
    id          text COLLATE "C" PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 64),
    name        text NOT NULL,
    version     text NOT NULL,
    address     text,
    -- The version of the topology that it decides from.
    topology    bigint NOT NULL,
    -- The last report taken: one that is sent again is not counted again.
    sequence    bigint NOT NULL,
    clients     bigint NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT now()
);

-- What a tenant did in a span of time, over all routers. Not bound to `tenants`: bills outlive them.
CREATE TABLE usage (
    -- m, h or d: minute, hour, day of UTC.
    span         "char" NOT NULL CHECK (span IN ('m', 'h', 'd')),
    at           timestamptz NOT NULL,
    tenant       text COLLATE "C" NOT NULL,
    transactions bigint NOT NULL DEFAULT 0,
    statements   bigint NOT NULL DEFAULT 0,
    rows         bigint NOT NULL DEFAULT 0,
    errors       bigint NOT NULL DEFAULT 0,
    limited      bigint NOT NULL DEFAULT 0,
    bytes_in     bigint NOT NULL DEFAULT 0,
    bytes_out    bigint NOT NULL DEFAULT 0,
    -- Microseconds.
    server_us    bigint NOT NULL DEFAULT 0,
    wait_us      bigint NOT NULL DEFAULT 0,
    -- Most at once on one router, as seen at its reports.
    connections  integer NOT NULL DEFAULT 0,
    -- As last measured.
    storage      bigint,
    PRIMARY KEY (tenant, span, at)
);
CREATE INDEX usage_span_at ON usage (span, at);

-- Who signed in or was refused, per minute.
CREATE TABLE sign_ins (
    at      timestamptz NOT NULL,
    -- Null where no tenant that exists was found.
    tenant  text COLLATE "C",
    username text NOT NULL,
    source  text NOT NULL,
    method  text NOT NULL,
    outcome text NOT NULL,
    count   bigint NOT NULL,
    router  text NOT NULL
);
CREATE INDEX sign_ins_tenant ON sign_ins (tenant, at);
CREATE INDEX sign_ins_at ON sign_ins (at);

-- What a router reports: a heartbeat, and what has happened since the last report. Whether it was
-- new. Routers are granted this function and no table that it writes.
CREATE FUNCTION report(doc jsonb) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
DECLARE
    now_us timestamptz := clock_timestamp();
    is_new boolean;
BEGIN
    INSERT INTO routers AS r (id, name, version, address, topology, sequence, clients, started_at, seen_at)
    VALUES (doc ->> 'id', doc ->> 'name', doc ->> 'version', doc ->> 'address', (doc ->> 'topology')::bigint,
            (doc ->> 'sequence')::bigint, (doc ->> 'clients')::bigint,
            to_timestamp((doc ->> 'started')::double precision), now_us)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version, address = excluded.address,
        topology = excluded.topology, sequence = excluded.sequence, clients = excluded.clients, seen_at = now_us
        WHERE r.sequence < excluded.sequence
    RETURNING true INTO is_new;
    IF is_new IS NOT TRUE THEN
        RETURN false;
    END IF;
    -- In order of their keys, or two routers could wait for each other.
    INSERT INTO usage AS u (span, at, tenant, transactions, statements, rows, errors, limited, bytes_in, bytes_out,
                            server_us, wait_us, connections)
    SELECT s.span, s.at, t.tenant, t.transactions, t.statements, t.rows, t.errors, t.limited, t.bytes_in, t.bytes_out,
           t.server_us, t.wait_us, t.connections
    FROM jsonb_to_recordset(doc -> 'usage') AS t (tenant text, transactions bigint, statements bigint, rows bigint,
             errors bigint, limited bigint, bytes_in bigint, bytes_out bigint, server_us bigint, wait_us bigint,
             connections integer),
         (VALUES ('m'::"char", date_trunc('minute', now_us, 'UTC')), ('h', date_trunc('hour', now_us, 'UTC')),
                 ('d', date_trunc('day', now_us, 'UTC'))) AS s (span, at)
    ORDER BY t.tenant, s.span
    ON CONFLICT (tenant, span, at) DO UPDATE SET
        transactions = u.transactions + excluded.transactions, statements = u.statements + excluded.statements,
        rows = u.rows + excluded.rows, errors = u.errors + excluded.errors, limited = u.limited + excluded.limited,
        bytes_in = u.bytes_in + excluded.bytes_in, bytes_out = u.bytes_out + excluded.bytes_out,
        server_us = u.server_us + excluded.server_us, wait_us = u.wait_us + excluded.wait_us,
        connections = greatest(u.connections, excluded.connections);
    INSERT INTO sign_ins (at, tenant, username, source, method, outcome, count, router)
    SELECT date_trunc('minute', now_us), s.tenant, s.username, s.source, s.method, s.outcome, s.count, doc ->> 'id'
    FROM jsonb_to_recordset(doc -> 'sign_ins') AS s (tenant text, username text, source text, method text,
             outcome text, count bigint);
    RETURN true;
END $$;
REVOKE ALL ON FUNCTION report FROM PUBLIC;

CREATE OR REPLACE FUNCTION grant_router(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA switchyard TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON switchyard.topology_version, switchyard.settings,
            switchyard.buckets, switchyard.tenants, switchyard.placements, switchyard.users,
            switchyard.jwt_issuers, switchyard.deleted, switchyard.plans TO %I', role);
    EXECUTE format('REVOKE SELECT ON switchyard.shards FROM %I', role);
    EXECUTE format(
        'GRANT SELECT (name, host, port, database, login_user, login_password, tls, pool, cordoned, weight, created_at)
            ON switchyard.shards TO %I', role);
    EXECUTE format('GRANT INSERT (id) ON switchyard.tenants TO %I', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION switchyard.report TO %I', role);
END $$;
SELECT grant_routers_again();

CREATE TABLE webhooks (
    name       text COLLATE "C" PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 63),
    url        text NOT NULL,
    -- Signs what is sent, so it cannot be kept as a hash; sealed by a key of the control plane.
    kid        text NOT NULL,
    secret     bytea NOT NULL,
    -- Kinds of alert; all if empty.
    kinds      text[] NOT NULL DEFAULT '{}',
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What somebody should know. One that is still so is not told again.
CREATE TABLE alerts (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- `limit_near`, `limit_reached`, `health_changed`, `sign_in_attack`, ...
    kind       text NOT NULL,
    tenant     text COLLATE "C",
    -- What of the kind, such as the limit's name: with kind and tenant it tells alerts apart.
    subject    text NOT NULL,
    detail     jsonb NOT NULL,
    raised_at  timestamptz NOT NULL DEFAULT now(),
    cleared_at timestamptz
);
CREATE UNIQUE INDEX alerts_open ON alerts (kind, COALESCE(tenant, ''), subject) WHERE cleared_at IS NULL;
CREATE INDEX alerts_tenant ON alerts (tenant, id);

CREATE TABLE deliveries (
    alert      bigint NOT NULL REFERENCES alerts ON DELETE CASCADE,
    webhook    text COLLATE "C" NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    attempts   integer NOT NULL DEFAULT 0,
    next_at    timestamptz NOT NULL DEFAULT now(),
    done_at    timestamptz,
    last_error text,
    PRIMARY KEY (alert, webhook)
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE done_at IS NULL;

-- How each tenant was found to be.
CREATE TABLE tenant_health (
    tenant     text COLLATE "C" PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    status     text NOT NULL CHECK (status IN ('ok', 'degraded', 'down')),
    reasons    jsonb NOT NULL DEFAULT '[]',
    since      timestamptz NOT NULL DEFAULT now(),
    checked_at timestamptz NOT NULL DEFAULT now()
);
