//! A schema or a database of a tenant's own, made on the target as it is on the source, and taken away where it is not
//! needed any more.

use std::process::Stdio;

use secrecy::ExposeSecret;
use switchyard_config::topology::SslMode;
use tokio::process::Command;

use crate::MoveError;
use crate::inventory::FOREIGN;
use crate::scope::{Model, ident, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// Longest text of a structure, in bytes.
const TEXT_BYTES: usize = 64 << 20;

/// The program that writes a structure down, of the source's version or a later one.
pub(crate) const PG_DUMP: &str = "pg_dump";

/// What of the output is for psql and not for the server.
fn is_for_psql(line: &str) -> bool {
    line.starts_with("\\restrict") || line.starts_with("\\unrestrict")
}

/// Makes the tenant's database on the target, with the encoding, the locale and the rights that it has on the source.
/// `from` and `to` are connected to any database of their clusters.
pub(crate) async fn make_database(
    (from, source): (&Session, &ShardAccess),
    (to, target): (&Session, &ShardAccess),
    name: &str,
) -> Result<(), MoveError> {
    let sql = "SELECT pg_encoding_to_char(encoding), datcollate, datctype, datacl IS NOT NULL
               FROM pg_database WHERE datname = $1";
    let row = from.query_one(sql, &[&name]).await.map_err(source.failed())?;
    let create = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        literal(row.get(0)),
        literal(row.get(1)),
        literal(row.get(2))
    );
    match to.batch_execute(&create).await {
        // A mover before us has made it.
        Err(error) if error.code().is_some_and(|c| c.code() == "42P04") => {}
        made => made.map_err(target.failed())?,
    }
    if !row.get::<_, bool>(3) {
        return Ok(());
    }
    let sql = "SELECT format('GRANT %s ON DATABASE %I TO %s', a.privilege_type, d.datname,
                             CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
               FROM pg_database d, aclexplode(d.datacl) a
               WHERE d.datname = $1 AND a.grantee <> d.datdba";
    to.batch_execute(&format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", ident(name)))
        .await
        .map_err(target.failed())?;
    for grant in from.query(sql, &[&name]).await.map_err(source.failed())? {
        to.batch_execute(grant.get(0)).await.map_err(target.failed())?;
    }
    Ok(())
}

/// Makes on the target, in one transaction, what the source has of the tenant's schema, or in its database.
pub(crate) async fn make(
    source: &ShardAccess,
    (to, target): (&Session, &ShardAccess),
    model: &Model,
) -> Result<(), MoveError> {
    let mut text = String::from("BEGIN;\n");
    text += &dump(source, model).await?;
    // What it sets is for its own session.
    text += "\nCOMMIT; RESET ALL";
    let made = to.batch_execute(&text).await;
    if made.is_err() {
        let _ = to.batch_execute("ROLLBACK").await;
    }
    made.map_err(target.failed())
}

async fn dump(source: &ShardAccess, model: &Model) -> Result<String, MoveError> {
    let failed = |reason: String| {
        MoveError::Invalid(format!(
            "the structure of the tenant on shard {} cannot be read with {PG_DUMP}: {reason}",
            source.name
        ))
    };
    let mut command = Command::new(PG_DUMP);
    command.args(["--schema-only", "--no-publications", "--no-subscriptions", "--no-password"]);
    match model {
        // Quoted, or it would be a pattern.
        Model::Schema { schema } => command.arg(format!("--schema={}", ident(schema))),
        Model::Rows { .. } | Model::Database { .. } => command.arg("--exclude-schema=switchyard"),
    };
    let mode = match source.tls.mode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    command
        .env("PGHOST", &source.host)
        .env("PGPORT", source.port.to_string())
        .env("PGDATABASE", &source.database)
        .env("PGUSER", &source.user)
        .env("PGSSLMODE", mode)
        .env("PGAPPNAME", "switchyard-mover");
    if let Some(roots) = &source.tls.root_cert {
        command.env("PGSSLROOTCERT", roots);
    }
    if let Some(password) = &source.password {
        // Not an argument: those are everybody's to see.
        command.env("PGPASSWORD", password.expose_secret());
    }
    let child = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = child.await.map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    if output.stdout.len() > TEXT_BYTES {
        return Err(failed(format!("it is longer than {TEXT_BYTES} bytes")));
    }
    let text = String::from_utf8(output.stdout).map_err(|e| failed(e.to_string()))?;
    let lines = text.lines().filter(|line| !is_for_psql(line));
    // An empty one may be there already.
    let lines = lines.map(|line| match line.strip_prefix("CREATE SCHEMA ") {
        Some(name) => format!("CREATE SCHEMA IF NOT EXISTS {name}"),
        None => line.to_owned(),
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Fills the materialized views of the tenant's own that are filled on the source: what makes the structure leaves them
/// empty, and what was there before may be old. They are as old as this then, not as on the source.
pub(crate) async fn refresh(
    (from, source): (&Session, &ShardAccess),
    (to, target): (&Session, &ShardAccess),
    model: &Model,
) -> Result<(), MoveError> {
    let (condition, value) = match model {
        Model::Rows { .. } => return Ok(()),
        Model::Schema { schema } => ("n.nspname = $1", schema.as_str()),
        Model::Database { .. } => ("$1::text = $1", ""),
    };
    // One that reads another was made after it.
    let sql = |further: &str| {
        format!(
            "SELECT format('%I.%I', n.nspname, c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'm' AND {FOREIGN} AND {condition} {further} ORDER BY c.oid"
        )
    };
    let filled =
        from.client().query(&sql("AND c.relispopulated"), &[&value]).await.map_err(source.failed())?;
    let filled: Vec<String> = filled.iter().map(|row| row.get(0)).collect();
    for row in to.client().query(&sql(""), &[&value]).await.map_err(target.failed())? {
        let view: String = row.get(0);
        if filled.contains(&view) {
            let sql = format!("REFRESH MATERIALIZED VIEW {view}");
            to.batch_execute(&sql).await.map_err(target.failed())?;
        }
    }
    Ok(())
}

/// Whether the program is there.
pub(crate) async fn can_dump() -> bool {
    let mut command = Command::new(PG_DUMP);
    let asked = command.arg("--version").stdin(Stdio::null()).kill_on_drop(true).output().await;
    asked.is_ok_and(|output| output.status.success())
}

/// Drops what was the tenant's own. `client` is connected to another database than the one that is dropped.
pub(crate) async fn remove(client: &Session, at: &ShardAccess, model: &Model) -> Result<(), MoveError> {
    let sql = match model {
        Model::Rows { .. } => return Ok(()),
        Model::Schema { schema } => format!("DROP SCHEMA IF EXISTS {} CASCADE", ident(schema)),
        Model::Database { database } => format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(database)),
    };
    client.batch_execute(&sql).await.map_err(at.failed())
}
