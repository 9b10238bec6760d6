//! The process that is to take over from this one: started on SIGUSR2, it says by SIGUSR1 that it serves.

use std::process::{Command, ExitStatus};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use crate::shared::StartError;

/// Makes the command that starts the next process, which is to take over from this one.
pub type Successor = Arc<dyn Fn() -> Command + Send + Sync>;

/// The next process, while it starts.
pub(super) struct Starting {
    command: Option<Successor>,
    child: Option<Child>,
}

impl Starting {
    pub(super) fn new(command: Option<Successor>) -> Self {
        Self { command, child: None }
    }

    /// Starts it, unless it is being started already.
    pub(super) fn begin(&mut self) {
        let Some(command) = &self.command else { return };
        if self.child.is_some() {
            tracing::info!("another process is starting already");
            return;
        }
        match tokio::process::Command::from(command()).spawn() {
            Ok(child) => {
                tracing::info!(pid = child.id(), "starting the process that takes over");
                self.child = Some(child);
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the process that takes over; this one goes on")
            }
        }
    }

    /// Done when it has ended without taking over.
    pub(super) async fn failed(&mut self) {
        let ended = match &mut self.child {
            Some(child) => child.wait().await,
            None => return std::future::pending().await,
        };
        self.child = None;
        let status = ended.map(|s: ExitStatus| s.to_string()).unwrap_or_else(|e| e.to_string());
        tracing::error!(status, "the process that was to take over has ended; this one goes on");
    }
}

/// Tells the process `old` that this one serves.
///
/// # Errors
/// If there is no such process, or it is somebody else's.
pub(super) fn take_over(old: u32) -> Result<(), StartError> {
    let pid = i32::try_from(old).ok().and_then(Pid::from_raw);
    let told = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| kill_process(pid, Signal::USR1));
    told.map_err(|error| StartError::TakeOver { pid: old, error: error.into() })
}
