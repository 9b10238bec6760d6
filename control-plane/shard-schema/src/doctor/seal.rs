//! The schema on the shard, and its keys.

use tokio_postgres::GenericClient;

use super::{Expected, Notes, Severity};
use crate::SchemaError;
use crate::install::{Form, PARAMETER, status};
use crate::protect::Mode;

pub(super) async fn look(
    client: &impl GenericClient,
    expected: &Expected,
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sealed = expected.mode == Mode::Sealed;
    let install = "switchyard schema install";
    let status = match status(client).await {
        Ok(status) => status,
        Err(error) => {
            notes.add(Severity::Error, "schema", "switchyard", error.to_string(), None);
            return Ok(());
        }
    };
    let Some(status) = status else {
        if sealed {
            let text = "contexts are sealed, and the schema is not installed";
            notes.add(Severity::Error, "schema-missing", "switchyard", text, install.to_owned());
        }
        return Ok(());
    };
    if !status.current {
        let text = "the schema is of another version than this program";
        notes.add(
            Severity::Warning,
            "schema-outdated",
            "switchyard",
            text,
            "switchyard schema upgrade".to_owned(),
        );
    }
    if !sealed {
        return Ok(());
    }
    for kid in expected.kids.iter().filter(|kid| !status.keys.contains(kid)) {
        let text =
            format!("does not take key {kid}, which routers have: contexts signed with it are refused");
        let fix = "switchyard schema install --key-file FILE".to_owned();
        notes.add(Severity::Error, "key-missing", "switchyard.seal_key", text, fix);
    }
    if status.keys.is_empty() {
        let text = "has no key: no context can be entered";
        let fix = "switchyard schema install --key-file FILE".to_owned();
        notes.add(Severity::Error, "key-missing", "switchyard.seal_key", text, fix);
    }
    if status.form == Form::Sequence {
        let text = "the tenant of a session is kept by a sequence, as nobody has granted the right to set a parameter; \
                    it is as safe, and costs a few microseconds more for each statement";
        let fix = format!(
            "GRANT SET ON PARAMETER {PARAMETER} TO switchyard_owner; -- then: {install} --form parameter"
        );
        notes.add(Severity::Info, "form-sequence", "switchyard", text, fix);
    }
    Ok(())
}
