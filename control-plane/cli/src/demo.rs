//! `switchyard demo`: real shards, a catalog, a control plane and routers on this machine, with an
//! application's schema and tenants to try.

mod crm;
mod postgres;
mod register;
mod report;
mod site;
mod stack;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::failure::Outcome;
use crate::{output, serve};

/// Shape of the demo.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Write where everything is to this file, as JSON, when all is ready.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// How the tenant's context is guarded.
    #[arg(long, value_enum, default_value_t = ContextKind::Plain)]
    context: ContextKind,
    /// Number of shards.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    shards: u16,
    /// Number of tenants.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1000))]
    tenants: u16,
    /// Number of routers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    routers: u16,
    /// Port of the first router; a free one if not given.
    #[arg(long)]
    port: Option<u16>,
}

/// How the tenant's context is guarded.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ContextKind {
    /// Against accidents.
    Plain,
    /// Against hostile SQL.
    Sealed,
}

/// Starts everything, shows it, and stays until told to stop.
pub(crate) fn run(args: DemoArgs) -> Outcome {
    serve::runtime()?.block_on(async {
        let stop = serve::stop_signal()?;
        let mut site = site::Site::new()?;
        let outcome = tokio::select! {
            outcome = live(&mut site, &args) => outcome,
            () = stop => Ok(()),
        };
        output::line("\nstopping ...")?;
        site.take_down().await;
        outcome
    })
}

/// Starts everything and watches over it. Ends only if something goes wrong.
async fn live(site: &mut site::Site, args: &DemoArgs) -> Outcome {
    let stack = stack::start(site, args).await?;
    let proof = report::proof(&stack).await?;
    if let Some(path) = &args.state {
        site.write_state(path, &report::state(&stack, site))?;
    }
    output::line(&report::text(&stack, &proof))?;
    Ok(site.watch().await?)
}
