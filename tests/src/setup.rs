//! Two shards, some tenants with rows that say whose they are, and a router in front.

use std::fmt::Write;

use switchyard_config::{BUCKETS, TenantId};
use switchyard_shard_schema::install::{Form, Revokes};

use crate::certs::Certs;
use crate::cluster::{self, Cluster};
use crate::faults::FaultProxy;
use crate::raw::differential::{self, Step};
use crate::raw::{Raw, Refused, Target, scram_verifier};
use crate::router::Router;
use crate::sealed::{self, SEAL_KEY};

/// The user that acts for every tenant, as `app.<tenant>`.
pub const USER: &str = "app";
/// Its password at the router, which is another than that of the role on the shards.
pub const PASSWORD: &str = "client-secret";
/// Rows of each tenant in `clients`.
pub const CANARIES: usize = 3;

/// What to start.
pub struct Setup {
    shards: usize,
    tenants: Vec<(String, Option<usize>)>,
    router: Vec<String>,
    pool: String,
    context: String,
    sections: String,
    client_tls: Option<&'static str>,
    shard_tls: Option<&'static str>,
    cluster_settings: Vec<String>,
    proxied: bool,
    standbys: bool,
    sql: String,
    server: (String, String),
    sealed: Option<(Form, Revokes)>,
}

/// What has been started. All of it ends on drop.
pub struct Running {
    /// The router.
    pub router: Router,
    /// The shards, `s0` first.
    pub shards: Vec<Cluster>,
    /// The standby of each shard, if asked for.
    pub standbys: Vec<Cluster>,
    /// What stands between the router and each shard, if asked for.
    pub proxies: Vec<FaultProxy>,
    /// The authority of all certificates.
    pub certs: Certs,
    /// The router's configuration.
    pub toml: String,
    tenants: Vec<(String, Option<usize>)>,
    tls: bool,
}

impl Setup {
    /// Two shards, no tenants, two server connections to each shard.
    pub fn new() -> Self {
        Self {
            shards: 2,
            tenants: Vec::new(),
            router: Vec::new(),
            pool: "size = 2".to_owned(),
            context: "[context.variables]\n\"app.tenant_id\" = \"{tenant}\"".to_owned(),
            sections: String::new(),
            client_tls: None,
            shard_tls: None,
            cluster_settings: Vec::new(),
            proxied: false,
            standbys: false,
            sql: String::new(),
            server: (cluster::APP.to_owned(), cluster::APP_PASSWORD.to_owned()),
            sealed: None,
        }
    }

    /// Another number of shards.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Tenants that live where their bucket does.
    pub fn tenants<'t>(mut self, ids: impl IntoIterator<Item = &'t str>) -> Self {
        self.tenants.extend(ids.into_iter().map(|id| (id.to_owned(), None)));
        self
    }

    /// A tenant that is placed on this shard.
    pub fn tenant_on(mut self, id: &str, shard: usize) -> Self {
        self.tenants.push((id.to_owned(), Some(shard)));
        self
    }

    /// A line of `[router]`.
    pub fn router(mut self, line: &str) -> Self {
        self.router.push(line.to_owned());
        self
    }

    /// The lines of `[pool]`.
    pub fn pool(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.pool);
        self
    }

    /// The section `[context]`, head and all.
    pub fn context(mut self, section: &str) -> Self {
        section.clone_into(&mut self.context);
        self
    }

    /// Further sections, heads and all.
    pub fn section(mut self, section: &str) -> Self {
        self.sections = self.sections + "\n" + section + "\n";
        self
    }

    /// TLS toward clients: the mode of `[tls]`.
    pub fn tls(mut self, mode: &'static str) -> Self {
        self.client_tls = Some(mode);
        self
    }

    /// TLS toward the shards: the `sslmode`.
    pub fn shard_tls(mut self, mode: &'static str) -> Self {
        self.shard_tls = Some(mode);
        self
    }

    /// A line of `postgresql.conf` on every shard.
    pub fn cluster_setting(mut self, line: &str) -> Self {
        self.cluster_settings.push(line.to_owned());
        self
    }

    /// A [`FaultProxy`] between the router and every shard.
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// A standby for every shard. It is the first of the shard's hosts, though it is not the primary.
    pub fn standbys(mut self) -> Self {
        self.standbys = true;
        self
    }

    /// Statements run by the superuser on every shard before the router starts.
    pub fn sql(mut self, sql: &str) -> Self {
        self.sql = self.sql + sql + ";\n";
        self
    }

    /// The role that the router logs in as on the shards, where it is not the usual one.
    pub fn server(mut self, user: &str, password: &str) -> Self {
        self.server = (user.to_owned(), password.to_owned());
        self
    }

    /// Contexts that are sealed, and policies that ask for them.
    pub fn sealed(mut self, form: Form, revokes: Revokes) -> Self {
        self.sealed = Some((form, revokes));
        let context = format!("[context]\nmode = \"sealed\"\n{}", self.context);
        self.context(&context).section(&format!("[seal]\nkey = {SEAL_KEY:?}"))
    }

    /// Starts all of it.
    ///
    /// # Panics
    /// If something does not start.
    pub fn start(self) -> Running {
        let certs = Certs::new();
        let shards: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                let mut cluster = Cluster::builder();
                if self.shard_tls.is_some() {
                    cluster = cluster.tls(&certs);
                }
                for line in &self.cluster_settings {
                    cluster = cluster.setting(line);
                }
                cluster.start()
            };
            let starting: Vec<_> = (0..self.shards).map(|_| scope.spawn(one)).collect();
            starting.into_iter().map(|t| t.join().expect("the cluster starts")).collect()
        });
        for (index, shard) in shards.iter().enumerate() {
            if let Some((form, revokes)) = self.sealed {
                sealed::seal(shard, form, revokes);
            }
            shard.sql(&format!("{}{}", self.rows(index), self.sql));
        }
        let proxies: Vec<_> = match self.proxied {
            true => shards.iter().map(|s| FaultProxy::start(s.address())).collect(),
            false => Vec::new(),
        };
        let ports: Vec<u16> = match self.proxied {
            true => proxies.iter().map(|p| p.address().port()).collect(),
            false => shards.iter().map(Cluster::port).collect(),
        };
        let standbys: Vec<_> = match self.standbys {
            true => shards.iter().map(Cluster::standby).collect(),
            false => Vec::new(),
        };
        let hosts: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(i, port)| match standbys.get(i) {
                Some(standby) => format!("127.0.0.1:{},127.0.0.1:{port}", standby.port()),
                None => format!("127.0.0.1:{port}"),
            })
            .collect();
        let toml = self.toml(&certs, &hosts);
        let router = Router::start(&toml);
        let tls = self.client_tls.is_some();
        Running { router, shards, standbys, proxies, certs, toml, tenants: self.tenants, tls }
    }

    /// Every tenant has its rows on its shard, and rows that nobody may ever see on the others.
    fn rows(&self, shard: usize) -> String {
        let mut sql = String::from("SELECT 1;\n");
        for (id, placed) in &self.tenants {
            let home = placed.unwrap_or_else(|| bucket_shard(id, self.shards)) == shard;
            let id = id.replace('\'', "''");
            for n in 1..=CANARIES {
                let name = if home { format!("{id} client {n}") } else { format!("misplaced {id} {n}") };
                let _ = writeln!(sql, "INSERT INTO clients VALUES ('{id}', {n}, '{name}');");
            }
        }
        sql
    }

    fn toml(&self, certs: &Certs, hosts: &[String]) -> String {
        let mut toml =
            format!("[router]\n{}\n\n[pool]\n{}\n\n{}\n", self.router.join("\n"), self.pool, self.context);
        toml += &self.sections;
        if let Some(mode) = self.client_tls {
            let (cert, key) = (certs.cert("server"), certs.key("server"));
            let _ = writeln!(
                toml,
                "\n[tls]\nmode = \"{mode}\"\ncert = {cert:?}\nkey = {key:?}\nclient_ca = {:?}",
                certs.ca()
            );
        }
        let sslmode = self.shard_tls.unwrap_or("disable");
        let root =
            self.shard_tls.map(|_| format!("&sslrootcert={}", certs.ca().display())).unwrap_or_default();
        let (user, password) = &self.server;
        for (i, hosts) in hosts.iter().enumerate() {
            let url = format!("postgres://{user}:{password}@{hosts}/crm?sslmode={sslmode}{root}");
            let _ = writeln!(toml, "\n[[shards]]\nname = \"s{i}\"\nurl = \"{url}\"");
        }
        for (id, shard) in &self.tenants {
            let _ = writeln!(toml, "\n[[tenants]]\nid = {}", quoted(id));
            if let Some(shard) = shard {
                let _ = writeln!(toml, "shard = \"s{shard}\"");
            }
        }
        let _ = writeln!(toml, "\n{}", user_toml(USER, PASSWORD, "tenants = \"*\""));
        toml
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

/// A `[[users]]` with a password and further lines.
pub fn user_toml(name: &str, password: &str, lines: &str) -> String {
    format!("[[users]]\nname = {name:?}\nverifier = \"{}\"\n{lines}\n", scram_verifier(password))
}

/// A string as TOML has it, which is as JSON has it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The shard of a tenant without a placement, where buckets are dealt out evenly.
pub fn bucket_shard(tenant: &str, shards: usize) -> usize {
    let bucket = TenantId::new(tenant).expect("a tenant id").bucket().0;
    usize::from(bucket) * shards / usize::from(BUCKETS)
}

impl Running {
    /// Where `tenant` logs in, as `app.<tenant>`, over TLS if there is TLS.
    pub fn target(&self, tenant: &str) -> Target {
        self.plain_target(&format!("{USER}.{tenant}"), PASSWORD)
    }

    /// Where any user logs in, over TLS if there is TLS.
    pub fn plain_target(&self, user: &str, password: &str) -> Target {
        let target = self.router.target().user(user).password(password).database(cluster::DATABASE);
        if self.tls { target.tls(&self.certs.client(None), "localhost") } else { target }
    }

    /// A session of `tenant`.
    ///
    /// # Panics
    /// If the router refuses it.
    #[track_caller]
    pub fn login(&self, tenant: &str) -> Raw {
        self.target(tenant).connect()
    }

    /// How the login of `tenant` is refused.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn refused(&self, tenant: &str) -> Refused {
        self.target(tenant).refused()
    }

    /// The shard that `tenant` lives on.
    pub fn shard_of(&self, tenant: &str) -> &Cluster {
        &self.shards[self.shard_index_of(tenant)]
    }

    /// The index of that shard.
    ///
    /// # Panics
    /// If the tenant is none of this setup.
    pub fn shard_index_of(&self, tenant: &str) -> usize {
        let (_, placed) = self.tenants.iter().find(|(id, _)| id == tenant).expect("a tenant of this setup");
        placed.unwrap_or_else(|| bucket_shard(tenant, self.shards.len()))
    }

    /// A session directly on the tenant's shard that sees what the tenant sees: what the router
    /// is compared with.
    ///
    /// # Panics
    /// If it cannot be had.
    #[track_caller]
    pub fn direct(&self, tenant: &str) -> Raw {
        let options = format!("-c app.tenant_id={tenant}");
        self.shard_of(tenant).app().param("options", &options).connect()
    }

    /// Runs a script directly and through the router, on fresh sessions of `tenant`, and compares.
    ///
    /// # Panics
    /// If they differ.
    #[track_caller]
    pub fn same(&self, name: &str, tenant: &str, script: &[Step]) {
        differential::same(name, &mut self.direct(tenant), &mut self.login(tenant), script);
    }

    /// Does the same with each of these scripts, and tells all that differ.
    ///
    /// # Panics
    /// If one differs.
    #[track_caller]
    pub fn same_each<'n>(&self, tenant: &str, scripts: impl IntoIterator<Item = (&'n str, Vec<Step>)>) {
        let differences: Vec<_> = scripts
            .into_iter()
            .filter_map(|(name, script)| {
                let (mut direct, mut routed) = (self.direct(tenant), self.login(tenant));
                let difference = differential::difference(&mut direct, &mut routed, &script)?;
                Some(format!("{name}: {difference}"))
            })
            .collect();
        assert!(differences.is_empty(), "{} scripts differ:\n{}", differences.len(), differences.join("\n"));
    }

    /// The names of the tenant's own rows in `clients`, in order of id.
    pub fn canaries(&self, tenant: &str) -> Vec<String> {
        (1..=CANARIES).map(|n| format!("{tenant} client {n}")).collect()
    }

    /// The URL of `tenant` for drivers.
    pub fn url(&self, tenant: &str) -> String {
        let port = self.router.address().port();
        let ssl = if self.tls {
            format!("?sslmode=verify-full&sslrootcert={}", self.certs.ca().display())
        } else {
            "?sslmode=disable".to_owned()
        };
        format!("postgres://{USER}.{tenant}:{PASSWORD}@localhost:{port}/{}{ssl}", cluster::DATABASE)
    }

    /// Changes the configuration, and reloads it. Whether the router took it.
    ///
    /// # Panics
    /// If the router does not say.
    pub fn reload(&mut self, change: impl FnOnce(&str) -> String) -> bool {
        self.toml = change(&self.toml);
        self.router.reload(&self.toml)
    }

    /// Server connections of the router's role, over all shards, as PostgreSQL sees them.
    pub fn server_connections(&self) -> usize {
        self.shards.iter().map(|s| s.sessions_of(cluster::APP)).sum()
    }
}
