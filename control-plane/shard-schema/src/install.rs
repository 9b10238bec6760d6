//! Putting the schema on a shard, bringing it up to date, and taking it away.

use std::fmt;

use aws_lc_rs::digest;
use serde::Serialize;
use tokio_postgres::{Client, GenericClient, Transaction};

use crate::{OWNER, SCHEMA, SchemaError, quote_ident};

/// The steps that make tables, in order. What is released is never edited: its checksum is on every shard.
const STEPS: &[(&str, &str)] = &[
    ("fence and seal", include_str!("../sql/0001_fence_and_seal.sql")),
    ("moves", include_str!("../sql/0002_moves.sql")),
    ("copies", include_str!("../sql/0003_copies.sql")),
    ("closed", include_str!("../sql/0004_closed.sql")),
    ("closed schemas", include_str!("../sql/0005_closed_schemas.sql")),
];

/// The steps that have been applied.
const STEP_TABLE: &str = "CREATE TABLE IF NOT EXISTS switchyard.schema_step (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)";

/// Functions and grants, which are replaced as a whole each time.
const FUNCTIONS: &str = concat!(include_str!("../sql/functions.sql"), "\n", include_str!("../sql/moves.sql"));
const FORM_PARAMETER: &str = include_str!("../sql/form_parameter.sql");
const FORM_SEQUENCE: &str = include_str!("../sql/form_sequence.sql");
const GRANTS: &str = include_str!("../sql/grants.sql");

/// The parameter that holds the tenant in the form `parameter`.
pub const PARAMETER: &str = "backtrace_functions";

/// Key of the advisory lock under which one installation at a time runs: `swyd-shd` in ASCII.
const LOCK: i64 = 0x7377_7964_2d73_6864;

/// Where a shard keeps the tenant of a session that has entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// In a parameter that only the schema's owner may set. A superuser must grant that once.
    Parameter,
    /// As a session's own value of a sequence. Costs a little more, and needs no superuser.
    Sequence,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parameter => "parameter",
            Self::Sequence => "sequence",
        })
    }
}

impl Form {
    fn sql(self) -> &'static str {
        match self {
            Self::Parameter => FORM_PARAMETER,
            Self::Sequence => FORM_SEQUENCE,
        }
    }
}

/// What is taken from PUBLIC, because it shows or harms sessions of the same role, which all
/// tenants share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Revokes {
    /// Functions that show what other sessions of the same role run (`pg_stat_activity`).
    pub activity: bool,
    /// Functions that cancel and end other sessions of the same role.
    pub signals: bool,
    /// Functions of large objects, which know roles and no tenants.
    pub large_objects: bool,
    /// Functions of advisory locks, which all tenants of a database share.
    pub advisory_locks: bool,
}

impl Revokes {
    /// The SQL of it.
    pub fn sql(self) -> String {
        let mut sql = String::new();
        let mut from_public = |functions: &str| {
            sql += &format!("REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC;\n");
        };
        if self.activity {
            let shown =
                "pg_catalog.pg_stat_get_activity(integer), pg_catalog.pg_stat_get_backend_activity(integer)";
            from_public(shown);
        }
        if self.signals {
            from_public(
                "pg_catalog.pg_cancel_backend(integer), pg_catalog.pg_terminate_backend(integer, bigint)",
            );
        }
        if self.large_objects {
            from_public(
                "pg_catalog.lo_open(oid, integer), pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid),
    pg_catalog.lo_unlink(oid), pg_catalog.lo_get(oid), pg_catalog.lo_get(oid, bigint, integer),
    pg_catalog.lo_put(oid, bigint, bytea), pg_catalog.lo_from_bytea(oid, bytea)",
            );
        }
        if self.advisory_locks {
            let kinds = [
                "pg_advisory_lock",
                "pg_advisory_xact_lock",
                "pg_try_advisory_lock",
                "pg_try_advisory_xact_lock",
            ];
            let all = kinds.iter().flat_map(|kind| {
                ["", "_shared"].map(|mode| {
                    format!("pg_catalog.{kind}{mode}(bigint), pg_catalog.{kind}{mode}(integer, integer)")
                })
            });
            from_public(&all.collect::<Vec<_>>().join(",\n    "));
        }
        if self.activity {
            sql += "GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_get_activity(integer),
    pg_catalog.pg_stat_get_backend_activity(integer) TO pg_monitor, switchyard_owner;\n";
        }
        sql
    }
}

/// How it is to be installed.
#[derive(Debug, Clone, Copy, Default)]
pub struct InstallOptions {
    /// The form of the seal; the form that is installed, or the best that can be had, if not given.
    pub form: Option<Form>,
    /// What is taken from PUBLIC.
    pub revokes: Revokes,
}

/// What is on a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Steps applied.
    pub version: usize,
    /// Steps that this program has.
    pub latest: usize,
    /// Whether the functions are those of this program.
    pub current: bool,
    /// The form of the seal.
    pub form: Form,
    /// The numbers of the keys that are accepted.
    pub keys: Vec<u32>,
    /// Tenants that the fence keeps out.
    pub fenced: i64,
    /// Policies that ask for the tenant here.
    pub policies: i64,
}

/// What installing did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Steps that were applied.
    pub steps: usize,
    /// The form of the seal.
    pub form: Form,
}

fn checksum(sql: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, sql.as_bytes()).as_ref().to_owned()
}

fn functions_checksum(form: Form) -> Vec<u8> {
    checksum(&[FUNCTIONS, form.sql(), GRANTS].concat())
}

/// The SQL of a first installation, to be read, or run by other means.
pub fn script(form: Form, revokes: Revokes) -> String {
    use std::fmt::Write;
    let hex = |bytes: Vec<u8>| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let mut sql = format!("BEGIN;\n{}", role_sql(form));
    sql += &format!("CREATE SCHEMA {SCHEMA} AUTHORIZATION {OWNER};\nSET LOCAL ROLE {OWNER};\n");
    sql += &format!("SET LOCAL search_path = pg_catalog, pg_temp;\n\n{STEP_TABLE};\n\n");
    for (i, (name, step)) in STEPS.iter().enumerate() {
        let sum = hex(checksum(step));
        let _ = writeln!(
            sql,
            "{step}INSERT INTO {SCHEMA}.schema_step VALUES ({}, '{name}', '\\x{sum}');\n",
            i + 1
        );
    }
    sql += &[FUNCTIONS, form.sql(), GRANTS].concat();
    let sum = hex(functions_checksum(form));
    let _ = writeln!(sql, "\nINSERT INTO {SCHEMA}.setting (form, functions) VALUES ('{form}', '\\x{sum}');");
    sql + "RESET ROLE;\n" + &revokes.sql() + "COMMIT;\n"
}

fn role_sql(form: Form) -> String {
    let mut sql = format!(
        "DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{OWNER}') THEN
        CREATE ROLE {OWNER} NOLOGIN;
    END IF;
    -- Who is no superuser must be a member to make something in its name.
    IF NOT pg_has_role(current_user, '{OWNER}', 'MEMBER') THEN
        EXECUTE format('GRANT {OWNER} TO %I', current_user);
    END IF;
    IF NOT has_function_privilege('{OWNER}', 'pg_catalog.pg_stat_get_activity(integer)', 'EXECUTE') THEN
        GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_get_activity(integer) TO {OWNER};
    END IF;
END $$;\n"
    );
    if form == Form::Parameter {
        sql += &format!("GRANT SET ON PARAMETER {PARAMETER} TO {OWNER};\n");
    }
    sql
}

/// Whether whoever is logged in may grant what the form `parameter` needs, or it is granted.
async fn may_grant(client: &impl GenericClient) -> Result<bool, SchemaError> {
    let sql = "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
                   OR has_parameter_privilege(current_user, $1, 'SET WITH GRANT OPTION')
                   OR EXISTS (SELECT FROM pg_roles WHERE rolname = $2
                              AND has_parameter_privilege(rolname, $1, 'SET'))";
    Ok(client.query_one(sql, &[&PARAMETER, &OWNER]).await?.get(0))
}

enum Found {
    Nothing,
    Ours { applied: Vec<Vec<u8>>, form: Form, functions: Option<Vec<u8>> },
}

async fn look(client: &impl GenericClient) -> Result<Found, SchemaError> {
    // Read from its table: what a session has found missing before, it may take for missing still.
    let seen = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'switchyard'), to_regclass('switchyard.topology_version') IS NOT NULL,
                       to_regclass('switchyard.schema_step') IS NOT NULL, to_regclass('switchyard.setting') IS NOT NULL";
    let row = client.query_one(seen, &[]).await?;
    match (row.get(0), row.get(1), row.get::<_, bool>(2) && row.get::<_, bool>(3)) {
        (false, _, _) => return Ok(Found::Nothing),
        (_, true, _) => return Err(SchemaError::Catalog),
        (_, _, false) => return Err(SchemaError::Foreign),
        _ => {}
    }
    let steps = client.query("SELECT checksum FROM switchyard.schema_step ORDER BY number", &[]).await?;
    let applied: Vec<Vec<u8>> = steps.iter().map(|row| row.get(0)).collect();
    if applied.len() > STEPS.len() {
        return Err(SchemaError::Newer { found: applied.len(), known: STEPS.len() });
    }
    for (i, (found, (_, sql))) in applied.iter().zip(STEPS).enumerate() {
        if *found != checksum(sql) {
            return Err(SchemaError::Checksum { number: i as i32 + 1 });
        }
    }
    let row = client.query_one("SELECT form, functions FROM switchyard.setting", &[]).await?;
    let form = if row.get::<_, &str>(0) == "sequence" { Form::Sequence } else { Form::Parameter };
    Ok(Found::Ours { applied, form, functions: row.get(1) })
}

/// Asks, where the schema is there, for what [`is_seen_current`] looks at.
pub const SEEN: &str =
    "SELECT form, functions, ARRAY(SELECT checksum FROM switchyard.schema_step ORDER BY number)
                        FROM switchyard.setting";

/// Whether the answer to [`SEEN`] is that of the schema as this version installs it.
pub fn is_seen_current(row: &tokio_postgres::Row) -> bool {
    let (form, functions, steps): (&str, Option<Vec<u8>>, Vec<Vec<u8>>) =
        (row.get(0), row.get(1), row.get(2));
    let form = if form == "sequence" { Form::Sequence } else { Form::Parameter };
    let known = STEPS.iter().map(|(_, sql)| checksum(sql));
    functions == Some(functions_checksum(form)) && steps.into_iter().eq(known)
}

/// Installs the schema, or brings it up to date, in one transaction.
///
/// # Errors
/// If something else is there, the form cannot be had, or PostgreSQL refuses; then nothing has changed.
pub async fn install(client: &mut Client, options: &InstallOptions) -> Result<Installed, SchemaError> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(
            "SET LOCAL lock_timeout = '30s'; SET LOCAL statement_timeout = 0; SET LOCAL client_min_messages = warning",
        )
        .await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let encoding: String = transaction.query_one("SHOW server_encoding", &[]).await?.get(0);
    if encoding != "UTF8" {
        return Err(SchemaError::Encoding(encoding));
    }
    let found = look(&transaction).await?;
    let (applied, before) = match &found {
        Found::Nothing => (0, None),
        Found::Ours { applied, form, .. } => (applied.len(), Some(*form)),
    };
    let form = choose_form(&transaction, options.form, before).await?;
    transaction.batch_execute(&role_sql(form)).await?;
    if before.is_none() {
        transaction.batch_execute(&format!("CREATE SCHEMA {SCHEMA} AUTHORIZATION {OWNER}")).await?;
    }
    transaction
        .batch_execute(&format!("SET LOCAL ROLE {OWNER}; SET LOCAL search_path = pg_catalog, pg_temp"))
        .await?;
    apply_steps(&transaction, applied).await?;
    transaction.batch_execute(&[FUNCTIONS, form.sql(), GRANTS].concat()).await?;
    let record = "INSERT INTO switchyard.setting (form, functions) VALUES ($1, $2)
                  ON CONFLICT (one) DO UPDATE SET form = excluded.form, functions = excluded.functions";
    transaction.execute(record, &[&form.to_string(), &functions_checksum(form)]).await?;
    transaction.batch_execute(&format!("RESET ROLE;\n{}", options.revokes.sql())).await?;
    transaction.commit().await?;
    Ok(Installed { steps: STEPS.len() - applied, form })
}

/// Whether what is on the shard is what [`install`] would put there, in whatever form.
///
/// # Errors
/// If something else is there, or PostgreSQL refuses.
pub async fn is_current(client: &impl GenericClient) -> Result<bool, SchemaError> {
    Ok(match look(client).await? {
        Found::Nothing => false,
        Found::Ours { applied, form, functions } => {
            applied.len() == STEPS.len() && functions == Some(functions_checksum(form))
        }
    })
}

async fn choose_form(
    client: &impl GenericClient,
    asked: Option<Form>,
    before: Option<Form>,
) -> Result<Form, SchemaError> {
    match asked.or(before) {
        Some(Form::Parameter) if !may_grant(client).await? => Err(SchemaError::Form(format!(
            "the form `parameter` needs a superuser to run: GRANT SET ON PARAMETER {PARAMETER} TO {OWNER}"
        ))),
        Some(form) => Ok(form),
        None if may_grant(client).await? => Ok(Form::Parameter),
        None => Ok(Form::Sequence),
    }
}

async fn apply_steps(transaction: &Transaction<'_>, applied: usize) -> Result<(), SchemaError> {
    transaction.batch_execute(STEP_TABLE).await?;
    for (i, (name, sql)) in STEPS.iter().enumerate().skip(applied) {
        transaction.batch_execute(sql).await?;
        let record = "INSERT INTO switchyard.schema_step (number, name, checksum) VALUES ($1, $2, $3)";
        transaction.execute(record, &[&(i as i32 + 1), name, &checksum(sql)]).await?;
    }
    Ok(())
}

/// What is on the shard; none where the schema is not.
///
/// # Errors
/// If something else is there, or PostgreSQL refuses.
pub async fn status(client: &impl GenericClient) -> Result<Option<Status>, SchemaError> {
    let Found::Ours { applied, form, functions } = look(client).await? else { return Ok(None) };
    let keys = crate::keys::list(client).await?;
    let fenced = "SELECT count(*) FROM switchyard.fence WHERE state <> 'active'";
    let fenced = client.query_one(fenced, &[]).await?.get(0);
    Ok(Some(Status {
        version: applied.len(),
        latest: STEPS.len(),
        current: applied.len() == STEPS.len() && functions == Some(functions_checksum(form)),
        form,
        keys,
        fenced,
        policies: users(client).await?.len() as i64,
    }))
}

/// The policies and column defaults outside the schema that ask it for the tenant, by name.
async fn users(client: &impl GenericClient) -> Result<Vec<String>, SchemaError> {
    let sql = "SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)
                 FROM pg_depend d
                WHERE d.deptype = 'n'
                  AND d.refclassid = 'pg_proc'::regclass
                  AND d.refobjid IN (SELECT oid FROM pg_proc WHERE pronamespace = to_regnamespace('switchyard'))
                  AND NOT (d.classid = 'pg_proc'::regclass
                           AND d.objid IN (SELECT oid FROM pg_proc WHERE pronamespace = to_regnamespace('switchyard')))
                ORDER BY 1";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// Takes the schema away, with its role where nothing else is left of it. With `force`, policies
/// and defaults that ask it go as well: tables without a policy then show nothing.
///
/// # Errors
/// If something depends on it and `force` is not given, it is not there, or PostgreSQL refuses.
pub async fn remove(client: &mut Client, force: bool) -> Result<(), SchemaError> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute("SET LOCAL lock_timeout = '30s'; SET LOCAL client_min_messages = warning")
        .await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if matches!(look(&transaction).await?, Found::Nothing) {
        return Err(SchemaError::Missing);
    }
    let users = users(&transaction).await?;
    if !users.is_empty() && !force {
        let more = if users.len() > 3 { format!(" and {} more", users.len() - 3) } else { String::new() };
        return Err(SchemaError::InUse(users[..users.len().min(3)].join(", ") + &more));
    }
    transaction.batch_execute(&format!("DROP SCHEMA {} CASCADE", quote_ident(SCHEMA))).await?;
    transaction.commit().await?;
    // Other databases of the same server may have the schema as well, and then need the role.
    let rights = format!(
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_stat_get_activity(integer),
             pg_catalog.pg_stat_get_backend_activity(integer) FROM {OWNER};
         DO $$ BEGIN
             REVOKE SET ON PARAMETER {PARAMETER} FROM {OWNER};
             DROP ROLE {OWNER};
         EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
         END $$"
    );
    client.batch_execute(&rights).await?;
    Ok(())
}
