//! Limits on the command line: `connections=20 statement_timeout=30s storage=10GiB`.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;

/// Verbs of limits.
#[derive(Subcommand)]
pub(crate) enum LimitCommand {
    /// Show what a tenant may use: by its plan, by its own limits, and what holds.
    Get {
        /// The tenant's id.
        id: String,
    },
    /// Set limits of a tenant's own: `connections=20 statement_timeout=30s storage=10GiB`. `none`
    /// takes an inherited limit away, `inherit` the tenant's own.
    Set {
        /// The tenant's id.
        id: String,
        /// The limits.
        #[arg(required = true, value_name = "NAME=VALUE")]
        limits: Vec<String>,
    },
}

/// How a limit is written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Count,
    Bytes,
    Time,
    Word,
    List,
}

/// Names as they are written, as the API has them, and their forms.
const LIMITS: &[(&str, &str, Form)] = &[
    ("connections", "connections", Form::Count),
    ("concurrent_transactions", "concurrent_transactions", Form::Count),
    ("transactions_per_second", "transactions_per_second", Form::Count),
    ("transaction_burst", "transaction_burst", Form::Count),
    ("bytes_per_second", "bytes_per_second", Form::Bytes),
    ("byte_burst", "byte_burst", Form::Bytes),
    ("daily_transactions", "daily_transactions", Form::Count),
    ("daily_bytes", "daily_bytes", Form::Bytes),
    ("monthly_transactions", "monthly_transactions", Form::Count),
    ("monthly_bytes", "monthly_bytes", Form::Bytes),
    ("statement_timeout", "statement_timeout_ms", Form::Time),
    ("transaction_timeout", "transaction_timeout_ms", Form::Time),
    ("idle_in_transaction_timeout", "idle_in_transaction_timeout_ms", Form::Time),
    ("storage", "storage_bytes", Form::Bytes),
    ("over_storage", "over_storage", Form::Word),
    ("allow", "allow", Form::List),
    ("weight", "weight", Form::Count),
    ("wait_budget", "wait_budget_ms", Form::Time),
];

/// Puts what `words` say over `limits`.
pub(super) fn merge(limits: &mut Map<String, Value>, words: &[String]) -> Outcome {
    for word in words {
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("`{word}` must be a limit and its value: NAME=VALUE")))?;
        let known = || LIMITS.iter().map(|l| l.0).collect::<Vec<_>>().join(", ");
        let (_, field, form) = LIMITS
            .iter()
            .find(|l| l.0 == name || l.1 == name)
            .ok_or_else(|| Failure::Usage(format!("there is no limit `{name}`; there are {}", known())))?;
        match value {
            "inherit" => drop(limits.remove(*field)),
            _ => {
                let read = read(*form, value).ok_or_else(|| {
                    Failure::Usage(format!("`{name}` cannot be `{value}`: {}", expected(*form)))
                })?;
                limits.insert((*field).to_owned(), read);
            }
        }
    }
    Ok(())
}

fn expected(form: Form) -> &'static str {
    match form {
        Form::Count => "a whole number is needed, or `none`",
        Form::Bytes => "bytes are needed, such as 65536 or 10GiB, or `none`",
        Form::Time => "a duration is needed, such as 250ms, 30s or 5m, or `none`",
        Form::Word => "`alert` or `read-only` is needed",
        Form::List => "ranges of addresses are needed, with commas between them, or `none`",
    }
}

fn read(form: Form, text: &str) -> Option<Value> {
    let none = text == "none";
    let number = |units: &[(&str, u64)]| -> Option<u64> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let (_, factor) = units.iter().find(|u| u.0 == unit)?;
        number.parse::<u64>().ok()?.checked_mul(*factor)
    };
    Some(match form {
        Form::Word => json!(text),
        Form::List if none => json!([]),
        Form::List => json!(text.split(',').map(str::trim).collect::<Vec<_>>()),
        _ if none => json!(0),
        Form::Count => json!(number(&[("", 1)])?),
        Form::Bytes => json!(number(&[
            ("", 1),
            ("B", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40)
        ])?),
        Form::Time => json!(number(&[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)])?),
    })
}

const FIELDS: &[(&str, &str)] =
    &[("plan", "plan"), ("own", "own"), ("effective", "effective"), ("restriction", "restriction")];

impl LimitCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::Get { id } => session.show(FIELDS, &api.get(&of(&id)).await?),
            Self::Set { id, limits } => {
                let mut held = api.get(&of(&id)).await?;
                let Value::Object(own) = &mut held["own"] else {
                    return Err(Failure::Error(anyhow::anyhow!("the control plane tells no limits")));
                };
                merge(own, &limits)?;
                let own = held["own"].take();
                session.show(FIELDS, &api.put(&of(&id), own).await?)
            }
        }
    }
}

fn of(id: &str) -> String {
    format!("/v1/tenants/{}/limits", segment(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        let mut limits = Map::new();
        limits.insert("weight".into(), json!(7));
        let words = ["connections=20", "statement_timeout=30s", "storage=10GiB", "allow=10.0.0.0/8, ::1"];
        merge(&mut limits, &words.map(str::to_owned)).unwrap_or_else(|_| panic!("they are good"));
        merge(&mut limits, &["weight=inherit".to_owned(), "daily_bytes=none".to_owned()])
            .unwrap_or_else(|_| panic!("they are good"));
        assert_eq!(
            Value::Object(limits),
            json!({ "connections": 20, "statement_timeout_ms": 30_000, "storage_bytes": 10_737_418_240_u64,
                    "allow": ["10.0.0.0/8", "::1"], "daily_bytes": 0 })
        );
        for wrong in ["connections", "conections=1", "connections=x", "storage=1GB", "statement_timeout=30"] {
            let refused = merge(&mut Map::new(), &[wrong.to_owned()]);
            assert!(matches!(refused, Err(Failure::Usage(_))), "{wrong}");
        }
    }
}
