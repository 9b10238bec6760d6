//! Runs operations, on whichever control plane leads.

use std::time::Duration;

use serde_json::json;

use crate::feed::Feed;
use crate::leader::Term;
use crate::provision;
use crate::store::{Caller, Ending, Operation, Report, Store, StoreError};

/// How often due operations are looked for, even if none was announced.
const LOOK: Duration = Duration::from_secs(1);

/// Pause after something that may be better later.
const RETRY_SECONDS: f64 = 10.0;

/// Attempts at something that may be better later, before it counts as failed.
const ATTEMPTS: i64 = 30;

/// What this module knows how to do.
const KINDS: &[&str] = &["tenant.delete"];

/// Runs operations for as long as the process lives and whenever it leads.
pub(crate) async fn run(store: Store, mut term: Term, mut feed: Feed) {
    loop {
        let leads = *term.borrow_and_update();
        let Some(of_term) = leads else {
            if term.changed().await.is_err() {
                return;
            }
            continue;
        };
        match store.take_operation(of_term, KINDS).await {
            Ok(Some(operation)) => {
                tracing::info!(
                    operation = operation.id,
                    kind = operation.kind,
                    target = operation.target,
                    "begun"
                );
                one(&store, of_term, &operation).await;
            }
            Ok(None) => feed.operation(LOOK).await,
            Err(error) => {
                tracing::debug!(%error, "no operation could be taken");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

async fn one(store: &Store, term: i64, operation: &Operation) {
    let done = match operation.kind.as_str() {
        "tenant.delete" => delete_tenant(store, term, operation).await,
        _ => return,
    };
    let attempts = operation.journal["attempts"].as_i64().unwrap_or(0) + 1;
    let ended = match done {
        Ok(ending) => {
            tracing::info!(operation = operation.id, ending = ?ending, "ended");
            store.end_operation(&operation.id, term, ending).await
        }
        Err(error @ (StoreError::Shard { .. } | StoreError::Unavailable)) if attempts < ATTEMPTS => {
            tracing::warn!(operation = operation.id, %error, attempts, "put off");
            let mut journal = operation.journal.clone();
            journal["attempts"] = attempts.into();
            journal["last_error"] = error.to_string().into();
            let report = Report { journal: Some(journal), ..Report::default() };
            match store.tell_progress(&operation.id, term, report).await {
                Ok(_) => store.put_off_operation(&operation.id, term, RETRY_SECONDS).await,
                Err(error) => Err(error),
            }
        }
        Err(error) => {
            tracing::warn!(operation = operation.id, %error, "failed");
            store.end_operation(&operation.id, term, Ending::Failed("failed", error.to_string())).await
        }
    };
    if let Err(error) = ended {
        tracing::warn!(operation = operation.id, %error, "the end of an operation is not written");
    }
}

/// Deletes a tenant's rows, and then takes it out of the catalog. Every step may be done again.
async fn delete_tenant(store: &Store, term: i64, operation: &Operation) -> Result<Ending, StoreError> {
    let id = operation.target.as_str();
    let tenant = match store.tenant(id).await {
        Ok(tenant) => tenant,
        // Somebody was here before, and did not come to say so.
        Err(StoreError::NotFound { .. }) => return Ok(Ending::Succeeded(json!({ "tenant": id }))),
        Err(error) => return Err(error),
    };
    let mut result = json!({ "tenant": id });
    if operation.input["keep_data"] == true {
        result["kept_data"] = true.into();
    } else {
        let report = Report { phase: Some("deleting data"), ..Report::default() };
        store.tell_progress(&operation.id, term, report).await?;
        let rows = provision::clear(store, &tenant).await?;
        result["rows_deleted"] = rows.into();
        let done = i64::try_from(rows).ok();
        let report = Report { step: Some("data deleted"), done, unit: Some("rows"), ..Report::default() };
        store.tell_progress(&operation.id, term, report).await?;
    }
    let by = Caller { name: operation.created_by.clone(), ..Caller::system() };
    store.delete_tenant(&by, id).await?;
    let report = Report { phase: Some("done"), step: Some("catalog"), ..Report::default() };
    store.tell_progress(&operation.id, term, report).await?;
    Ok(Ending::Succeeded(result))
}
