//! Which shards, and how an operator logs in to them.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use secrecy::SecretString;
use switchyard_config::ShardName;
use switchyard_config::file::Loaded;
use switchyard_shard_schema::connect::{Session, Target};
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Which shards, and how to log in to them.
#[derive(Args)]
pub(crate) struct Targets {
    /// A shard: NAME=URL, or a URL. For the password use PGPASSWORD or --shards-file, as `ps` shows this.
    #[arg(long = "shard", value_name = "NAME=URL", global = true)]
    shards: Vec<String>,
    /// A file with a shard on each line, as NAME=URL.
    #[arg(long, value_name = "FILE", global = true)]
    shards_file: Option<PathBuf>,
    /// A router's file: its shards, its mode and its keys.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Log in as this role instead of the URL's.
    #[arg(long, value_name = "ROLE", global = true)]
    admin_user: Option<String>,
    /// The environment variable that holds that role's password.
    #[arg(long, value_name = "NAME", global = true, default_value = "PGPASSWORD")]
    admin_password_env: String,
}

/// What was found, by name.
pub(crate) struct Found {
    /// The shards, in the order given.
    pub(crate) shards: Vec<Target>,
    /// The router's file, if one was given.
    pub(crate) file: Option<Loaded>,
}

impl Targets {
    /// Reads all that was given.
    pub(crate) fn find(&self) -> Outcome<Found> {
        let file = self.config.as_deref().map(load).transpose()?;
        let mut shards = Vec::new();
        for given in &self.shards {
            shards.push(self.read(given, shards.len())?);
        }
        if let Some(path) = &self.shards_file {
            let text = std::fs::read_to_string(path).map(Zeroizing::new);
            let text = text.with_context(|| path.display().to_string())?;
            for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
                shards.push(self.read(line, shards.len())?);
            }
        }
        if shards.is_empty() {
            for shard in file.iter().flat_map(|f| &f.topology.shards) {
                shards.push(Target::of(shard)?);
            }
        }
        if shards.is_empty() {
            return Err(Failure::Usage("which shards? give --shard, --shards-file or --config".to_owned()));
        }
        for (i, shard) in shards.iter().enumerate() {
            if shards[..i].iter().any(|other| other.name == shard.name) {
                return Err(Failure::Usage(format!("the shard {} is given twice", shard.name)));
            }
        }
        let password = std::env::var(&self.admin_password_env).ok().map(SecretString::from);
        for shard in &mut shards {
            match (&self.admin_user, &password) {
                (Some(user), password) => shard.log_in_as(user, password.as_ref()),
                (None, Some(password)) if !shard.has_password() => shard.use_password(password),
                (None, _) => {}
            }
        }
        Ok(Found { shards, file })
    }

    fn read(&self, given: &str, n: usize) -> Outcome<Target> {
        let (name, url) = match given.split_once('=') {
            // A URL's own `=` stands behind its `:`.
            Some((name, url)) if !name.contains(':') => (name.to_owned(), url),
            _ => (format!("shard-{}", n + 1), given),
        };
        let name = ShardName::new(&name).map_err(|e| Failure::Usage(format!("the name {name:?} {e}")))?;
        Ok(Target::new(name, &SecretString::from(url))?)
    }
}

fn load(path: &Path) -> Outcome<Loaded> {
    switchyard_config::file::load(path).map_err(|errors| {
        for error in &errors.0 {
            eprintln!("{error}");
        }
        Failure::Error(anyhow!("{} mistakes in {}", errors.0.len(), path.display()))
    })
}

/// A session on a shard; an error says which shard.
pub(crate) async fn connect(target: &Target) -> anyhow::Result<Session> {
    target.connect().await.with_context(|| format!("shard {}", target.name))
}
