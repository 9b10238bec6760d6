-- Tables of the schema `switchyard` on a shard. Run by `switchyard schema install`, with
-- search_path = pg_catalog, pg_temp and as the role switchyard_owner, which owns all of it.
--
-- A role that applications run as has USAGE on the schema, EXECUTE on its functions, and no right on
-- any table or sequence in it.

-- Which tenants may run here, at which epoch. A tenant without a row may run, at any epoch. With
-- one, it may run if the state is `active` and its epoch is not below the row's.
CREATE TABLE switchyard.fence (
    tenant_id  text COLLATE "C" PRIMARY KEY CHECK (octet_length(tenant_id) BETWEEN 1 AND 128),
    epoch      bigint NOT NULL CHECK (epoch >= 0),
    -- active: served here. frozen: held for the cutover of a move. moved: lives elsewhere now.
    -- importing: arrives here, and is not complete. aborted: an arrival that was given up.
    state      text NOT NULL CHECK (state IN ('active', 'frozen', 'moved', 'importing', 'aborted')),
    -- The move that wrote the row.
    move_id    text,
    -- The shard that the tenant lives on, where it is another one.
    moved_to   text CHECK (octet_length(moved_to) <= 63),
    -- Where the write-ahead log stood when the state was set.
    fence_lsn  pg_lsn,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- Keys that routers sign with: the two blocks of HMAC-SHA256 (RFC 2104), so that a token costs two
-- hashes to check.
CREATE TABLE switchyard.seal_key (
    kid      integer PRIMARY KEY CHECK (kid > 0),
    k_in     bytea NOT NULL CHECK (octet_length(k_in) = 64),
    k_out    bytea NOT NULL CHECK (octet_length(k_out) = 64),
    added_at timestamptz NOT NULL DEFAULT now()
);

-- Server processes that routers use. A token is good for one of these, once: the counter holds the
-- number of the last token that was used. The counters are unlogged sequences, because setval on
-- one of them is neither undone by a rollback nor costs a transaction id; the nonce, new with each
-- connection, makes up for their beginning anew after a crash.
CREATE TABLE switchyard.backend (
    slot    integer PRIMARY KEY,
    pid     integer NOT NULL,
    nonce   bigint NOT NULL,
    counter regclass NOT NULL
);
CREATE INDEX backend_pid ON switchyard.backend (pid);

-- Where the tenant of a session is kept that has been entered.
CREATE TABLE switchyard.setting (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- parameter: in a parameter that only this schema's owner may set. sequence: as a number, by
    -- a sequence that only it may set.
    form text NOT NULL CHECK (form IN ('parameter', 'sequence')),
    -- Checksum of the functions that are installed.
    functions bytea
);

-- The form `sequence`: the numbers, and the sequence whose value a session has of its own.
CREATE TABLE switchyard.entered (
    n         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL,
    epoch     bigint NOT NULL,
    UNIQUE (tenant_id, epoch)
);
CREATE UNLOGGED SEQUENCE switchyard.session_tenant;

-- Migrations of the application that `switchyard schema apply` has run here, by the schema that they were
-- run for (empty where there is one for all tenants).
CREATE TABLE switchyard.migrations (
    target     text NOT NULL,
    name       text NOT NULL,
    checksum   bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    took_ms    bigint NOT NULL,
    PRIMARY KEY (target, name)
);
