//! A tenant's place on its shard: made ready when the tenant is made, measured while it lives, and
//! cleared when it is deleted.
//!
//! What the place is follows from the tenant's context: a database of its own if the context names
//! one, else a schema of its own if the search path begins with one, else rows in shared tables.

use std::collections::VecDeque;
use std::time::Duration;

use switchyard_catalog::Tls;
use switchyard_config::template::{MAX_NAME_BYTES, render};
use switchyard_config::topology::{ContextTemplate, SslMode};
use tokio_postgres::config::SslMode as Asked;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

use crate::store::{Provision, ShardAccess, Store, StoreError, Tenant};

/// Deadline of connecting to a shard.
const CONNECT: Duration = Duration::from_secs(10);

/// Rows deleted at a time.
const BATCH: i64 = 10_000;

/// The column that tells tenants apart, unless the settings say otherwise.
const TENANT_COLUMN: &str = "tenant_id";

/// What a tenant's place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A database of its own.
    Database(String),
    /// A schema of its own.
    Schema(String),
    /// Rows of its own.
    Rows,
}

impl Place {
    /// What `context` makes of `tenant`.
    pub(crate) fn of(context: &ContextTemplate, tenant: &str) -> Self {
        // With two different ids, what depends on the tenant differs.
        let own = |template: &str| render(template, "a", "") != render(template, "b", "");
        if let Some(database) = context.database.as_deref().filter(|t| own(t)) {
            return Self::Database(render(database, tenant, ""));
        }
        let first = context.search_path.as_ref().and_then(|path| path.first());
        match first.filter(|t| own(t)) {
            Some(schema) => Self::Schema(render(schema, tenant, "")),
            None => Self::Rows,
        }
    }
}

/// A connection to a shard, and what of it is said in errors.
pub(crate) struct OnShard {
    pub(crate) client: Client,
    pub(crate) shard: String,
}

impl OnShard {
    /// Connects to `database`, or to the shard's own.
    pub(crate) async fn connect(access: &ShardAccess, database: Option<&str>) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Shard { shard: access.name.clone(), reason };
        let mut config = Config::new();
        config
            .host(&access.host)
            .port(access.port)
            .dbname(database.unwrap_or(&access.database))
            .user(&access.user)
            .application_name("switchyard-control-plane")
            .connect_timeout(CONNECT)
            .ssl_mode(match access.tls.mode {
                SslMode::Disable => Asked::Disable,
                SslMode::Allow | SslMode::Prefer => Asked::Prefer,
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Asked::Require,
            });
        if let Some(password) = &access.password {
            use secrecy::ExposeSecret;
            config.password(password.expose_secret());
        }
        let tls = Tls::new(&access.tls).map_err(|e| failed(e.to_string()))?;
        let connected = tokio::time::timeout(CONNECT, config.connect(tls)).await;
        let (client, connection) = match connected {
            Ok(connected) => connected.map_err(|e| failed(told(&e)))?,
            Err(_) => return Err(failed("it does not answer".to_owned())),
        };
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a shard ended");
            }
        });
        Ok(Self { client, shard: access.name.clone() })
    }

    pub(crate) fn failed(&self, error: &tokio_postgres::Error) -> StoreError {
        StoreError::Shard { shard: self.shard.clone(), reason: told(error) }
    }

    async fn has_schema(&self, name: &str) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
        Ok(self.client.query_one(sql, &[&name]).await.map_err(|e| self.failed(&e))?.get(0))
    }

    async fn run(&self, sql: &str) -> Result<(), StoreError> {
        self.client.batch_execute(sql).await.map_err(|e| self.failed(&e))
    }
}

fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

/// An identifier as SQL takes it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as SQL takes it, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Makes the place of a new tenant, and says in `made` what of it was not there before. A schema or database
/// that is there and has something in it is taken as it is.
pub(crate) async fn make_ready(
    store: &Store,
    tenant: &Tenant,
    made: &mut Option<Place>,
) -> Result<(), StoreError> {
    admit(store, tenant).await?;
    let (context, provision) = store.provisioning().await?;
    let context = tenant.context.clone().unwrap_or(context);
    let place = Place::of(&context, &tenant.id);
    if place == Place::Rows && provision.seed_sql.is_none() {
        return Ok(());
    }
    let Some(shard) = &tenant.shard else {
        return Err(StoreError::Conflict("there is no shard yet".to_owned()));
    };
    if let Place::Database(name) | Place::Schema(name) = &place
        && name.len() > MAX_NAME_BYTES
    {
        // PostgreSQL would cut it, and another tenant's name could become the same.
        let reason = format!(
            "is too long: its place on the shard would be named `{name}`, of more than {MAX_NAME_BYTES} bytes"
        );
        return Err(StoreError::invalid("id", reason));
    }
    let admin = store.shard_access(shard, true).await?;
    let login = store.shard_access(shard, false).await?;
    let empty = match &place {
        Place::Database(name) => {
            let new = make_database(&admin, &login, name, &provision).await?;
            if new {
                *made = Some(place.clone());
            }
            let own = OnShard::connect(&admin, Some(name)).await?;
            let empty = new || is_empty(&own, None).await?;
            if let Some(sql) = provision.schema_sql.as_ref().filter(|_| empty) {
                let role = context.role.as_ref().map(|role| render(role, &tenant.id, &login.user));
                let grants = grants("public", role.as_ref().unwrap_or(&login.user));
                own.run(&format!("BEGIN; {sql}; {grants} COMMIT")).await?;
            }
            empty
        }
        Place::Schema(name) => {
            let on = OnShard::connect(&admin, None).await?;
            let new = !on.has_schema(name).await?;
            let empty = new || is_empty(&on, Some(name)).await?;
            if empty {
                make_schema(&on, &login, &context, tenant, name, &provision).await?;
            }
            if new {
                *made = Some(place.clone());
            }
            empty
        }
        Place::Rows => true,
    };
    if !empty {
        return Ok(());
    }
    if let Some(seed) = &provision.seed_sql {
        let database = if let Place::Database(name) = &place { Some(name.as_str()) } else { None };
        let on = OnShard::connect(&login, database).await?;
        on.run(&format!("BEGIN; {}", context_sql(&context, &tenant.id, &login.user))).await?;
        on.run(seed).await?;
        on.run("COMMIT").await?;
    }
    Ok(())
}

/// Sets the tenant's context for a transaction, as a router would.
pub(crate) fn context_sql(context: &ContextTemplate, tenant: &str, user: &str) -> String {
    let mut sql = String::new();
    for (name, template) in &context.variables {
        let value = literal(&render(template, tenant, user));
        sql += &format!("SELECT set_config({}, {value}, true);", literal(name));
    }
    if let Some(path) = &context.search_path {
        let schemas: Vec<_> = path
            .iter()
            .map(|s| if s == "\"$user\"" { s.clone() } else { quoted(&render(s, tenant, user)) })
            .collect();
        sql += &format!("SET LOCAL search_path = {};", schemas.join(", "));
    }
    if let Some(role) = &context.role {
        sql += &format!("SET LOCAL ROLE {};", quoted(&render(role, tenant, user)));
    }
    sql
}

async fn make_database(
    admin: &ShardAccess,
    login: &ShardAccess,
    name: &str,
    provision: &Provision,
) -> Result<bool, StoreError> {
    let on = OnShard::connect(admin, None).await?;
    let template = provision.template_database.as_deref();
    let from = template.map(|t| format!(" TEMPLATE {}", quoted(t))).unwrap_or_default();
    let new = match on.client.batch_execute(&format!("CREATE DATABASE {}{from}", quoted(name))).await {
        Err(e) if e.code() == Some(&SqlState::DUPLICATE_DATABASE) => false,
        made => made.map(|()| true).map_err(|e| on.failed(&e))?,
    };
    // Nobody else's tenant may come in by its name.
    on.run(&format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", quoted(name))).await?;
    on.run(&format!("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}", quoted(name), quoted(&login.user)))
        .await?;
    Ok(new)
}

/// Whether there is no relation, in a schema or in all that are not the system's.
async fn is_empty(on: &OnShard, schema: Option<&str>) -> Result<bool, StoreError> {
    let sql = "SELECT NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = $1 OR ($1 IS NULL AND n.nspname NOT LIKE 'pg\\_%'
                       AND n.nspname NOT IN ('information_schema', 'switchyard')))";
    Ok(on.client.query_one(sql, &[&schema]).await.map_err(|e| on.failed(&e))?.get(0))
}

async fn make_schema(
    on: &OnShard,
    login: &ShardAccess,
    context: &ContextTemplate,
    tenant: &Tenant,
    name: &str,
    provision: &Provision,
) -> Result<(), StoreError> {
    let mut owner = login.user.clone();
    let mut sql = String::from("BEGIN;");
    if let Some(role) = &context.role {
        owner = render(role, &tenant.id, &login.user);
        let there = on.client.query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&owner]).await;
        if there.map_err(|e| on.failed(&e))?.is_none() {
            sql +=
                &format!("CREATE ROLE {0} NOLOGIN; GRANT {0} TO {1};", quoted(&owner), quoted(&login.user));
        }
    }
    let schema = quoted(name);
    sql += &format!("CREATE SCHEMA IF NOT EXISTS {schema}; SET LOCAL search_path = {schema};");
    sql += provision.schema_sql.as_deref().unwrap_or_default();
    // Tables stay the administrator's: whoever owns a table could take its guards away.
    sql += &format!("; {} COMMIT", grants(name, &owner));
    on.run(&sql).await
}

/// What a tenant's role needs of the tables in a schema.
fn grants(schema: &str, role: &str) -> String {
    let (schema, role) = (quoted(schema), quoted(role));
    format!(
        "GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};
         GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role};
         GRANT EXECUTE ON ALL ROUTINES IN SCHEMA {schema} TO {role};"
    )
}

/// Undoes what [`make_ready`] made for a tenant that could not be made, and nothing that was there before. What
/// cannot be undone is logged: nobody waits for it any more.
pub(crate) async fn take_away(store: &Store, tenant: &Tenant, made: Option<Place>) {
    let (Some(made), Some(shard)) = (made, &tenant.shard) else { return };
    let undone = async {
        let on = OnShard::connect(&store.shard_access(shard, true).await?, None).await?;
        drop_place(&on, &made).await
    };
    if let Err(error) = undone.await {
        tracing::warn!(tenant = tenant.id, %error, "what was made for a tenant is left on its shard");
    }
}

async fn drop_place(on: &OnShard, place: &Place) -> Result<(), StoreError> {
    match place {
        Place::Database(name) => {
            on.run(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
        }
        Place::Schema(name) => on.run(&format!("DROP SCHEMA IF EXISTS {} CASCADE", quoted(name))).await,
        Place::Rows => Ok(()),
    }
}

/// Lets a tenant in on the shard where it has been put, if a move has taken it away from there once: the fence
/// there would send routers after it for ever.
///
/// # Errors
/// If the shard's administrator may not change the fence.
pub(crate) async fn admit(store: &Store, tenant: &Tenant) -> Result<(), StoreError> {
    let Some(shard) = &tenant.shard else { return Ok(()) };
    if !store.has_moved_from(&tenant.id, shard).await? {
        return Ok(());
    }
    let on = OnShard::connect(&store.shard_access(shard, true).await?, None).await?;
    let there = on.client.query_one("SELECT to_regclass('switchyard.fence') IS NOT NULL", &[]).await;
    if !there.map_err(|e| on.failed(&e))?.get::<_, bool>(0) {
        return Ok(());
    }
    // One that a move holds is the move's.
    let sql = "UPDATE switchyard.fence SET state = 'active', epoch = greatest(epoch, $2), moved_to = NULL,
                      changed_at = clock_timestamp()
               WHERE tenant_id = $1 AND move_id IS NULL AND state <> 'active'";
    match on.client.execute(sql, &[&tenant.id, &tenant.epoch]).await {
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Err(StoreError::Conflict(format!(
            "the fence on shard `{shard}` sends tenant `{0}` away since a move, and the shard's administrator may not \
             change it; as a role that may: UPDATE switchyard.fence SET state = 'active', moved_to = NULL \
             WHERE tenant_id = {1}",
            tenant.id,
            literal(&tenant.id)
        ))),
        done => done.map(drop).map_err(|e| on.failed(&e)),
    }
}

/// Deletes everything that a tenant has on its shard. Returns the rows deleted, as far as they
/// were counted.
pub(crate) async fn clear(store: &Store, tenant: &Tenant) -> Result<u64, StoreError> {
    let (context, provision) = store.provisioning().await?;
    let context = tenant.context.clone().unwrap_or(context);
    let Some(shard) = &tenant.shard else { return Ok(0) };
    let admin = store.shard_access(shard, true).await?;
    let on = OnShard::connect(&admin, None).await?;
    match Place::of(&context, &tenant.id) {
        Place::Rows => {
            let column = provision.tenant_column.as_deref().unwrap_or(TENANT_COLUMN);
            delete_rows(&on, &context, &admin.user, column, &tenant.id).await
        }
        own => drop_place(&on, &own).await.map(|()| 0),
    }
}

/// Tables with a column of this name, as `schema.table`, quoted, with their size in bytes.
pub(crate) async fn tables_with(on: &OnShard, column: &str) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname), pg_total_relation_size(c.oid)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $1 AND NOT a.attisdropped
               WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'switchyard')
                 AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1";
    let rows = on.client.query(sql, &[&column]).await.map_err(|e| on.failed(&e))?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
}

/// Deletes a tenant's rows from every table, in an order that foreign keys allow.
async fn delete_rows(
    on: &OnShard,
    context: &ContextTemplate,
    user: &str,
    column: &str,
    tenant: &str,
) -> Result<u64, StoreError> {
    let mut left: VecDeque<String> = tables_with(on, column).await?.into_iter().map(|t| t.0).collect();
    let (mut deleted, mut without_progress) = (0, 0);
    while let Some(table) = left.pop_front() {
        match delete_from(on, context, user, column, tenant, &table).await {
            Ok(rows) => {
                deleted += rows;
                without_progress = 0;
            }
            // Something refers to it: after the others.
            Err(e)
                if e.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) && without_progress <= left.len() =>
            {
                on.run("ROLLBACK").await?;
                without_progress += 1;
                left.push_back(table);
            }
            Err(e) => {
                let failed = on.failed(&e);
                let _ = on.run("ROLLBACK").await;
                return Err(failed);
            }
        }
    }
    Ok(deleted)
}

async fn delete_from(
    on: &OnShard,
    context: &ContextTemplate,
    user: &str,
    column: &str,
    tenant: &str,
    table: &str,
) -> Result<u64, tokio_postgres::Error> {
    // Compared as text: the column may be a uuid or a number.
    let sql = format!(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {}::text = $1 LIMIT {BATCH}))",
        quoted(column)
    );
    let mut deleted = 0;
    loop {
        // In the tenant's context too: where the role is bound by row-level security, it sees no
        // rows without it. Only the variables: the role itself must be allowed to delete.
        let variables =
            ContextTemplate { variables: context.variables.clone(), ..ContextTemplate::default() };
        on.client.batch_execute(&format!("BEGIN; {}", context_sql(&variables, tenant, user))).await?;
        let rows = on.client.execute(&sql, &[&tenant]).await?;
        on.client.batch_execute("COMMIT").await?;
        deleted += rows;
        if rows < BATCH as u64 {
            return Ok(deleted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_follows_from_the_context() {
        let context = |database: Option<&str>, path: Option<&[&str]>| ContextTemplate {
            database: database.map(str::to_owned),
            search_path: path.map(|p| p.iter().map(|s| (*s).to_owned()).collect()),
            ..ContextTemplate::default()
        };
        let of = |c: ContextTemplate| Place::of(&c, "acme");
        assert_eq!(of(context(None, None)), Place::Rows);
        assert_eq!(of(context(None, Some(&["public"]))), Place::Rows);
        assert_eq!(of(context(None, Some(&["t_{tenant}", "public"]))), Place::Schema("t_acme".into()));
        assert_eq!(of(context(Some("db_{tenant}"), None)), Place::Database("db_acme".into()));
        assert_eq!(of(context(Some("shared"), None)), Place::Rows);
    }

    #[test]
    fn ids_cannot_leave_their_quotes() {
        assert_eq!(quoted("a\"; DROP"), "\"a\"\"; DROP\"");
        assert_eq!(literal("a'\\'; DROP"), "E'a''\\\\''; DROP'");
        let context = ContextTemplate {
            variables: [("app.tenant_id".to_owned(), "{tenant}".to_owned())].into(),
            search_path: Some(vec!["t_{tenant}".to_owned()]),
            ..ContextTemplate::default()
        };
        assert_eq!(
            context_sql(&context, "x'\"", "u"),
            "SELECT set_config(E'app.tenant_id', E'x''\"', true);SET LOCAL search_path = \"t_x'\"\"\";"
        );
    }
}
