//! Everything that runs, in the order in which it is started.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use switchyard_config::seal::seal_key_line;
use switchyard_shard_schema::keys;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::postgres::{self, Cluster, Programs, connect};
use super::register::Tenant;
use super::site::{Site, TERMINATE};
use super::{ContextKind, DemoArgs, crm, register};
use crate::http::{self, Api};
use crate::output;
use crate::serve::ENDS_WITH_STDIN;

/// How long one of our processes may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections of a router's pool to a shard, by default.
const POOL: u32 = 20;

/// The file of the seal's keys.
const SEAL_KEYS: &str = "seal.keys";

/// What runs, and how to get there.
pub(super) struct Stack {
    /// As `postgres --version` says.
    pub(super) postgres: String,
    /// The shards.
    pub(super) shards: Vec<Cluster>,
    /// The cluster of the catalog.
    pub(super) catalog: Cluster,
    /// The catalog's URL.
    pub(super) catalog_url: String,
    /// The control plane's URL.
    pub(super) control_url: String,
    /// A token for it.
    pub(super) token: String,
    /// Ports of each router: for clients, and for HTTP.
    pub(super) routers: Vec<(u16, u16)>,
    /// How an application connects that acts for all tenants.
    pub(super) roaming_url: String,
    /// The tenants.
    pub(super) tenants: Vec<Tenant>,
}

/// Starts everything.
pub(super) async fn start(site: &mut Site, args: &DemoArgs) -> anyhow::Result<Stack> {
    let programs = Programs::find().await?;
    let port = args.port.map_or_else(free_port, taken_by_none)?;
    output::line(&format!("starting {} shards and a catalog: {}", args.shards, programs.version)).ok();
    let connections = 40 + (POOL + 5) * u32::from(args.routers);
    let mut shards = Vec::new();
    for n in 1..=args.shards {
        shards.push(postgres::start(site, &programs, &format!("shard-{n}"), connections).await?);
    }
    let catalog = postgres::start(site, &programs, "catalog", 60).await?;
    let password = random(18)?;
    for shard in &shards {
        crm::make(shard, &password).await?;
    }

    output::line("starting the control plane").ok();
    let (catalog_url, control_url, token) = control_plane(site, &catalog, port).await?;
    let api = Api::new(&control_url, &token).map_err(|_| anyhow!("no URL"))?;
    let addresses: Vec<(String, String)> = shards
        .iter()
        .map(|s| (s.name.clone(), s.url_of(crm::ROLE, &password, crm::DATABASE) + "?sslmode=disable"))
        .collect();
    let sealed = args.context == ContextKind::Sealed;
    register::shards(&api, &addresses, &shards, sealed).await?;
    for shard in &shards {
        register::admin(&api, &shard.name, shard.superuser()).await?;
    }
    let names: Vec<String> = shards.iter().map(|s| s.name.clone()).collect();
    let roaming_url = register::roaming(&api, port, crm::DATABASE, &random(18)?).await?;
    let tenants = register::tenants(&api, args.tenants.into(), &names).await?;
    for shard in &shards {
        let mut app = connect(&shard.url_of(crm::ROLE, &password, crm::DATABASE)).await?;
        for tenant in tenants.iter().filter(|t| t.shard == shard.name) {
            crm::fill(&mut app, &tenant.id, i32::from(tenant.bucket % 40)).await?;
        }
    }
    if sealed {
        output::line("sealing the shards").ok();
        let key = keys::generate(1)?;
        site.write(SEAL_KEYS, &seal_key_line(&key))?;
        for shard in &shards {
            crm::seal(shard, &key).await?;
        }
    }

    output::line(&format!("starting {}", if args.routers == 1 { "a router" } else { "routers" })).ok();
    let router_url = router_role(&catalog, &catalog_url).await?;
    let mut routers = Vec::new();
    for n in 1..=args.routers {
        let port = if n == 1 { port } else { free_port()? };
        routers.push((port, router(site, n, port, &router_url, sealed).await?));
    }
    for (i, (_, http)) in routers.iter().enumerate() {
        ready(site, &format!("router-{}", i + 1), &format!("http://127.0.0.1:{http}/readyz")).await?;
    }
    let postgres = programs.version;
    Ok(Stack { postgres, shards, catalog, catalog_url, control_url, token, routers, tenants, roaming_url })
}

/// Starts the control plane; returns the catalog's URL, its own, and a token.
async fn control_plane(
    site: &mut Site,
    catalog: &Cluster,
    router_port: u16,
) -> anyhow::Result<(String, String, String)> {
    let password = random(18)?;
    let admin = connect(&catalog.url("postgres")).await?;
    admin.batch_execute(&format!("CREATE ROLE switchyard LOGIN PASSWORD '{password}'")).await?;
    admin.batch_execute("CREATE DATABASE switchyard OWNER switchyard").await?;
    let catalog_url = catalog.url_of("switchyard", &password, "switchyard");
    site.write("catalog.url", &catalog_url)?;
    let token = random(24)?;
    site.write("token", &token)?;
    let port = free_port()?;
    let config = site.write(
        "control-plane.toml",
        &format!(
            "listen = \"127.0.0.1:{port}\"\ncatalog_url_file = \"catalog.url\"\nbootstrap_token_file = \"token\"\nkeys_file = \"keys\"\n\
             client_url = \"postgres://127.0.0.1:{router_port}/{}\"\n",
            crm::DATABASE
        ),
    )?;
    site.start("control-plane", ourselves("control-plane", &config)?, TERMINATE)?;
    let url = format!("http://127.0.0.1:{port}");
    ready(site, "control-plane", &format!("{url}/readyz")).await?;
    Ok((catalog_url, url, token))
}

/// A role that may read what routers serve by, and no more.
async fn router_role(catalog: &Cluster, catalog_url: &str) -> anyhow::Result<String> {
    let password = random(18)?;
    let admin = connect(&catalog.url("switchyard")).await?;
    admin.batch_execute(&format!("CREATE ROLE switchyard_router LOGIN PASSWORD '{password}'")).await?;
    connect(catalog_url).await?.execute("SELECT switchyard.grant_router('switchyard_router')", &[]).await?;
    Ok(catalog.url_of("switchyard_router", &password, "switchyard"))
}

/// Starts a router; returns its port for HTTP.
async fn router(site: &mut Site, n: u16, port: u16, catalog_url: &str, sealed: bool) -> anyhow::Result<u16> {
    let http = free_port()?;
    site.write("router-catalog.url", catalog_url)?;
    let seal = if sealed { format!("\n[seal]\nkey_file = \"{SEAL_KEYS}\"\n") } else { String::new() };
    let config = site.write(
        &format!("router-{n}.toml"),
        &format!(
            "[router]\nlisten = [\"127.0.0.1:{port}\"]\nhttp_listen = \"127.0.0.1:{http}\"\n\n\
             [limits]\ndrain_timeout = \"2s\"\n\n\
             [catalog]\nurl_file = \"router-catalog.url\"\nstate_file = \"router-{n}-topology.json\"\n{seal}"
        ),
    )?;
    site.start(&format!("router-{n}"), ourselves("router", &config)?, TERMINATE)?;
    Ok(http)
}

/// This very program, with another command; it ends when we do, however we do.
fn ourselves(command: &str, config: &Path) -> anyhow::Result<Command> {
    let mut ourselves = Command::new(std::env::current_exe().context("our own path")?);
    ourselves.arg(command).arg("--config").arg(config).args(["--log", "json"]);
    ourselves.env(ENDS_WITH_STDIN, "1").stdin(Stdio::piped());
    // The demo itself is quiet; what it starts writes to files.
    if std::env::var_os("SWITCHYARD_LOG").is_none() {
        ourselves.env("SWITCHYARD_LOG", "info");
    }
    Ok(ourselves)
}

async fn ready(site: &mut Site, name: &str, url: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        site.check()?;
        match http::status(url).await {
            Ok(200) => return Ok(()),
            _ if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
            Ok(status) => bail!("{name} is not ready: {url} answers {status}"),
            Err(error) => return Err(error.context(format!("{name} is not ready"))),
        }
    }
}

/// A port that nobody listens on just now.
pub(super) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn taken_by_none(port: u16) -> anyhow::Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("port {port}"))?;
    Ok(port)
}

/// `bytes` random bytes as text that needs no escape anywhere.
pub(super) fn random(bytes: usize) -> anyhow::Result<String> {
    let mut random = vec![0; bytes];
    rand::fill(&mut random).map_err(|_| anyhow!("the system gives no randomness"))?;
    Ok(URL_SAFE_NO_PAD.encode(random).replace(['-', '_'], "x"))
}
