//! The last topology on disk, so that a router restarts while the catalog is away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use switchyard_config::snapshot;
use switchyard_config::topology::Topology;

use crate::CatalogError;

/// Most bytes of a topology's file: 100 000 tenants with a user each take about 50 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Writes `topology` to `path`, in one step and readable by us alone: it holds the shards' passwords.
///
/// # Errors
/// If the file cannot be written. What was there before is then still there.
pub fn save(path: &Path, topology: &Topology) -> Result<(), CatalogError> {
    let text = snapshot::try_to_json(topology).map_err(|e| CatalogError::Disk(e.to_string()))?;
    write_private(path, text.as_bytes()).map_err(|e| CatalogError::Disk(format!("{}: {e}", path.display())))
}

/// Reads the topology that [`save`] wrote.
///
/// # Errors
/// If there is none, others may write to it, or it is damaged.
pub fn load(path: &Path) -> Result<Topology, CatalogError> {
    let disk = |reason: String| CatalogError::Disk(format!("{}: {reason}", path.display()));
    let file = File::open(path).map_err(|e| disk(e.to_string()))?;
    let mode = file.metadata().map_err(|e| disk(e.to_string()))?.mode();
    if mode & 0o022 != 0 {
        return Err(disk("others may write to it, so it is not trusted".to_owned()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|e| disk(e.to_string()))?;
    snapshot::from_json(&text).map_err(|e| disk(e.to_string()))
}

/// Writes a file that only its owner may read, by way of another in the same directory, so that
/// there is never half of it.
///
/// # Errors
/// If the directory cannot be written to.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    // `create_new` follows no link that somebody left there; a leftover of ours goes first.
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("switchyard-disk-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_topology_comes_back() {
        let dir = directory("save");
        let path = dir.join("topology.json");
        let topology = Topology { version: 7, ..Topology::empty() };
        save(&path, &topology).unwrap();
        save(&path, &topology).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap().version, 7);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left behind");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let dir = directory("mode");
        let path = dir.join("topology.json");
        save(&path, &Topology::empty()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        assert!(matches!(load(&path), Err(CatalogError::Disk(_))));
        fs::write(&path, "{").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(load(&path), Err(CatalogError::Disk(_))));
        fs::remove_dir_all(dir).unwrap();
    }
}
