//! The control plane's own file.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use crate::oidc::OidcSettings;

/// What the process is told; `examples/control-plane.toml` has every key.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen. Default `127.0.0.1:6480`. Elsewhere than on loopback TLS is needed, or the
    /// word that something in front adds it.
    pub listen: SocketAddr,
    /// TLS.
    pub tls: Option<TlsSettings>,
    /// Somebody else adds TLS. Default false.
    pub plain_beyond_loopback: bool,
    /// URL of the catalog's database; its role must own it, or be allowed to make a schema in it.
    pub catalog_url: SecretString,
    /// File of an administrator's token; made if it does not exist.
    pub bootstrap_token_file: Option<PathBuf>,
    /// Where clients find the routers.
    pub client_url: ClientUrl,
    /// Whether `/metrics` asks for no token. Default true: it holds counts, no ids.
    pub open_metrics: bool,
    /// File of the keys that seal what must stay secret in the catalog; made if it does not exist.
    pub keys_file: Option<PathBuf>,
    /// Who else vouches for callers.
    pub oidc: Option<OidcSettings>,
    /// How long a deleted tenant can be undeleted. Default 7 days.
    pub delete_grace: Duration,
    /// How often what tenants hold on their shards is measured. Default 1 h; 0 never.
    pub measure_storage: Duration,
    /// The name that other control planes know this one by. Default: host name and process id.
    pub name: Option<String>,
    /// Moves that are worked on at a time from or to a shard. Default 8.
    pub moves_per_shard: usize,
    /// Most sessions on a shard that moves take, whatever their number. Default 48; 7 at least.
    pub move_sessions_per_shard: usize,
    /// Directory of files that hold passwords of shards.
    pub secrets_dir: Option<PathBuf>,
}

/// TLS of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM file of the certificate chain.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// `postgres://host:port/database?parameters`, into which user and password are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientUrl {
    rest: String,
}

impl ClientUrl {
    fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let plain = !authority.is_empty() && !authority.contains('@') && !rest.contains(char::is_control);
        plain.then(|| Self { rest: rest.to_owned() })
    }

    /// The URL of one user.
    pub(crate) fn of_user(&self, user: &str, password: &str) -> String {
        format!("postgres://{}:{}@{}", escaped(user), escaped(password), self.rest)
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file that cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// No TOML, or not of the form above. Says the line and the key, and quotes no value.
    #[error("{path}:{line}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A value that makes no sense.
    #[error("{0}: {1}")]
    Value(PathBuf, &'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default = "default_listen")]
    listen: SocketAddr,
    catalog_url: Option<SecretString>,
    catalog_url_file: Option<PathBuf>,
    bootstrap_token_file: Option<PathBuf>,
    client_url: Option<String>,
    #[serde(default = "default_open_metrics")]
    open_metrics: bool,
    tls: Option<TlsSettings>,
    #[serde(default)]
    plain_beyond_loopback: bool,
    keys_file: Option<PathBuf>,
    oidc: Option<OidcSettings>,
    #[serde(default = "default_delete_grace")]
    delete_grace_seconds: u32,
    #[serde(default = "default_measure_storage")]
    measure_storage_seconds: u32,
    name: Option<String>,
    #[serde(default = "default_moves_per_shard")]
    moves_per_shard: usize,
    #[serde(default = "default_move_sessions_per_shard")]
    move_sessions_per_shard: usize,
    secrets_dir: Option<PathBuf>,
}

fn default_moves_per_shard() -> usize {
    8
}

/// About half of what a server lets in that nobody has told otherwise.
fn default_move_sessions_per_shard() -> usize {
    48
}

/// 7 days.
fn default_delete_grace() -> u32 {
    604_800
}

/// 1 hour.
fn default_measure_storage() -> u32 {
    3600
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 6480))
}

fn default_open_metrics() -> bool {
    true
}

/// What one move takes, one that moved before, and the slots: `shard-migrator/src/sessions.rs`.
const MOVE_SESSIONS_MIN: usize = 7;

impl Settings {
    /// Reads `path`. Paths in it are relative to it.
    ///
    /// # Errors
    /// If the file cannot be read or makes no sense.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|e| SettingsError::Read(path.to_owned(), e))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let document: Document = toml::from_str(text).map_err(|e| SettingsError::Parse {
            path: path.to_owned(),
            line: e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
            message: e.message().to_owned(),
        })?;
        let beside = |file: PathBuf| path.parent().unwrap_or(Path::new("")).join(file);
        let catalog_url = match (document.catalog_url, document.catalog_url_file) {
            (Some(url), None) => url,
            (None, Some(file)) => {
                let file = beside(file);
                let text = fs::read_to_string(&file).map_err(|e| SettingsError::Read(file, e))?;
                SecretString::from(text.trim())
            }
            _ => {
                let wrong = "give one of `catalog_url` and `catalog_url_file`";
                return Err(SettingsError::Value(path.to_owned(), wrong));
            }
        };
        let client_url = document.client_url.as_deref().unwrap_or("postgres://127.0.0.1:6432/postgres");
        let wrong = "`client_url` must be postgres://host:port/database without a user";
        let client_url =
            ClientUrl::parse(client_url).ok_or_else(|| SettingsError::Value(path.to_owned(), wrong))?;
        let tls = document.tls.map(|t| TlsSettings { cert: beside(t.cert), key: beside(t.key) });
        if !document.listen.ip().is_loopback() && tls.is_none() && !document.plain_beyond_loopback {
            let wrong = "`listen` beyond loopback needs [tls], or `plain_beyond_loopback = true` where something in front adds it";
            return Err(SettingsError::Value(path.to_owned(), wrong));
        }
        let oidc = document.oidc.map(|mut oidc| {
            oidc.jwks_file = oidc.jwks_file.map(beside);
            oidc
        });
        if oidc.as_ref().is_some_and(|o| !has_keys(o)) {
            let wrong = "[oidc] needs one of `jwks_file` and `jwks_url`, the latter https:// or on loopback";
            return Err(SettingsError::Value(path.to_owned(), wrong));
        }
        if document.move_sessions_per_shard < MOVE_SESSIONS_MIN {
            let wrong = "`move_sessions_per_shard` must be 7 or more, which is what one move takes";
            return Err(SettingsError::Value(path.to_owned(), wrong));
        }
        Ok(Self {
            tls,
            plain_beyond_loopback: document.plain_beyond_loopback,
            keys_file: document.keys_file.map(beside),
            oidc,
            delete_grace: Duration::from_secs(document.delete_grace_seconds.into()),
            measure_storage: Duration::from_secs(document.measure_storage_seconds.into()),
            name: document.name,
            listen: document.listen,
            catalog_url,
            bootstrap_token_file: document.bootstrap_token_file.map(beside),
            client_url,
            open_metrics: document.open_metrics,
            moves_per_shard: document.moves_per_shard.max(1),
            move_sessions_per_shard: document.move_sessions_per_shard,
            secrets_dir: document.secrets_dir.map(beside),
        })
    }
}

fn has_keys(oidc: &OidcSettings) -> bool {
    match (&oidc.jwks_file, &oidc.jwks_url) {
        (Some(_), None) => true,
        (None, Some(url)) => {
            let loopback = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
            url.starts_with("https://")
                || loopback.iter().any(|l| url.strip_prefix(l).is_some_and(|r| r.starts_with([':', '/'])))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse(Path::new("/etc/switchyard/control.toml"), text)
    }

    #[test]
    fn the_example_is_understood() {
        let example =
            include_str!("../examples/control-plane.toml").replace("catalog_url_file", "catalog_url");
        let settings = parse(&example).unwrap();
        assert_eq!(settings.client_url.of_user("a", "b"), "postgres://a:b@db.example.com:6432/app");
    }

    #[test]
    fn the_control_planes_on_kubernetes_have_settings_that_are_understood() {
        let map = include_str!("../../deploy/kubernetes/control-plane.yaml");
        let (_, map) = map.split_once("control-plane.toml: |\n").unwrap();
        let lines = map.lines().take_while(|l| *l != "---").map(str::trim_start);
        let text = lines.collect::<Vec<_>>().join("\n").replace("catalog_url_file", "catalog_url");
        assert_eq!(parse(&text).unwrap().listen.to_string(), "0.0.0.0:6480");
    }

    #[test]
    fn a_catalog_is_enough() {
        let settings =
            parse("catalog_url = 'postgres://me:hush@localhost/catalog'\nbootstrap_token_file = 't'")
                .unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:6480");
        assert_eq!(settings.bootstrap_token_file.as_deref(), Some(Path::new("/etc/switchyard/t")));
        assert_eq!(settings.catalog_url.expose_secret(), "postgres://me:hush@localhost/catalog");
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn one_move_has_the_sessions_that_it_takes() {
        let with = |n: u32| parse(&format!("catalog_url = 'x'\nmove_sessions_per_shard = {n}\n"));
        assert_eq!(with(7).unwrap().move_sessions_per_shard, 7);
        assert!(with(6).unwrap_err().to_string().contains("7 or more"));
    }

    #[test]
    fn mistakes_have_a_line() {
        let error = parse("catalog_url = 'x'\nlisten = 'here'\n").unwrap_err().to_string();
        assert!(error.contains(":2:"), "{error}");
        assert!(parse("listen = '127.0.0.1:1'").is_err());
        assert!(parse("catalog_url = 'x'\nclient_url = 'postgres://u@h/d'").is_err());
        assert!(parse("catalog_url = 'x'\nlistn = '127.0.0.1:1'").is_err());
    }

    #[test]
    fn urls_of_users_are_escaped() {
        let url = ClientUrl::parse("postgres://127.0.0.1:6432/crm?sslmode=disable").unwrap();
        assert_eq!(
            url.of_user("a/b@c ü", "x:y"),
            "postgres://a%2Fb%40c%20%C3%BC:x%3Ay@127.0.0.1:6432/crm?sslmode=disable"
        );
    }
}
