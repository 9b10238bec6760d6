//! `/v1/usage`, `/v1/routers`, and a tenant's usage, health and sign-ins.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::answer::{behind, cursor, page_size};
use super::caller::{AnyViewer, TenantViewer, Viewer};
use super::input::{Name, Query};
use super::problem::Problem;
use crate::store::{Alert, Router, SignIn, Span, TenantHealth, Usage, UsageQuery};

/// Which usage to tell.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageFilter {
    /// Of this tenant.
    tenant: Option<String>,
    /// By `minute`, `hour` or `day`; by day if not given.
    #[param(pattern = "^(minute|hour|day)$")]
    span: Option<String>,
    /// From this time, in seconds since 1970; 30 days ago if not given.
    #[param(minimum = 0, maximum = 99999999999_i64)]
    from: Option<u64>,
    /// To before this time, in seconds since 1970; now if not given.
    #[param(minimum = 0, maximum = 99999999999_i64)]
    to: Option<u64>,
    /// `json` or `csv`; JSON if not given.
    #[param(pattern = "^(json|csv)$")]
    format: Option<String>,
    /// Where to go on, as a list has answered.
    cursor: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Usage, and where to go on.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageList {
    items: Vec<Usage>,
    /// What to give as `cursor` for what follows; none at the end.
    next: Option<String>,
}

/// By what to sort.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct TopFilter {
    /// `transactions`, `statements`, `errors`, `limited`, `bytes_in`, `bytes_out`, `server_us`,
    /// `wait_us` or `connections`; transactions if not given.
    #[param(
        pattern = "^(transactions|statements|errors|limited|bytes_in|bytes_out|server_us|wait_us|connections)$"
    )]
    sort: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// The busiest tenants.
#[derive(Serialize, ToSchema)]
pub(super) struct Top {
    /// Seconds that the numbers are of, about.
    seconds: u64,
    items: Vec<Usage>,
}

/// Routers.
#[derive(Serialize, ToSchema)]
pub(super) struct RouterList {
    items: Vec<Router>,
}

/// How far.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Limit {
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Sign-ins.
#[derive(Serialize, ToSchema)]
pub(super) struct SignInList {
    items: Vec<SignIn>,
}

/// Which alerts to tell.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AlertFilter {
    /// Those that are still so.
    open: Option<bool>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Alerts, the latest first.
#[derive(Serialize, ToSchema)]
pub(super) struct AlertList {
    items: Vec<Alert>,
}

/// What tenants used, over a range of time: for billing. As JSON in pages, or as CSV.
#[utoipa::path(get, path = "/v1/usage", tag = "usage", params(UsageFilter),
    responses((status = 200, content((UsageList = "application/json"), (String = "text/csv"))),
        (status = "default", body = Problem)))]
pub(super) async fn usage(
    AnyViewer(caller): AnyViewer,
    State(app): State<App>,
    Query(filter): Query<UsageFilter>,
) -> Result<Response, Problem> {
    let tenant = caller.tenant.as_deref().or(filter.tenant.as_deref());
    of(&app, tenant, &filter).await
}

/// What one tenant used.
#[utoipa::path(get, path = "/v1/tenants/{id}/usage", tag = "usage", params(("id" = String, Path), UsageFilter),
    responses((status = 200, content((UsageList = "application/json"), (String = "text/csv"))),
        (status = "default", body = Problem)))]
pub(super) async fn of_tenant(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
    Query(filter): Query<UsageFilter>,
) -> Result<Response, Problem> {
    app.store.tenant(&id).await?;
    of(&app, Some(&id), &filter).await
}

async fn of(app: &App, tenant: Option<&str>, filter: &UsageFilter) -> Result<Response, Problem> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |d| d.as_secs());
    let csv = match filter.format.as_deref() {
        None | Some("json") => false,
        Some("csv") => true,
        Some(_) => {
            let detail = "`format` must be `json` or `csv`";
            return Err(Problem::malformed(StatusCode::BAD_REQUEST, detail));
        }
    };
    let span = match filter.span.as_deref() {
        Some("minute") => Span::Minute,
        Some("hour") => Span::Hour,
        None | Some("day") => Span::Day,
        Some(_) => {
            let detail = "`span` must be `minute`, `hour` or `day`";
            return Err(Problem::malformed(StatusCode::BAD_REQUEST, detail));
        }
    };
    // A time that PostgreSQL has no timestamp for.
    const MOST: u64 = 99_999_999_999;
    let size = page_size(filter.limit);
    let last = behind(filter.cursor.as_deref())?;
    let behind = match last.split_once(' ') {
        Some((at, tenant)) => Some((
            tenant,
            at.parse::<f64>().map_err(|_| {
                Problem::malformed(
                    StatusCode::BAD_REQUEST,
                    "`cursor` must be one that a list has answered with",
                )
            })?,
        )),
        None => None,
    };
    let mut query = UsageQuery {
        tenant,
        span,
        from: filter.from.unwrap_or(now.saturating_sub(30 * 86_400)).min(MOST) as f64,
        to: filter.to.unwrap_or(now).min(MOST) as f64,
        behind: behind.filter(|b| b.1.is_finite() && b.1 >= 0.0 && b.1 <= MOST as f64),
        limit: size as i64 + 1,
    };
    if csv {
        query.limit = MAX_CSV_ROWS;
        let items = app.store.usage(&query).await?;
        let kind = (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present");
        return Ok(([kind], to_csv(&items)).into_response());
    }
    let mut items = app.store.usage(&query).await?;
    let next = if items.len() > size {
        items.truncate(size);
        items.last().map(|u| cursor(&format!("{} {}", seconds(&u.at), u.tenant)))
    } else {
        None
    };
    Ok(Answer(UsageList { items, next }).into_response())
}

/// Most rows of one answer as CSV; beyond, the range must be parted.
const MAX_CSV_ROWS: i64 = 1_000_000;

/// RFC 4180, with the header. Text that a spreadsheet would run as a formula is quoted by a quote.
fn to_csv(items: &[Usage]) -> String {
    let mut out = String::from(
        "tenant,at,transactions,statements,rows,errors,limited,bytes_in,bytes_out,server_us,wait_us,connections,storage\r\n",
    );
    for u in items {
        let storage = u.storage.map(|s| s.to_string()).unwrap_or_default();
        out += &format!(
            "{},{},{},{},{},{},{},{},{},{},{},{},{storage}\r\n",
            field(&u.tenant),
            u.at,
            u.transactions,
            u.statements,
            u.rows,
            u.errors,
            u.limited,
            u.bytes_in,
            u.bytes_out,
            u.server_us,
            u.wait_us,
            u.connections
        );
    }
    out
}

fn field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@']);
    if formula || text.contains([',', '"', '\r', '\n']) {
        format!("\"{}{}\"", if formula { "'" } else { "" }, text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Seconds since 1970 of `2026-11-21T04:05:06Z`, as the catalog writes it.
fn seconds(at: &str) -> i64 {
    let part = |range: std::ops::Range<usize>| at.get(range).and_then(|p| p.parse::<i64>().ok()).unwrap_or(0);
    let (year, month, day) = (part(0..4), part(5..7), part(8..10));
    // Days from civil, by Howard Hinnant: years begin in March.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    days * 86_400 + part(11..13) * 3600 + part(14..16) * 60 + part(17..19)
}

/// The busiest tenants of the last one to two minutes.
#[utoipa::path(get, path = "/v1/usage/top", tag = "usage", params(TopFilter),
    responses((status = 200, body = Top), (status = "default", body = Problem)))]
pub(super) async fn top(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<TopFilter>,
) -> Result<Answer<Top>, Problem> {
    const COLUMNS: [&str; 9] = [
        "transactions",
        "statements",
        "errors",
        "limited",
        "bytes_in",
        "bytes_out",
        "server_us",
        "wait_us",
        "connections",
    ];
    let asked = filter.sort.as_deref().unwrap_or("transactions");
    let column = COLUMNS.into_iter().find(|c| *c == asked).ok_or_else(|| {
        Problem::malformed(StatusCode::BAD_REQUEST, format!("`sort` must be one of {}", COLUMNS.join(", ")))
    })?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = 60 + now.map_or(0, |d| d.as_secs() % 60);
    let items = app.store.busiest(column, page_size(filter.limit) as i64).await?;
    Ok(Answer(Top { seconds, items }))
}

/// Routers, as they report themselves.
#[utoipa::path(get, path = "/v1/routers", tag = "usage",
    responses((status = 200, body = RouterList), (status = "default", body = Problem)))]
pub(super) async fn routers(_: Viewer, State(app): State<App>) -> Result<Answer<RouterList>, Problem> {
    Ok(Answer(RouterList { items: app.store.routers().await? }))
}

/// How a tenant is, and why.
#[utoipa::path(get, path = "/v1/tenants/{id}/health", tag = "usage", params(("id" = String, Path)),
    responses((status = 200, body = TenantHealth), (status = "default", body = Problem)))]
pub(super) async fn health(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<TenantHealth>, Problem> {
    Ok(Answer(app.store.tenant_health(&id).await?))
}

/// Who signed in as a tenant's users or was refused, per minute, the latest first.
#[utoipa::path(get, path = "/v1/tenants/{id}/sign-ins", tag = "usage", params(("id" = String, Path), Limit),
    responses((status = 200, body = SignInList), (status = "default", body = Problem)))]
pub(super) async fn sign_ins(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
    Query(limit): Query<Limit>,
) -> Result<Answer<SignInList>, Problem> {
    app.store.tenant(&id).await?;
    Ok(Answer(SignInList { items: app.store.sign_ins(&id, page_size(limit.limit) as i64).await? }))
}

/// Alerts, the latest first.
#[utoipa::path(get, path = "/v1/alerts", tag = "usage", params(AlertFilter),
    responses((status = 200, body = AlertList), (status = "default", body = Problem)))]
pub(super) async fn alerts(
    AnyViewer(caller): AnyViewer,
    State(app): State<App>,
    Query(filter): Query<AlertFilter>,
) -> Result<Answer<AlertList>, Problem> {
    let open = filter.open.unwrap_or_default();
    let items = app.store.alerts(caller.tenant.as_deref(), open, page_size(filter.limit) as i64).await?;
    Ok(Answer(AlertList { items }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-21T04:05:06Z", 1_795_233_906),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn csv_runs_nothing_in_a_spreadsheet() {
        assert_eq!(field("acme"), "acme");
        assert_eq!(field("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(field("=1+1"), "\"'=1+1\"");
    }
}
