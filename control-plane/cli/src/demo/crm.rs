//! The application: its schema on every shard, and rows for every tenant.

use switchyard_config::seal::SealKey;
use switchyard_shard_schema::install::{InstallOptions, Revokes, install};
use switchyard_shard_schema::keys;
use switchyard_shard_schema::protect::{Mode, ProtectOptions, apply};
use tokio_postgres::Client;

use super::postgres::{Cluster, connect};

/// The database of the application, on every shard.
pub(super) const DATABASE: &str = "crm";

/// The role that routers log in as: it owns nothing and is bound by every policy.
pub(super) const ROLE: &str = "crm_app";

const SCHEMA: &str = include_str!("crm.sql");

/// Names to make people of.
const FIRST: &str = "Ada,Alan,Barbara,Claude,Dorothy,Edgar,Edsger,Frances,Grace,Hedy,Joan,John,Katherine,Ken,\
                     Leslie,Margaret,Mary,Niklaus,Radia,Tony";
const LAST: &str = "Allen,Backus,Clarke,Codd,Dijkstra,Hamilton,Hoare,Hopper,Johnson,Keller,Lamarr,Lamport,Liskov,\
                    Lovelace,Perlman,Shannon,Thompson,Turing,Vaughan,Wirth";

/// Makes the database, its roles and its tables.
pub(super) async fn make(cluster: &Cluster, password: &str) -> anyhow::Result<()> {
    let admin = connect(&cluster.url("postgres")).await?;
    // The password is of our own making, without quotes.
    admin
        .batch_execute(&format!(
            "CREATE ROLE crm_owner NOLOGIN;
             CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD '{password}'"
        ))
        .await?;
    admin.batch_execute(&format!("CREATE DATABASE {DATABASE} OWNER crm_owner")).await?;
    connect(&cluster.url(DATABASE)).await?.batch_execute(SCHEMA).await?;
    Ok(())
}

/// Puts the schema of the seal on the shard, and policies that ask it in place of those that ask
/// a variable.
pub(super) async fn seal(cluster: &Cluster, key: &SealKey) -> anyhow::Result<()> {
    let mut admin = connect(&cluster.url(DATABASE)).await?;
    let revokes = Revokes { activity: true, signals: true, large_objects: true, advisory_locks: false };
    install(&mut admin, &InstallOptions { form: None, revokes }).await?;
    keys::add(&mut admin, std::slice::from_ref(key)).await?;
    let options = ProtectOptions {
        column: "tenant_id".to_owned(),
        mode: Mode::Sealed,
        tables: Vec::new(),
        replace: true,
    };
    apply(&mut admin, &options, 3000).await?;
    Ok(())
}

/// Writes a tenant's rows the way its application would: as the application's role, in the
/// tenant's context, naming no tenant. `size` makes the number of rows differ.
pub(super) async fn fill(app: &mut Client, tenant: &str, size: i32) -> anyhow::Result<()> {
    let t = app.transaction().await?;
    t.execute("SELECT set_config('app.tenant_id', $1, true)", &[&tenant]).await?;
    let campaigns = "INSERT INTO campaigns (name, budget)
        SELECT kind || ' ' || (2024 + n % 3), 1000 * (1 + n)
        FROM unnest(ARRAY['Spring', 'Trade fair', 'Newsletter', 'Referral']) WITH ORDINALITY AS k(kind, n)";
    t.execute(campaigns, &[]).await?;
    // The same names for the same tenant every time, and others for another.
    let people = "people AS (
        SELECT n, f[1 + (hashtext($1 || n || 'first') & 65535) % cardinality(f)] AS first,
               l[1 + (hashtext($1 || n || 'last') & 65535) % cardinality(l)] AS last
        FROM generate_series(1, $2::int) n, string_to_array($3, ',') f, string_to_array($4, ',') l)";
    let address = "lower(first || '.' || last) || n || '@' || regexp_replace(lower($1), '[^a-z0-9]+', '-', 'g') || '.example'";
    let clients = format!(
        "WITH {people} INSERT INTO clients (name, email) SELECT first || ' ' || last, {address} FROM people"
    );
    t.execute(&clients, &[&tenant, &(5 + size / 2), &FIRST, &LAST]).await?;
    let leads = format!(
        "WITH {people}, c AS (SELECT array_agg(id ORDER BY name) AS ids FROM campaigns)
         INSERT INTO leads (first_name, last_name, email, status, campaign_id)
         SELECT first, last, {address}, (ARRAY['new', 'open', 'won', 'lost'])[1 + n % 4], ids[1 + n % cardinality(ids)]
         FROM people, c"
    );
    t.execute(&leads, &[&tenant, &(10 + size), &FIRST, &LAST]).await?;
    let conversations = "INSERT INTO conversations (lead_id, client_id, channel, body)
        SELECT l.id, (SELECT c.id FROM clients c ORDER BY c.name LIMIT 1),
               (ARRAY['email', 'phone', 'chat'])[1 + n % 3], 'Hello ' || l.first_name
        FROM leads l, generate_series(1, 2) n";
    t.execute(conversations, &[]).await?;
    Ok(t.commit().await?)
}
