-- The catalog, within schema `switchyard`, which is the search path while this runs.
--
-- What routers read (everything down to jwt_issuers) is guarded by triggers: a transaction that
-- writes any of it takes the one row of topology_version first and raises it, so versions commit
-- in order, and who has read version n has seen every change up to n.

CREATE TABLE topology_version (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    version        bigint NOT NULL,
    -- The version at which anything but tenants and users last changed.
    layout_version bigint NOT NULL,
    -- The transaction that raised it last: one transaction raises it once.
    bumped_by      xid8
);
INSERT INTO topology_version (version, layout_version) VALUES (1, 1);

CREATE TABLE settings (
    one             boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- The context of tenants that have none of their own.
    context         jsonb NOT NULL DEFAULT '{}',
    unknown_tenants text NOT NULL DEFAULT 'refuse' CHECK (unknown_tenants IN ('refuse', 'create'))
);
INSERT INTO settings DEFAULT VALUES;

CREATE TABLE shards (
    name           text COLLATE "C" PRIMARY KEY
                   CHECK (name ~ '^[A-Za-z0-9_.-]+$' AND octet_length(name) <= 63),
    host           text NOT NULL CHECK (host <> ''),
    port           integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    database       text NOT NULL CHECK (database <> ''),
    login_user     text NOT NULL CHECK (login_user <> ''),
    -- Routers must log in with it, so it cannot be a verifier. No API answers with it.
    login_password text,
    -- sslmode and files, by libpq's names.
    tls            jsonb NOT NULL DEFAULT '{}',
    -- Pool limits that differ from the defaults; times in seconds.
    pool           jsonb NOT NULL DEFAULT '{}',
    cordoned       boolean NOT NULL DEFAULT false,
    created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE buckets (
    bucket integer PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095),
    shard  text COLLATE "C" NOT NULL REFERENCES shards
);
CREATE INDEX buckets_shard ON buckets (shard);

CREATE TABLE tenants (
    id              text COLLATE "C" PRIMARY KEY
                    CHECK (octet_length(id) BETWEEN 1 AND 128 AND id !~ '[\x01-\x1f\x7f-\x9f]'),
    name            text,
    state           text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
    pool_mode       text CHECK (pool_mode IN ('transaction', 'session')),
    context         jsonb,
    -- Issuers whose tokens are accepted for this tenant only; an array as in jwt_issuers.doc.
    jwt             jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(jwt) = 'array'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    changed_version bigint NOT NULL DEFAULT 0
);
CREATE INDEX tenants_changed ON tenants (changed_version);

CREATE TABLE placements (
    tenant     text COLLATE "C" PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    shard      text COLLATE "C" NOT NULL REFERENCES shards,
    epoch      bigint NOT NULL CHECK (epoch > 0),
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX placements_shard ON placements (shard);

CREATE TABLE users (
    name            text PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 256),
    -- As in pg_authid: SCRAM-SHA-256$... or md5...; never a password.
    verifier        text CHECK (verifier ~ '^(SCRAM-SHA-256\$|md5)'),
    methods         jsonb NOT NULL DEFAULT '{}',
    -- For whom the user may act: the tenants listed, or all of them.
    any_tenant      boolean NOT NULL DEFAULT false,
    tenants         text[] NOT NULL DEFAULT '{}',
    pool_mode       text CHECK (pool_mode IN ('transaction', 'session')),
    -- The role on the shards, where it is not the shard's own login.
    server_user     text,
    server_password text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    changed_version bigint NOT NULL DEFAULT 0,
    CHECK (any_tenant <> (cardinality(tenants) > 0))
);
CREATE INDEX users_changed ON users (changed_version);
CREATE INDEX users_tenants ON users USING gin (tenants);

CREATE TABLE jwt_issuers (
    name text PRIMARY KEY,
    doc  jsonb NOT NULL CHECK (jsonb_typeof(doc) = 'object')
);

-- What is gone, so that a reader can catch up without reading everything, and so that the epoch
-- of a tenant made again goes on from where it was.
CREATE TABLE deleted (
    kind    text NOT NULL CHECK (kind IN ('tenant', 'user', 'placement')),
    id      text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    epoch   bigint,
    PRIMARY KEY (kind, id)
);
CREATE INDEX deleted_version ON deleted (version);

-- Not read by routers.

CREATE TABLE api_tokens (
    name       text PRIMARY KEY,
    hash       bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    role       text NOT NULL CHECK (role IN ('admin', 'operator', 'viewer', 'metrics')),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);

CREATE TABLE audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text NOT NULL,
    action text NOT NULL,
    kind   text NOT NULL,
    target text NOT NULL,
    before jsonb,
    after  jsonb
);
CREATE INDEX audit_target ON audit (kind, target, id);

-- Triggers. They run as the owner of the catalog, so that a router needs no right to write the version.

CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
DECLARE
    layout boolean := TG_NARGS > 0 AND TG_ARGV[0] = 'layout';
    this   xid8 := pg_current_xact_id();
BEGIN
    UPDATE topology_version SET version = version + 1, bumped_by = this
     WHERE bumped_by IS DISTINCT FROM this;
    IF layout THEN
        UPDATE topology_version SET layout_version = version WHERE layout_version <> version;
    END IF;
    -- No payload: equal notifications of one transaction are sent once.
    PERFORM pg_notify('switchyard_topology', '');
    RETURN NULL;
END $$;

CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
BEGIN
    NEW.changed_version := (SELECT version FROM topology_version);
    RETURN NEW;
END $$;

CREATE FUNCTION bury() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
DECLARE
    gone jsonb := to_jsonb(OLD);
BEGIN
    INSERT INTO deleted (kind, id, version, epoch)
    SELECT TG_ARGV[0], gone ->> TG_ARGV[1], version, (gone ->> 'epoch')::bigint FROM topology_version
    ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version, epoch = excluded.epoch;
    RETURN NULL;
END $$;

-- A placement is read as part of its tenant.
CREATE FUNCTION touch_tenant() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
BEGIN
    UPDATE tenants SET changed_version = 0 WHERE id = COALESCE(NEW.tenant, OLD.tenant);
    RETURN NULL;
END $$;

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is not allowed', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;

CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON settings EXECUTE FUNCTION bump('layout');
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON shards EXECUTE FUNCTION bump('layout');
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON buckets EXECUTE FUNCTION bump('layout');
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON jwt_issuers EXECUTE FUNCTION bump('layout');
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON tenants EXECUTE FUNCTION bump();
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON placements EXECUTE FUNCTION bump();
CREATE TRIGGER bump BEFORE INSERT OR UPDATE OR DELETE ON users EXECUTE FUNCTION bump();

CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER bury AFTER DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION bury('tenant', 'id');
CREATE TRIGGER bury AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION bury('user', 'name');
CREATE TRIGGER bury AFTER DELETE ON placements FOR EACH ROW EXECUTE FUNCTION bury('placement', 'tenant');
CREATE TRIGGER touch_tenant AFTER INSERT OR UPDATE OR DELETE ON placements
    FOR EACH ROW EXECUTE FUNCTION touch_tenant();

-- TRUNCATE fires no row triggers, so readers would never learn of it.
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON tenants EXECUTE FUNCTION refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON users EXECUTE FUNCTION refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON placements EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION refuse();

-- What a router's role needs: to read what it serves by, and to write a tenant's first login.
CREATE FUNCTION grant_router(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA switchyard TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON switchyard.topology_version, switchyard.settings, switchyard.shards,
            switchyard.buckets, switchyard.tenants, switchyard.placements, switchyard.users,
            switchyard.jwt_issuers, switchyard.deleted TO %I', role);
    EXECUTE format('GRANT INSERT (id) ON switchyard.tenants TO %I', role);
END $$;
REVOKE ALL ON FUNCTION grant_router FROM PUBLIC;
