//! Where the passwords come from with which the mover logs in to shards.

use std::path::PathBuf;
use std::sync::Arc;

use secrecy::SecretString;
use switchyard_config::ShardName;

use crate::MoveError;

/// Opens what the catalog has sealed: given the shard, the name of the key, and the text.
pub type Unseal = Arc<dyn Fn(&str, &str, &[u8]) -> Option<SecretString> + Send + Sync>;

/// See the module.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Directory of the files that hold passwords, where the catalog names one.
    pub dir: Option<PathBuf>,
    /// What opens those that the catalog has sealed.
    pub unseal: Option<Unseal>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// What the catalog has of a password: at most one of these.
pub(crate) struct Kept<'r> {
    /// The password itself, from before they were sealed.
    pub(crate) clear: Option<String>,
    /// The name of an environment variable.
    pub(crate) env: Option<&'r str>,
    /// The name of a file.
    pub(crate) file: Option<&'r str>,
    /// The name of a key, and what it has sealed.
    pub(crate) sealed: Option<(&'r str, &'r [u8])>,
}

impl Secrets {
    /// The password for a shard, if it needs one.
    pub(crate) fn password(
        &self,
        shard: &ShardName,
        kept: &Kept<'_>,
    ) -> Result<Option<SecretString>, MoveError> {
        let missing =
            |what: String| MoveError::Invalid(format!("password of the mover on shard {shard}: {what}"));
        if let Some((key, sealed)) = kept.sealed {
            let opened = self.unseal.as_ref().and_then(|unseal| unseal(shard.as_str(), key, sealed));
            return match opened {
                Some(password) => Ok(Some(password)),
                None => Err(missing(format!("it does not open; `keys_file` must have the key `{key}`"))),
            };
        }
        if let Some(env) = kept.env {
            let value = std::env::var(env).map_err(|_| missing(format!("the variable {env} is not set")))?;
            return Ok(Some(SecretString::from(value)));
        }
        if let Some(file) = kept.file {
            let dir =
                self.dir.as_ref().ok_or_else(|| missing("`secrets_dir` is not configured".to_owned()))?;
            let text = std::fs::read_to_string(dir.join(file)).map(zeroize::Zeroizing::new);
            let text = text.map_err(|e| missing(format!("{file} in `secrets_dir`: {e}")))?;
            return Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))));
        }
        Ok(kept.clear.clone().map(SecretString::from))
    }
}
