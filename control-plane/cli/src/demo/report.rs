//! What the demo tells: to people, and to programs.

use std::fmt::Write;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::crm;
use super::postgres::connect;
use super::register::Tenant;
use super::site::Site;
use super::stack::Stack;

/// What both tenants ask. It names none of them.
const QUERY: &str = "SELECT first_name, last_name, email FROM leads ORDER BY last_name, first_name LIMIT 3";

/// What was seen through the router, by one tenant.
pub(super) struct Seen {
    tenant: Tenant,
    port: i32,
    leads: i64,
    first: String,
    refusal: String,
}

/// Asks the same through the router as two tenants, on two shards if there are.
pub(super) async fn proof(stack: &Stack) -> anyhow::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for tenant in pair(&stack.tenants) {
        let client = connect(&tenant.url).await.with_context(|| format!("tenant {}", tenant.id))?;
        let sql = "SELECT inet_server_port(), count(*), count(DISTINCT tenant_id), min(tenant_id) FROM leads";
        let row = client.query_one(sql, &[]).await?;
        let (port, leads, tenants, only): (i32, i64, i64, Option<&str>) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        ensure!(
            tenants == 1 && only == Some(&tenant.id),
            "tenant {} saw rows that are not its own",
            tenant.id
        );
        let home = stack.shards.iter().find(|s| s.name == tenant.shard).context("its shard is gone")?;
        ensure!(port == i32::from(home.port), "tenant {} was led to another shard", tenant.id);
        let first = client.query_one(&QUERY.replace("LIMIT 3", "LIMIT 1"), &[]).await?;
        let name = |i| first.get::<_, &str>(i);
        let first = format!("{} {} <{}>", name(0), name(1), name(2));
        let forged =
            "INSERT INTO leads (tenant_id, first_name, last_name) VALUES ('somebody-else', 'Mal', 'Lory')";
        let refused = client.execute(forged, &[]).await.err().context("a forged row was let through")?;
        let refusal = refused.as_db_error().context("the connection broke")?.message().to_owned();
        seen.push(Seen { tenant: tenant.clone(), port, leads, first, refusal });
    }
    Ok(seen)
}

/// Two tenants, on different shards if any are.
fn pair(tenants: &[Tenant]) -> Vec<&Tenant> {
    let first = &tenants[0];
    let other = tenants.iter().skip(1).find(|t| t.shard != first.shard).or(tenants.get(1));
    std::iter::once(first).chain(other).collect()
}

/// For `--state`.
pub(super) fn state(stack: &Stack, site: &Site) -> Value {
    let router = |(port, http): &(u16, u16)| json!({ "host": "127.0.0.1", "port": port, "metrics_url": format!("http://127.0.0.1:{http}/metrics") });
    let router_pids: Vec<_> = (1..=stack.routers.len()).map(|n| site.pid(&format!("router-{n}"))).collect();
    json!({
        "router": router(&stack.routers[0]),
        "routers": stack.routers.iter().map(router).collect::<Vec<_>>(),
        "control_plane": { "url": stack.control_url, "token": stack.token },
        "catalog_url": stack.catalog_url,
        "shards": stack.shards.iter()
            .map(|s| json!({ "name": s.name, "url": s.url(crm::DATABASE) })).collect::<Vec<_>>(),
        "tenants": stack.tenants.iter()
            .map(|t| json!({ "id": t.id, "shard": t.shard, "url": t.url })).collect::<Vec<_>>(),
        "roaming_url": stack.roaming_url,
        "pids": {
            "demo": std::process::id(),
            "router": router_pids.first(),
            "routers": router_pids,
            "control_plane": site.pid("control-plane"),
            "catalog": site.pid("catalog"),
            "shards": stack.shards.iter()
                .map(|s| (s.name.clone(), json!(site.pid(&s.name)))).collect::<serde_json::Map<_, _>>(),
        },
    })
}

/// For people.
pub(super) fn text(stack: &Stack, seen: &[Seen]) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut out, stack, seen);
    out
}

fn write(out: &mut String, stack: &Stack, seen: &[Seen]) -> std::fmt::Result {
    writeln!(out, "\nSwitchyard is running. Ctrl-C stops it and removes everything that it made.\n")?;
    for (port, http) in &stack.routers {
        writeln!(out, "  router         127.0.0.1:{port}, metrics at http://127.0.0.1:{http}/metrics")?;
    }
    writeln!(out, "  control plane  {0}, its API described at {0}/openapi.json", stack.control_url)?;
    writeln!(out, "  catalog        {} on port {}", stack.postgres, stack.catalog.port)?;
    for shard in &stack.shards {
        writeln!(out, "  {:<13}  {} on port {}", shard.name, stack.postgres, shard.port)?;
    }

    writeln!(out, "\nTenants, each with a user and a URL of its own:\n")?;
    for tenant in stack.tenants.iter().take(12) {
        let by = if tenant.placed {
            "by an explicit placement".to_owned()
        } else {
            format!("by bucket {}", tenant.bucket)
        };
        writeln!(out, "  {:<12} on {:<9} {by}", tenant.id, tenant.shard)?;
    }
    if stack.tenants.len() > 12 {
        writeln!(out, "  ... and {} more", stack.tenants.len() - 12)?;
    }

    writeln!(out, "\nThe same SELECT, which names no tenant, shows each its own rows. Paste:\n")?;
    for s in seen {
        writeln!(out, "  psql '{}' -c '{QUERY}'", s.tenant.url)?;
    }
    writeln!(out, "\nAsked just now, through the router:\n")?;
    for s in seen {
        writeln!(
            out,
            "  {:<12} {} leads from {} (port {}), the first {}",
            s.tenant.id, s.leads, s.tenant.shard, s.port, s.first
        )?;
    }
    if let Some(s) = seen.first() {
        writeln!(out, "  {:<12} writing a row for somebody else: {}", s.tenant.id, s.refusal)?;
    }

    writeln!(out, "\nOne pool for all tenants, which say in SQL whose each transaction is:\n")?;
    for s in seen {
        let set = format!("SET app.tenant_id = '\\''{}'\\''", s.tenant.id);
        writeln!(out, "  psql '{}' -c '{set}' -c '{QUERY}'", stack.roaming_url)?;
    }

    writeln!(out, "\nTo operate it:\n")?;
    writeln!(out, "  export SWITCHYARD_URL={} SWITCHYARD_TOKEN={}", stack.control_url, stack.token)?;
    let program = std::env::args().next().unwrap_or_else(|| "switchyard".to_owned());
    writeln!(out, "  {program} tenant list")?;
    writeln!(out, "  {program} tenant create newco           # answers with a URL that works")?;
    if let Some(last) = stack.shards.last() {
        writeln!(out, "  {program} tenant place newco --to {}  # for its next transaction on", last.name)?;
    }
    let elsewhere = seen.first().and_then(|s| {
        let to = stack.shards.iter().find(|shard| *shard.name != *s.tenant.shard)?;
        Some((&s.tenant.id, &to.name))
    });
    if let Some((tenant, to)) = elsewhere {
        writeln!(out, "  {program} move start {tenant} --to {to} --wait  # with its rows, while it writes")?;
        writeln!(
            out,
            "  {program} move rollback {tenant} --wait         # and back, or: move complete {tenant}"
        )?;
    }
    write!(out, "\nA placement takes no rows along: place tenants that have none, and move those that have.")
}
