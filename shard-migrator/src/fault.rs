//! Points at which a test can have the process end, as if it were killed.

/// The variable that names a point.
const VARIABLE: &str = "SWITCHYARD_FAULT";

/// Ends the process, without any leave-taking, if it was started with `SWITCHYARD_FAULT` naming this point.
pub(crate) fn point(name: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        tracing::warn!(name, "ending here, as was asked for");
        std::process::abort();
    }
}
