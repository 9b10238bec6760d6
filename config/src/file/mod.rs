//! The configuration file: TOML in, a typed tree out, and every mistake at once with its line.
//!
//! `docs/configuration.md` describes each key. The sections are read by the modules here in the
//! order in which they depend on each other; `reader` is what they read with.

mod context;
mod error;
mod jwt;
mod peers;
mod plans;
mod reader;
mod secret;
mod settings;
mod shards;
mod tenants;
pub(crate) mod units;
mod users;
mod value;

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;
use zeroize::Zeroizing;

pub use error::{ConfigError, ConfigErrors, Warning};

use crate::settings::RouterSettings;
use crate::topology::{Topology, UnknownTenants};
use reader::{At, Ctx, Table};

/// What a configuration file says.
#[derive(Debug)]
pub struct Loaded {
    /// The settings of the process.
    pub settings: RouterSettings,
    /// The topology of the file alone, of version 1. Where [`RouterSettings::catalog`] is set it
    /// may be empty.
    pub topology: Topology,
    /// What is allowed, and probably not meant; in order of lines.
    pub warnings: Vec<Warning>,
}

/// Reads the file at `path` with the environment of this process.
///
/// # Errors
/// Every mistake in the file, or that it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    match std::fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => parse(&text, path, &|name| std::env::var(name).ok()),
        Err(e) => Err(ConfigErrors(vec![ConfigError {
            path: path.to_owned(),
            line: None,
            key: String::new(),
            message: io_reason(&e),
        }])),
    }
}

/// Reads `text` as the file at `path`, from whose directory relative paths are taken. `env` looks
/// up a variable of the environment.
///
/// # Errors
/// Every mistake in the text. Where it is no TOML, these are the mistakes of syntax alone.
pub fn parse(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, ConfigErrors> {
    let ctx = Ctx::new(text, path, env);
    let read = read_document(text, &ctx);
    let warnings = ctx.finish()?;
    // Without errors everything has been read.
    let (settings, topology) = read.unwrap_or_else(|| (RouterSettings::default(), Topology::empty()));
    Ok(Loaded { settings, topology, warnings })
}

fn read_document(text: &str, ctx: &Ctx<'_>) -> Option<(RouterSettings, Topology)> {
    let (document, mistakes) = DeTable::parse_recoverable(text);
    let mut last = 0;
    for mistake in &mistakes {
        let line = ctx.line(mistake.span().map_or(text.len(), |s| s.start));
        // The parser recovers within the line; what it then finds is mostly noise.
        if line != last {
            ctx.error(&At { line, key: String::new() }, mistake.message());
        }
        last = line;
    }
    if !mistakes.is_empty() {
        return None;
    }
    let root = Table::root(ctx, &document);
    let (settings, unknown_tenants) = settings::read(&root);
    let topology = read_topology(&root, &settings, unknown_tenants);
    root.finish();
    Some((settings, topology))
}

fn read_topology(root: &Table<'_>, settings: &RouterSettings, unknown_tenants: UnknownTenants) -> Topology {
    let (shards, names) = shards::read(root, settings.catalog.is_some());
    let buckets = shards::read_buckets(root, &shards, &names);
    let context = context::read_default(root, settings.catalog.is_some());
    if let Some(name) = settings.roaming.default_shard.as_ref().filter(|_| settings.catalog.is_none())
        && !shards.iter().any(|shard| shard.name == *name)
    {
        let at = At { line: root.at_key("roaming").line, key: "roaming.default_shard".to_owned() };
        root.ctx.error(&at, format!("there is no shard {:?}", name.as_str()));
    }
    let jwt = jwt::read(root);
    let plans = plans::read(root);
    let tenants = tenants::read(root, &names, &plans, settings.catalog.is_some());
    let sealed = !context.mode.is_plain()
        || tenants.values().any(|t| t.context.as_ref().is_some_and(|c| !c.mode.is_plain()));
    if sealed && !root.has("seal") {
        root.ctx.error(&root.at_key("seal"), "is missing: a sealed context needs a key");
    }
    let known = users::Known {
        login: settings.login,
        client_ca: settings.tls.client_ca.is_some() || root.table_has("tls", "client_ca"),
        issuers: !jwt.is_empty() || root.has("jwt") || tenants.values().any(|t| !t.jwt.is_empty()),
        catalog: settings.catalog.is_some(),
        unknown_tenants,
        tenants: &tenants,
    };
    let users = users::read(root, &known);
    Topology {
        version: 1,
        shards: shards.into_iter().map(Arc::new).collect(),
        buckets,
        tenants,
        users,
        context: Arc::new(context),
        unknown_tenants,
        jwt,
        plans: Arc::new(plans),
    }
}

/// Why a file cannot be read, in our style of messages.
fn io_reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::InvalidData => "not UTF-8".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => e.to_string(),
    }
}
