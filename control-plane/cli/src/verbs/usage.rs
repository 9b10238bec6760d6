//! Verbs of usage, health, routers and webhooks.

use clap::{Args, Subcommand};
use serde_json::json;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;
use crate::output;

/// What `switchyard usage` tells.
#[derive(Args)]
pub(crate) struct UsageArgs {
    /// Of this tenant; of all if not given.
    tenant: Option<String>,
    /// By this span: minutes are kept for 2 days, hours for 62, days for 800.
    #[arg(long, value_parser = ["minute", "hour", "day"], default_value = "day")]
    by: String,
    /// From this time: `2026-11-01`, `2026-11-01T12:00:00Z`, or seconds since 1970. 30 days ago if
    /// not given.
    #[arg(long, value_parser = time)]
    from: Option<u64>,
    /// To before this time; now if not given.
    #[arg(long, value_parser = time)]
    to: Option<u64>,
    /// As comma-separated values.
    #[arg(long)]
    csv: bool,
}

/// Verbs of routers.
#[derive(Subcommand)]
pub(crate) enum RouterCommand {
    /// List routers, as they report themselves.
    List,
}

/// Verbs of webhooks.
#[derive(Subcommand)]
pub(crate) enum WebhookCommand {
    /// List webhooks.
    List,
    /// Have alerts sent to an address. The secret that signs them is told once.
    Create {
        /// Its name.
        name: String,
        /// `https://`, or `http://` on loopback.
        #[arg(long)]
        url: String,
        /// A kind of alert to send; may be repeated. All if not given.
        #[arg(long = "kind")]
        kinds: Vec<String>,
    },
    /// Take a webhook away.
    Delete {
        /// Its name.
        name: String,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
    },
    /// List alerts, the latest first.
    Alerts {
        /// Those that are still so.
        #[arg(long)]
        open: bool,
    },
}

const USAGE: &[(&str, &str)] = &[
    ("TENANT", "tenant"),
    ("AT", "at"),
    ("TRANSACTIONS", "transactions"),
    ("STATEMENTS", "statements"),
    ("ERRORS", "errors"),
    ("LIMITED", "limited"),
    ("BYTES IN", "bytes_in"),
    ("BYTES OUT", "bytes_out"),
    ("SERVER us", "server_us"),
    ("WAIT us", "wait_us"),
    ("CONNECTIONS", "connections"),
    ("STORAGE", "storage"),
];

const ROUTERS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("ADDRESS", "address"),
    ("VERSION", "version"),
    ("ALIVE", "alive"),
    ("CLIENTS", "clients"),
    ("TOPOLOGY", "topology"),
    ("BEHIND", "behind"),
    ("SEEN", "seen_at"),
];

const HEALTH: &[(&str, &str)] = &[
    ("tenant", "tenant"),
    ("status", "status"),
    ("reasons", "reasons"),
    ("since", "since"),
    ("checked", "checked_at"),
];

const WEBHOOKS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("URL", "url"),
    ("KINDS", "kinds"),
    ("PENDING", "pending"),
    ("CREATED", "created_at"),
];

const ALERTS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("KIND", "kind"),
    ("TENANT", "tenant"),
    ("SUBJECT", "subject"),
    ("RAISED", "raised_at"),
    ("CLEARED", "cleared_at"),
    ("DETAIL", "detail"),
];

impl UsageArgs {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let mut path = format!("/v1/usage?limit=1000&span={}", self.by);
        for (key, value) in [("from", self.from), ("to", self.to)] {
            if let Some(value) = value {
                path += &format!("&{key}={value}");
            }
        }
        if let Some(tenant) = &self.tenant {
            path += &format!("&tenant={}", segment(tenant));
        }
        if self.csv {
            return output::line(session.api.text(&(path + "&format=csv")).await?.trim_end());
        }
        session.show_list(USAGE, session.all(&path).await?)
    }
}

/// Seconds since 1970 of a date, a time in UTC, or a number.
fn time(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let wrong = || "must be like 2026-11-01, 2026-11-01T12:00:00Z, or seconds since 1970".to_owned();
    let (date, clock) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let numbers = |text: &str, between: char| -> Option<Vec<i64>> {
        text.split(between).map(|part| part.parse().ok()).collect()
    };
    let date = numbers(date, '-').filter(|d| d.len() == 3).ok_or_else(wrong)?;
    let clock =
        clock.strip_suffix('Z').and_then(|c| numbers(c, ':')).filter(|c| c.len() == 3).ok_or_else(wrong)?;
    let (year, month, day) = (date[0], date[1], date[2]);
    if !(1970..=4000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(wrong());
    }
    if !(0..24).contains(&clock[0]) || !(0..60).contains(&clock[1]) || !(0..60).contains(&clock[2]) {
        return Err(wrong());
    }
    // Days since 1970 of the civil calendar, in years that begin in March.
    let y = if month <= 2 { year - 1 } else { year };
    let of_era = y.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = y.div_euclid(400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    u64::try_from(days * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2]).map_err(|_| wrong())
}

impl RouterCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        match self {
            Self::List => session.show_list(ROUTERS, session.all("/v1/routers").await?),
        }
    }
}

/// How a tenant is. Exit code 1 if it is not well.
pub(crate) async fn health(session: Session, tenant: &str) -> Outcome {
    let health = session.api.get(&format!("/v1/tenants/{}/health", segment(tenant))).await?;
    session.show(HEALTH, &health)?;
    match health["status"].as_str() {
        Some("ok") => Ok(()),
        status => Err(Failure::Error(anyhow::anyhow!("tenant {tenant} is {}", status.unwrap_or("unknown")))),
    }
}

impl WebhookCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::List => session.show_list(WEBHOOKS, session.all("/v1/webhooks").await?),
            Self::Create { name, url, kinds } => {
                let made =
                    api.post("/v1/webhooks", json!({ "name": name, "url": url, "kinds": kinds })).await?;
                session.show(&[("name", "name"), ("url", "url"), ("secret", "secret")], &made)
            }
            Self::Delete { name, yes } => {
                let path = format!("/v1/webhooks/{}", segment(&name));
                session.end("webhook", &name, "deleted", yes, &path).await
            }
            Self::Alerts { open } => {
                let path = format!("/v1/alerts?limit=1000&open={open}");
                session.show_list(ALERTS, session.all(&path).await?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(time("1970-01-01"), Ok(0));
        assert_eq!(time("2026-11-21T04:05:06Z"), Ok(1_795_233_906));
        assert_eq!(time("1795233906"), Ok(1_795_233_906));
        for wrong in ["", "2026-11", "2026-13-01", "2026-11-21T25:00:00Z", "yesterday"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
