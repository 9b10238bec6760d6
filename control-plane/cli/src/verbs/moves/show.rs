//! A move in full, for people.

use serde_json::Value;

use super::Session;
use crate::failure::Outcome;
use crate::output;

pub(super) const FIELDS: &[(&str, &str)] = &[
    ("id", "id"),
    ("tenant", "tenant"),
    ("from", "source"),
    ("to", "target"),
    ("kind", "kind"),
    ("phase", "phase"),
    ("wish", "wish"),
    ("outcome", "outcome"),
    ("error", "error"),
    ("created", "created_at"),
    ("created by", "created_by"),
    ("moved", "moved_at"),
    ("finished", "finished_at"),
];

/// Prints all of a move, or what the API answered where JSON is asked for.
pub(super) async fn show(session: &Session, found: &Value) -> Outcome {
    if session.is_json() {
        return output::json(found);
    }
    session.show(FIELDS, found)?;
    findings(&found["plan"])?;
    if found["kind"] == "plan" && found["plan"].is_object() {
        output::line("")?;
        output::object(
            &[
                ("rows", "rows"),
                ("bytes", "bytes"),
                ("estimated seconds", "estimated_s"),
                ("predicted pause, ms", "predicted_pause_ms"),
                ("oldest transaction, s", "oldest_transaction_s"),
            ],
            &found["plan"],
        )?;
    }
    if found["receipt"].is_object() {
        receipt(&found["receipt"])?;
    }
    let events = session.api.get(&format!("/v1/moves/{}/events", super::number(found))).await?;
    let events = events["items"].as_array().cloned().unwrap_or_default();
    output::line("\nevents:")?;
    output::table(&[("AT", "at"), ("PHASE", "phase"), ("WHAT", "what")], &events)
}

fn findings(plan: &Value) -> Outcome {
    let Some(findings) = plan["findings"].as_array().filter(|f| !f.is_empty()) else { return Ok(()) };
    output::line("\nfindings:")?;
    for finding in findings {
        let text = |field: &str| finding[field].as_str().unwrap_or_default();
        let kind = if finding["refuses"] == true { "refused" } else { "note" };
        output::line(&format!("  {kind}  {}: {}", text("about"), text("reason")))?;
        if !text("mend").is_empty() {
            output::line(&format!("           {}", text("mend")))?;
        }
    }
    Ok(())
}

fn receipt(receipt: &Value) -> Outcome {
    output::line("\nreceipt:")?;
    let tables = receipt["tables"].as_array().cloned().unwrap_or_default();
    output::table(&[("TABLE", "table"), ("ROWS", "rows"), ("HASH", "hash")], &tables)?;
    let mut told = receipt.clone();
    for field in ["pause", "rollback_pause"] {
        told[field] = pause(&receipt[field]).into();
    }
    told["durations_ms"] = durations(&receipt["durations_ms"]).into();
    output::object(
        &[
            ("epochs", "epochs"),
            ("changes applied", "changes_applied"),
            ("attempts", "attempts"),
            ("pause", "pause"),
            ("pause of the rollback", "rollback_pause"),
            ("durations", "durations_ms"),
            ("predicted pause, ms", "predicted_pause_ms"),
        ],
        &told,
    )
}

/// A pause in a line: what clients felt first. Times are from the order to hold.
fn pause(pause: &Value) -> Option<String> {
    let ms = |field: &str| Some(format!("{:.1}", pause[field].as_u64()? as f64 / 1e3));
    let total = ms("total_us")?;
    let felt = match pause["clients"].as_u64().unwrap_or(0) {
        0 => "no client waited".to_owned(),
        1 => format!("1 client waited for {} ms", ms("clients_us")?),
        many => format!("{many} clients waited for {} ms at most", ms("clients_us")?),
    };
    let silent = match pause["silent"].as_u64().unwrap_or(0) {
        0 => String::new(),
        silent => format!(", {silent} of them silent"),
    };
    Some(format!(
        "{total} ms, {felt} (drained at {}, frozen at {}, active at {}; routers {}{silent})",
        ms("drained_us")?,
        ms("frozen_us")?,
        ms("active_us")?,
        pause["routers"]
    ))
}

fn durations(durations: &Value) -> Option<String> {
    let ms = |field: &str| durations[field].as_u64();
    Some(format!("copy {} ms, comparison {} ms, in all {} ms", ms("copy")?, ms("verify")?, ms("total")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pauses_are_told_in_milliseconds() {
        let told = |clients: u64, silent: u64| {
            pause(&json!({ "total_us": 7240, "drained_us": 1682, "frozen_us": 4142, "active_us": 7085,
                "clients": clients, "clients_us": 6900, "routers": 2, "silent": silent }))
        };
        let times = "drained at 1.7, frozen at 4.1, active at 7.1; routers 2";
        assert_eq!(told(0, 0), Some(format!("7.2 ms, no client waited ({times})")));
        assert_eq!(told(1, 0), Some(format!("7.2 ms, 1 client waited for 6.9 ms ({times})")));
        let silent = format!("7.2 ms, 16 clients waited for 6.9 ms at most ({times}, 1 of them silent)");
        assert_eq!(told(16, 1), Some(silent));
        assert_eq!(pause(&Value::Null), None, "there has been none");
    }
}
