//! Tests of the configuration file as a whole.

mod errors;
mod examples;
mod good;
mod random;

use std::path::{Path, PathBuf};

use super::*;

/// RFC 7677's example.
const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// The least that loads without a warning: one shard, tenant `acme`, user `app`.
fn base() -> String {
    format!(
        "[context]\nvariables = {{ \"app.tenant_id\" = \"{{tenant}}\" }}\n\
         [[shards]]\nname = \"s1\"\nurl = \"postgres://app@db1/crm\"\n\
         [[tenants]]\nid = \"acme\"\n\
         [[users]]\nname = \"app\"\nverifier = \"{SCRAM}\"\ntenants = \"*\"\n"
    )
}

/// Environment of the tests: `SECRET` only.
fn env(name: &str) -> Option<String> {
    (name == "SECRET").then(|| "from the environment, longer than 32 bytes".to_owned())
}

fn read(text: &str) -> Result<Loaded, ConfigErrors> {
    parse(text, Path::new("router.toml"), &env)
}

fn good(text: &str) -> Loaded {
    match read(text) {
        Ok(loaded) => loaded,
        Err(e) => panic!("{e}\nin\n{text}"),
    }
}

/// A directory of its own for one test, removed with all in it.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("switchyard-config-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
