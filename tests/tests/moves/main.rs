//! Tenants on the move: real shards, routers, drivers, and writers that never stop.

mod asked;
mod back;
mod basics;
mod chaos;
mod crash;
mod disk;
mod drain;
mod forsaken;
mod late;
mod load;
mod loss;
mod many;
mod many_tables;
mod models;
mod page;
mod passwords;
mod pieces;
mod policy;
mod quiet;
mod reading;
mod retained;
mod routers;
mod shapes;
mod slots;
mod stuck;
mod suitable;
mod synchronous;
mod throughput;
mod world;
mod zombies;

/// Tables of the workloads, on every shard.
pub(crate) const TABLES: &str = "
CREATE TABLE ledger (
    tenant_id text NOT NULL DEFAULT current_setting('app.tenant_id', true),
    client int, seq bigint, at timestamptz DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, client, seq)
);
CREATE TABLE accounts (
    tenant_id text NOT NULL DEFAULT current_setting('app.tenant_id', true),
    id int, balance bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE TABLE bench_accounts (LIKE accounts INCLUDING ALL);
CREATE TABLE bench_tellers (LIKE accounts INCLUDING ALL);
CREATE TABLE bench_branches (LIKE accounts INCLUDING ALL);
CREATE TABLE bench_history (
    tenant_id text NOT NULL DEFAULT current_setting('app.tenant_id', true),
    id uuid DEFAULT gen_random_uuid(), teller int, account int, delta bigint, at timestamptz DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
DO $$ DECLARE t text; BEGIN
    FOREACH t IN ARRAY ARRAY['ledger', 'accounts', 'bench_accounts', 'bench_tellers', 'bench_branches',
                             'bench_history'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''app.tenant_id'', true))', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO app', t);
    END LOOP;
END $$;
";
