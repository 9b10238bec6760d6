//! Points at which a test can have the process end, as if it were killed, or stand still.

use std::sync::atomic::{AtomicBool, Ordering};

/// The variable that names a point.
const VARIABLE: &str = "SWITCHYARD_FAULT";

/// In front of a name: the process is stopped there, once, until it is told to go on.
const STOP: &str = "stop:";

/// Ends the process, without any leave-taking, if it was started with `SWITCHYARD_FAULT` naming this point, alone or
/// among others.
pub(crate) fn point(name: &str) {
    static STOPPED: AtomicBool = AtomicBool::new(false);
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    wanted.split(',').for_each(|wanted| match wanted.strip_prefix(STOP) {
        None if wanted == name => {
            tracing::warn!(name, "ending here, as was asked for");
            std::process::abort();
        }
        Some(stop) if stop == name && !STOPPED.swap(true, Ordering::Relaxed) => {
            tracing::warn!(name, "standing still here, as was asked for");
            let pid = std::process::id().to_string();
            let _ = std::process::Command::new("kill").args(["-STOP", &pid]).status();
            tracing::warn!(name, "going on");
        }
        _ => {}
    });
}
