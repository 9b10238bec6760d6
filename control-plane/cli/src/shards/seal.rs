//! The file of the seal's keys.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, anyhow};
use switchyard_config::seal::{SealKey, parse_seal_keys, seal_key_line};
use switchyard_shard_schema::keys;
use zeroize::Zeroizing;

use super::targets::{Found, connect};
use crate::failure::{Failure, Outcome};
use crate::output;

fn read(path: &Path) -> anyhow::Result<Vec<SealKey>> {
    let text = fs::read_to_string(path).map(Zeroizing::new).with_context(|| path.display().to_string())?;
    let mode = fs::metadata(path).map(|m| m.permissions().mode()).unwrap_or(0);
    if mode & 0o077 != 0 {
        eprintln!(
            "warning: {} may be read by others than its owner (mode {:o})",
            path.display(),
            mode & 0o777
        );
    }
    parse_seal_keys(&text).map_err(|e| anyhow!("{}: {e}", path.display()))
}

/// The keys of the file; a new one in a new file, where there is no file.
pub(super) fn read_or_make(path: &Path) -> Outcome<Vec<SealKey>> {
    if path.exists() {
        return Ok(read(path)?);
    }
    let made = vec![keys::generate(1)?];
    write(path, &made)?;
    Ok(made)
}

/// As a whole or not at all: a router may read it at any time.
fn write(path: &Path, keys: &[SealKey]) -> anyhow::Result<()> {
    let mut text = Zeroizing::new(String::new());
    for key in keys {
        text.push_str(&seal_key_line(key));
        text.push('\n');
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let at = || path.display().to_string();
    let _ = fs::remove_file(&beside);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).with_context(at)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(at)?;
    // Who could read it before, a router that runs as another user, can read it after.
    if let Ok(before) = fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        let _ = std::os::unix::fs::chown(&beside, Some(before.uid()), Some(before.gid()));
        fs::set_permissions(&beside, before.permissions()).with_context(at)?;
    }
    fs::rename(&beside, path).with_context(at)?;
    Ok(())
}

/// A new key: on every shard first, then in the file, so that no token is signed that a shard does
/// not take. Where it fails half way, running it again gives the same shards another key, which harms nothing.
pub(super) async fn rotate(found: &Found, path: &Path) -> Outcome {
    let mut all = if path.exists() { read(path)? } else { Vec::new() };
    let mut last = all.iter().map(|k| k.kid).max().unwrap_or(0);
    let mut sessions = Vec::new();
    for shard in &found.shards {
        let client = connect(shard).await?;
        let there = keys::list(&*client).await.with_context(|| format!("shard {}", shard.name))?;
        last = last.max(there.into_iter().max().unwrap_or(0));
        sessions.push((shard, client));
    }
    let key = keys::generate(last + 1)?;
    for (shard, client) in &mut sessions {
        let given = std::slice::from_ref(&key);
        keys::add(client, given).await.with_context(|| format!("shard {}", shard.name))?;
    }
    all.insert(0, key);
    write(path, &all)?;
    output::line(&format!(
        "key {} is on {} shards and first in {}; tell the routers (SIGHUP), then --retire the others",
        last + 1,
        sessions.len(),
        path.display()
    ))
}

/// Leaves the first key alone: in the file first, then on the shards.
pub(super) async fn retire(found: &Found, path: &Path) -> Outcome {
    let mut all = read(path)?;
    all.truncate(1);
    let kid = all[0].kid;
    let mut sessions = Vec::new();
    for shard in &found.shards {
        let client = connect(shard).await?;
        let there = keys::list(&*client).await.with_context(|| format!("shard {}", shard.name))?;
        if !there.contains(&kid) {
            return Err(Failure::Conflict(format!(
                "shard {} does not have key {kid}; nothing was done",
                shard.name
            )));
        }
        sessions.push((shard, client));
    }
    write(path, &all)?;
    for (shard, client) in &sessions {
        let gone =
            keys::keep_only(&**client, &[kid]).await.with_context(|| format!("shard {}", shard.name))?;
        output::line(&format!("{}: {} keys retired", shard.name, gone.len()))?;
    }
    Ok(())
}
