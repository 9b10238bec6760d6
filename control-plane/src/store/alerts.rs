//! What somebody should know: alerts, whom they are sent to, and how tenants are.

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::audit::{Deed, NONE, record};
use super::values::bound;
use super::{Caller, Store, StoreError, hex, timestamp};
use crate::credentials::new_token;

/// Attempts at sending an alert.
pub(crate) const MAX_ATTEMPTS: i32 = 10;

/// What somebody should know.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Alert {
    /// Rises.
    pub id: i64,
    /// `limit_near`, `limit_reached`, `health_changed`, `sign_in_attack` or `log_retained`.
    pub kind: String,
    /// The tenant that it concerns.
    pub tenant: Option<String>,
    /// What of the kind: the limit, the address.
    pub subject: String,
    /// More of it.
    #[schema(value_type = Object)]
    pub detail: Value,
    /// When it began, in UTC.
    pub raised_at: String,
    /// When it was over, in UTC.
    pub cleared_at: Option<String>,
}

/// How a tenant is.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantHealth {
    /// The tenant.
    pub tenant: String,
    /// `ok`, `degraded` or `down`.
    pub status: String,
    /// Why, if it is not ok: `code` and `detail` of each reason.
    #[schema(value_type = Vec<Object>)]
    pub reasons: Value,
    /// Since when, in UTC, if that is known.
    pub since: Option<String>,
    /// When it was last looked at, in UTC; none if nothing was ever found wrong.
    pub checked_at: Option<String>,
}

/// Where alerts are sent to.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Kinds of alerts that are sent; all if empty.
    pub kinds: Vec<String>,
    /// Whether anything is sent.
    pub enabled: bool,
    /// Alerts that are still to be sent.
    pub pending: i64,
    /// When it was made, in UTC.
    pub created_at: String,
}

/// A webhook to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// 1 to 63 bytes on one line.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// `https://`, or `http://` on loopback.
    pub url: String,
    /// Kinds of alerts to send; all if empty.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// What signs what is sent, at least 16 characters; made if not given.
    #[schema(value_type = Option<String>)]
    pub secret: Option<SecretString>,
}

/// An alert to be sent.
pub(crate) struct Delivery {
    pub(crate) alert: Alert,
    pub(crate) webhook: String,
    pub(crate) url: String,
    pub(crate) attempts: i32,
    secret: Zeroizing<Vec<u8>>,
}

impl Delivery {
    /// `t=<time>,v1=<HMAC-SHA-256 of "<time>.<body>" in hexadecimal digits>`.
    pub(crate) fn signature(&self, time: u64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{time}.").as_bytes());
        context.update(body);
        format!("t={time},v1={}", hex(context.sign().as_ref()))
    }
}

impl Store {
    /// Alerts, the latest first.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn alerts(
        &self,
        tenant: Option<&str>,
        open: bool,
        limit: i64,
    ) -> Result<Vec<Alert>, StoreError> {
        let sql = format!(
            "SELECT {} FROM alerts a WHERE ($1::text IS NULL OR tenant = $1) AND (NOT $2 OR cleared_at IS NULL)
             ORDER BY id DESC LIMIT $3",
            alert_columns()
        );
        let rows = self.client().await?.query(&sql, &[&tenant, &open, &limit]).await?;
        Ok(rows.iter().map(alert).collect())
    }

    /// Raises an alert, unless it is raised already, and has it sent.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn raise(
        &self,
        kind: &str,
        tenant: Option<&str>,
        subject: &str,
        detail: Value,
    ) -> Result<(), StoreError> {
        let sql = "WITH raised AS (
                       INSERT INTO alerts (kind, tenant, subject, detail) VALUES ($1, $2, $3, $4)
                       ON CONFLICT (kind, COALESCE(tenant, ''), subject) WHERE cleared_at IS NULL DO NOTHING
                       RETURNING id)
                   INSERT INTO deliveries (alert, webhook)
                   SELECT id, w.name FROM raised, webhooks w
                   WHERE w.enabled AND (w.kinds = '{}' OR $1 = ANY (w.kinds))";
        self.client().await?.execute(sql, &[&kind, &tenant, &subject, &detail]).await?;
        Ok(())
    }

    /// Ends those open alerts of a kind whose tenant and subject are not among those given.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn clear_others(
        &self,
        kind: &str,
        still: &[(String, String)],
    ) -> Result<(), StoreError> {
        let (tenants, subjects): (Vec<&str>, Vec<&str>) =
            still.iter().map(|(t, s)| (t.as_str(), s.as_str())).unzip();
        let sql = "UPDATE alerts a SET cleared_at = now() WHERE kind = $1 AND cleared_at IS NULL
                   AND NOT EXISTS (SELECT 1 FROM unnest($2::text[], $3::text[]) AS s (tenant, subject)
                                   WHERE s.tenant = COALESCE(a.tenant, '') AND s.subject = a.subject)";
        self.client().await?.execute(sql, &[&kind, &tenants, &subjects]).await?;
        Ok(())
    }

    /// How a tenant is.
    ///
    /// # Errors
    /// If there is no such tenant, or the catalog fails.
    pub async fn tenant_health(&self, id: &str) -> Result<TenantHealth, StoreError> {
        let sql = format!(
            "SELECT t.state, h.status, h.reasons, {}, {} FROM tenants t
             LEFT JOIN tenant_health h ON h.tenant = t.id WHERE t.id = $1",
            timestamp("h.since"),
            timestamp("h.checked_at")
        );
        let row = self.client().await?.query_opt(&sql, &[&id]).await?;
        let row = row.ok_or_else(|| StoreError::not_found("tenant", id))?;
        let mut reasons = row.get::<_, Option<Value>>(2).unwrap_or_else(|| json!([]));
        let mut status = row.get::<_, Option<String>>(1).unwrap_or_else(|| "ok".to_owned());
        let state: &str = row.get(0);
        if state != "active"
            && let Some(reasons) = reasons.as_array_mut()
        {
            reasons.push(json!({ "code": "state", "detail": format!("the tenant is {state}") }));
            status = if state == "read-only" { "degraded" } else { "down" }.to_owned();
        }
        Ok(TenantHealth { tenant: id.to_owned(), status, reasons, since: row.get(3), checked_at: row.get(4) })
    }

    /// Writes how a tenant was found to be. How it was before, if that was different.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn set_health(
        &self,
        tenant: &str,
        status: &str,
        reasons: &Value,
    ) -> Result<Option<String>, StoreError> {
        let sql = "WITH before AS (SELECT status FROM tenant_health WHERE tenant = $1),
                   written AS (
                       INSERT INTO tenant_health AS h (tenant, status, reasons) SELECT id, $2, $3 FROM tenants WHERE id = $1
                       ON CONFLICT (tenant) DO UPDATE SET reasons = $3, status = $2, checked_at = now(),
                           since = CASE WHEN h.status = $2 THEN h.since ELSE now() END
                       RETURNING 1)
                   SELECT COALESCE((SELECT status FROM before), 'ok') FROM written";
        let row = self.client().await?.query_opt(sql, &[&tenant, &status, reasons]).await?;
        let before: Option<String> = row.map(|r| r.get(0));
        Ok(before.filter(|b| b != status))
    }

    /// All webhooks, by name.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn webhooks(&self) -> Result<Vec<Webhook>, StoreError> {
        let sql = format!("{} ORDER BY name", select_webhook());
        Ok(self.client().await?.query(&sql, &[]).await?.iter().map(webhook).collect())
    }

    /// Makes a webhook, and returns the secret that signs, if it was made here.
    ///
    /// # Errors
    /// If there is one by that name, it makes no sense, there are no keys, or the catalog fails.
    pub async fn create_webhook(
        &self,
        caller: &Caller,
        new: NewWebhook,
    ) -> Result<(Webhook, Option<SecretString>), StoreError> {
        if new.name.is_empty() || new.name.len() > 63 || new.name.chars().any(char::is_control) {
            return Err(StoreError::invalid("name", "must be 1 to 63 bytes on one line"));
        }
        check_url(&new.url)?;
        let given = new.secret.is_some();
        let secret = match new.secret {
            Some(secret) if secret.expose_secret().len() < 16 => {
                return Err(StoreError::invalid("secret", "must be at least 16 characters"));
            }
            Some(secret) => secret,
            None => new_token()?,
        };
        let bytes = secret.expose_secret().as_bytes();
        let (kid, sealed) = self.keys()?.seal(&bound("webhook", &new.name, ""), bytes)?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let sql = "INSERT INTO webhooks (name, url, kid, secret, kinds) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT DO NOTHING";
        if t.execute(sql, &[&new.name, &new.url, &kid, &sealed, &new.kinds]).await? == 0 {
            return Err(StoreError::exists("webhook", &new.name));
        }
        let row = t.query_one(&format!("{} WHERE name = $1", select_webhook()), &[&new.name]).await?;
        let made = webhook(&row);
        record(&t, caller, Deed::new("create", "webhook", &new.name), NONE, Some(&made)).await?;
        t.commit().await?;
        Ok((made, (!given).then_some(secret)))
    }

    /// Takes a webhook away, with what is still to be sent to it.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn delete_webhook(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let row = t.query_opt(&format!("{} WHERE name = $1", select_webhook()), &[&name]).await?;
        let before = row.as_ref().map(webhook).ok_or_else(|| StoreError::not_found("webhook", name))?;
        caller.expects(&before)?;
        t.execute("DELETE FROM webhooks WHERE name = $1", &[&name]).await?;
        record(&t, caller, Deed::new("delete", "webhook", name), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }

    /// Alerts that are to be sent now. Each is put off by the pause before its next attempt, so
    /// that it is sent again if nobody comes to say how it went.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn due_deliveries(&self, limit: i64) -> Result<Vec<Delivery>, StoreError> {
        let sql = format!(
            "WITH due AS (
                 SELECT alert, webhook FROM deliveries WHERE done_at IS NULL AND next_at <= now()
                 ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED),
             taken AS (
                 UPDATE deliveries d SET attempts = attempts + 1,
                        next_at = now() + interval '5 s' * power(2, least(attempts, 9))
                 FROM due WHERE d.alert = due.alert AND d.webhook = due.webhook RETURNING d.*)
             SELECT {}, w.name, w.url, w.kid, w.secret, taken.attempts
             FROM taken JOIN alerts a ON a.id = taken.alert JOIN webhooks w ON w.name = taken.webhook",
            alert_columns()
        );
        let keys = self.keys()?;
        let rows = self.client().await?.query(&sql, &[&limit]).await?;
        let delivery = |r: &tokio_postgres::Row| {
            let name: String = r.get(7);
            let secret = keys.open(r.get(9), &bound("webhook", &name, ""), r.get(10))?;
            Some(Delivery { alert: alert(r), url: r.get(8), attempts: r.get(11), webhook: name, secret })
        };
        Ok(rows.iter().filter_map(delivery).collect())
    }

    /// Says how sending went.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn delivered(
        &self,
        delivery: &Delivery,
        failure: Option<&str>,
    ) -> Result<(), StoreError> {
        let over = failure.is_none() || delivery.attempts >= MAX_ATTEMPTS;
        let sql = "UPDATE deliveries SET last_error = $3, done_at = CASE WHEN $4 THEN now() END
                   WHERE alert = $1 AND webhook = $2";
        let client = self.client().await?;
        client.execute(sql, &[&delivery.alert.id, &delivery.webhook, &failure, &over]).await?;
        Ok(())
    }
}

fn check_url(url: &str) -> Result<(), StoreError> {
    let wrong = || StoreError::invalid("url", "must be https://, or http:// on loopback, without a user");
    let uri: hyper::Uri = url.parse().map_err(|_| wrong())?;
    let host = uri.host().unwrap_or_default();
    let loopback = ["127.0.0.1", "localhost", "[::1]"].contains(&host);
    let plain = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
    match uri.scheme_str() {
        Some("https") if plain => Ok(()),
        Some("http") if plain && loopback => Ok(()),
        _ => Err(wrong()),
    }
}

fn alert_columns() -> String {
    format!(
        "a.id, a.kind, a.tenant, a.subject, a.detail, {}, {}",
        timestamp("a.raised_at"),
        timestamp("a.cleared_at")
    )
}

fn alert(r: &tokio_postgres::Row) -> Alert {
    Alert {
        id: r.get(0),
        kind: r.get(1),
        tenant: r.get(2),
        subject: r.get(3),
        detail: r.get(4),
        raised_at: r.get(5),
        cleared_at: r.get(6),
    }
}

fn select_webhook() -> String {
    format!(
        "SELECT name, url, kinds, enabled,
                (SELECT count(*) FROM deliveries d WHERE d.webhook = w.name AND done_at IS NULL),
                {} FROM webhooks w",
        timestamp("created_at")
    )
}

fn webhook(r: &tokio_postgres::Row) -> Webhook {
    Webhook {
        name: r.get(0),
        url: r.get(1),
        kinds: r.get(2),
        enabled: r.get(3),
        pending: r.get(4),
        created_at: r.get(5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_sent_in_the_clear() {
        for url in
            ["https://example.com/hook", "http://127.0.0.1:8080/x", "http://localhost/", "http://[::1]:1/"]
        {
            assert!(check_url(url).is_ok(), "{url}");
        }
        for url in
            ["http://example.com/", "ftp://x/", "x", "https://u:p@example.com/", "http://127.0.0.1.evil/"]
        {
            assert!(check_url(url).is_err(), "{url}");
        }
    }
}
