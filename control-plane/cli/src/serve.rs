//! The long-running commands.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::failure::{Failure, Outcome};

/// If set, the process ends when its standard input does. The demo sets it for what it starts, so
/// that nothing outlives a demo that was killed.
pub(crate) const ENDS_WITH_STDIN: &str = "SWITCHYARD_ENDS_WITH_STDIN";

/// Threads for what is not the data path, which has threads of its own.
const THREADS: usize = 2;

/// Runs a router until it is told to stop.
pub(crate) fn router(config: &Path, takes_over_from: Option<u32>) -> Outcome {
    let loaded = switchyard_config::file::load(config).map_err(|errors| {
        for error in &errors.0 {
            eprintln!("{error}");
        }
        Failure::Error(anyhow::anyhow!("{} mistakes in {}", errors.0.len(), config.display()))
    })?;
    // Read again on SIGHUP, from wherever the process stands then.
    let path = std::path::absolute(config).context("the configuration's path")?;
    runtime()?.block_on(async {
        let life = switchyard_router::Life {
            config: Some(path),
            takes_over_from,
            successor: Some(std::sync::Arc::new(successor)),
        };
        let served = switchyard_router::run(loaded, life);
        tokio::select! {
            served = served => Ok(served?),
            () = parent_gone() => Ok(()),
        }
    })
}

/// The command that this process was started by, to take over from it. The program is looked for anew, as
/// it may have been replaced by a newer one.
fn successor() -> std::process::Command {
    let own = std::env::args_os().collect::<Vec<_>>();
    let mut command =
        std::process::Command::new(own.first().map_or("switchyard".as_ref(), |a| a.as_os_str()));
    let mut skip = false;
    for arg in own.iter().skip(1) {
        // That of this process; the next one has its own.
        if std::mem::take(&mut skip) || arg.as_encoded_bytes().starts_with(b"--takeover=") {
            continue;
        }
        if arg == "--takeover" {
            skip = true;
            continue;
        }
        command.arg(arg);
    }
    command.arg("--takeover").arg(std::process::id().to_string());
    command
}

/// Runs the control plane until it is told to stop.
pub(crate) fn control_plane(config: &Path) -> Outcome {
    let settings = switchyard_control_plane::Settings::load(config)?;
    runtime()?.block_on(async {
        let stop = stop_signal()?;
        let (told, mut stopping) = tokio::sync::watch::channel(());
        let opener = switchyard_control_plane::Opener::of(&settings)?;
        let moves = switchyard_migrator::Settings {
            catalog: settings.catalog_url.clone(),
            owner: format!("{} pid {}", settings.listen, std::process::id()),
            per_shard: settings.moves_per_shard,
            sessions_per_shard: settings.move_sessions_per_shard,
            secrets: switchyard_migrator::Secrets {
                dir: settings.secrets_dir.clone(),
                unseal: opener.map(|opener| {
                    let unseal = move |shard: &_, key: &_, sealed: &_| opener.open(shard, key, sealed);
                    std::sync::Arc::new(unseal) as switchyard_migrator::Unseal
                }),
            },
        };
        let stop = async move {
            stop.await;
            let _ = told.send(());
        };
        // The tables of moves may not be there before that.
        let (tell, up_to_date) = tokio::sync::oneshot::channel();
        let moving = tokio::spawn(async move {
            if up_to_date.await.is_ok() {
                let stop = async move { drop(stopping.changed().await) };
                switchyard_migrator::run(moves, stop).await;
            }
        });
        let migrated = || {
            let _ = tell.send(());
        };
        let served = switchyard_control_plane::run(settings, migrated, stop).await;
        // An attempt at a cutover that is under way comes to its end.
        let _ = moving.await;
        Ok(served?)
    })
}

pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().context("tokio")
}

/// Done when the process is told to stop. Signals are caught from the call on, not from the first
/// poll, so that none is missed.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM"),
            _ = interrupt.recv() => info!("SIGINT"),
            () = parent_gone() => {}
        }
    })
}

async fn parent_gone() {
    if std::env::var_os(ENDS_WITH_STDIN).is_none() {
        return std::future::pending().await;
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own: a runtime waits for its blocking tasks, and this read may never end.
    std::thread::spawn(move || {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
        let _ = tell.send(());
    });
    let _ = told.await;
    info!("standard input has ended");
}
