//! From accept to ready: the first packets, TLS, proof, tenant.
//!
//! Nothing is allocated from a length that a stranger declared, all of it happens within
//! `login_timeout`, and whoever fails learns nothing: an unknown user, an unknown tenant and a
//! wrong password look the same. The log has the cause.

pub(crate) mod guessing;
pub(crate) mod nobody;
pub(crate) mod places;
mod proof;
mod proxy;
mod startup;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use switchyard_config::TenantId;
use switchyard_config::topology::{ConsoleRole, PoolMode, Tenant, Topology, User};
use switchyard_wire::build;
use switchyard_wire::error::{ErrorResponse, sqlstate};

use crate::console::{self, ConsoleSession};
use crate::context::{Wish, Wishes};
use crate::identity::{self, IdentityError};
use crate::prime::{self, Keeper, Kept};
use crate::roaming::Rules;
use crate::session::handle::{ClientFacts, SessionHandle};
use crate::session::roaming::{Roaming, Roams};
use crate::session::{Core, Reads, Seat, Session, Who, suspended};
use crate::shared::Shared;
use crate::stats::{Method, Rejected};
use crate::stream::ClientStream;
use startup::{Opened, Opening};

/// Why a login ended without a session.
pub(crate) enum Ended {
    /// It was a cancel request, a probe, or somebody who left.
    Quietly,
    /// The client is told, the log has it already.
    Refused(ErrorResponse),
    /// The same, in words that are already bytes.
    Told(Vec<u8>),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self::Quietly
    }
}

/// A client that was let in.
pub(crate) enum Admitted {
    /// A session of a tenant.
    Session(Box<Session>),
    /// A session of the console.
    Console(Box<ConsoleSession>),
}

/// Speaks with a new client until it is a session.
/// `address` is the client's; none on a unix socket.
pub(crate) async fn login(
    shared: Arc<Shared>,
    stream: ClientStream,
    address: Address,
    worker: usize,
) -> Option<Admitted> {
    let settings = shared.settings().clone();
    let limits = &settings.limits;
    let deadline = tokio::time::Instant::now() + limits.login_timeout;
    let take = |address: Address| {
        let address = address.filter(|a| !a.is_loopback());
        shared.places.take(address, limits.unauthenticated, limits.unauthenticated_per_address)
    };
    let crowded = |address: Address| {
        shared.stats.reject(Rejected::Unauthenticated);
        tracing::debug!(
            address = address.map(tracing::field::display),
            "too many unauthenticated connections"
        );
    };
    let proxied = address.is_some_and(|a| settings.proxy_protocol.iter().any(|network| network.contains(a)));
    let Some(mut place) = take(address.filter(|_| !proxied)) else {
        crowded(address);
        return None;
    };
    let mut opening = Opening::new(shared.clone(), stream, address, deadline);
    if proxied {
        // Whose connection it is, and so whose place it takes, is said in front of everything.
        if !matches!(tokio::time::timeout_at(deadline, opening.proxied()).await, Ok(Ok(()))) {
            return None;
        }
        drop(place);
        place = take(opening.address())?;
    }
    let address = opening.address();
    let gone = place.gone();
    let attempt = async {
        tokio::select! {
            biased;
            done = run(&shared, &mut opening, &mut place, worker) => Some(done),
            () = gone.notified() => None,
        }
    };
    let done = tokio::time::timeout_at(deadline, attempt).await;
    drop(place);
    let done = match done {
        Ok(Some(done)) => Ok(done),
        Ok(None) => {
            crowded(address);
            return None;
        }
        Err(late) => Err(late),
    };
    match done {
        Ok(Ok(admitted)) => return Some(admitted),
        Ok(Err(Ended::Quietly)) => {}
        Ok(Err(Ended::Refused(error))) => {
            // Who is let in is told so first.
            let mut words = if opening.let_in { std::mem::take(&mut opening.parting) } else { Vec::new() };
            error.encode(&mut words);
            opening.refuse(&words).await;
        }
        Ok(Err(Ended::Told(words))) => opening.refuse(&words).await,
        Err(_) => {
            shared.stats.reject(Rejected::Timeout);
            tracing::info!(address = address.map(tracing::field::display), "login not finished in time");
        }
    }
    None
}

async fn run(
    shared: &Arc<Shared>,
    opening: &mut Opening,
    place: &mut places::Place,
    worker: usize,
) -> Result<Admitted, Ended> {
    let opened = opening.open().await?;
    let topology = shared.topology();
    let (user, purpose) = prove(shared, &topology, opening, &opened).await?;
    match purpose {
        Purpose::Console(_) => place.keep(),
        Purpose::Tenant(_) | Purpose::Roaming => {
            if !place.keep_unless_reserved(shared.settings().limits.unauthenticated) {
                shared.stats.reject(Rejected::Unauthenticated);
                return Err(Ended::Refused(
                    ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, "too many clients are logging in")
                        .hint("Try again in a moment."),
                ));
            }
        }
    }
    match purpose {
        Purpose::Tenant(tenant) => begin(shared, opening, opened, &user, Some(&tenant), worker).await,
        Purpose::Roaming => begin(shared, opening, opened, &user, None, worker).await,
        Purpose::Console(role) => begin_console(shared, opening, &opened, &user, role).await,
    }
}

/// What somebody is let in for.
enum Purpose {
    Tenant(Arc<Tenant>),
    /// Many tenants, one for each transaction.
    Roaming,
    Console(ConsoleRole),
}

/// Who the client is, by its own word and by its proof.
async fn prove(
    shared: &Arc<Shared>,
    topology: &Arc<Topology>,
    opening: &mut Opening,
    opened: &Opened,
) -> Result<(Arc<User>, Purpose), Ended> {
    let settings = shared.settings();
    let sources = identity::Sources {
        user: opened.startup.user(),
        database: opened.startup.database(),
        startup: &opened.startup.params,
        options: &opened.options,
        sni: opened.sni.as_deref(),
    };
    let for_console = settings.console.databases.iter().any(|name| name == sources.database);
    let resolved = match for_console {
        true => identity::resolve_console(topology, sources.user),
        false => identity::resolve(topology, &settings.identity, &sources),
    };
    let free = settings.limits.failed_logins;
    drop(settings);
    let proven = match &resolved {
        Ok(resolved) => {
            let done = proof::prove(opening, topology, opened, Some(resolved)).await;
            hold_back(shared, opened, &done, free).await;
            done
        }
        Err(error) => {
            // Go through the motions with somebody who does not exist.
            let done = proof::prove(opening, topology, opened, None).await;
            hold_back(shared, opened, &done, free).await;
            match done {
                Err(proof::Failed::Wrong(_)) | Ok(_) => {
                    return Err(refuse(shared, opened, &error.to_string(), Method::None));
                }
                Err(other) => Err(other),
            }
        }
    };
    let (resolved, proven) = match (resolved, proven) {
        (Ok(resolved), Ok(proven)) => (resolved, proven),
        (_, Err(proof::Failed::Gone)) => return Err(Ended::Quietly),
        (_, Err(proof::Failed::Protocol(error))) => return Err(Ended::Refused(error)),
        (resolved, Err(proof::Failed::Wrong(wrong))) => {
            let tenant = resolved.ok().and_then(|r| attempted(topology, &r));
            return Err(refuse_of(shared, opened, tenant.as_ref(), &wrong.cause, wrong.method));
        }
        (Err(error), _) => return Err(refuse(shared, opened, &error.to_string(), Method::None)),
    };
    let decided = match for_console {
        true => identity::decide_console(&resolved, proven.as_proof()).map(Purpose::Console),
        false => match identity::decide_roaming(&resolved, proven.as_proof()) {
            Some(decided) => decided.map(|()| Purpose::Roaming),
            None => identity::decide(topology, &resolved, proven.as_proof()).map(Purpose::Tenant),
        },
    };
    match decided {
        Ok(purpose) => {
            shared.stats.login(proven.method, true);
            let tenant = match &purpose {
                Purpose::Tenant(tenant) => Some(&tenant.id),
                Purpose::Roaming | Purpose::Console(_) => None,
            };
            note(shared, opened, tenant, proven.method, "ok");
            Ok((resolved.user.clone(), purpose))
        }
        Err(IdentityError::NoConsole { user }) => {
            shared.stats.login(proven.method, false);
            note(shared, opened, None, proven.method, "refused");
            tracing::warn!(user, "console refused to a user without a role in it");
            Err(Ended::Refused(console::no_role(&user)))
        }
        Err(IdentityError::Suspended { tenant }) => {
            shared.stats.login(proven.method, false);
            note(shared, opened, Some(&tenant.id), proven.method, "suspended");
            tracing::info!(user = resolved.user.name, tenant = %tenant.id, "login of a suspended tenant");
            Err(Ended::Refused(suspended(&tenant.id)))
        }
        Err(error) => Err(refuse(shared, opened, &error.to_string(), proven.method)),
    }
}

/// Counts a proof that was given, and keeps the answer waiting where many before it were wrong.
async fn hold_back(shared: &Shared, opened: &Opened, done: &Result<proof::Proven, proof::Failed>, free: u32) {
    let (login, address) = (opened.startup.user(), opened.address);
    let delay = shared.guessing.delay(login, address, free);
    match done {
        Ok(proven) if proven.method == Method::Trust => return,
        Ok(_) => shared.guessing.succeeded(login, address),
        Err(proof::Failed::Wrong(_)) => shared.guessing.failed(login, address),
        Err(_) => return,
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// The one answer to everybody who is not let in. // src/backend/libpq/auth.c auth_failed
fn refuse(shared: &Shared, opened: &Opened, cause: &str, method: Method) -> Ended {
    refuse_of(shared, opened, None, cause, method)
}

/// The same, of somebody who tried to act for a tenant.
fn refuse_of(
    shared: &Shared,
    opened: &Opened,
    tenant: Option<&TenantId>,
    cause: &str,
    method: Method,
) -> Ended {
    shared.stats.login(method, false);
    note(shared, opened, tenant, method, "refused");
    let user = opened.startup.user();
    tracing::warn!(
        user = user.escape_debug().to_string(),
        address = opened.address.map(tracing::field::display),
        cause,
        "login refused"
    );
    Ended::Refused(ErrorResponse::fatal(
        sqlstate::INVALID_PASSWORD,
        format!("password authentication failed for user \"{user}\""),
    ))
}

/// The tenant that somebody tried to act for, if it is one that exists.
fn attempted(topology: &Topology, resolved: &identity::Resolved) -> Option<TenantId> {
    let only = match &resolved.user.tenants {
        switchyard_config::topology::TenantGrant::One(tenant) => Some(tenant),
        _ => None,
    };
    resolved.claimed.as_ref().or(only).filter(|t| topology.tenants.contains_key(*t)).cloned()
}

/// Counts a login for the catalog, where there is one to tell.
fn note(shared: &Shared, opened: &Opened, tenant: Option<&TenantId>, method: Method, outcome: &'static str) {
    if shared.settings().catalog.is_some() {
        shared.stats.sign_ins.note(tenant, opened.startup.user(), opened.address, method, outcome);
    }
}

/// Makes the session of a client that is let in, and tells it so. Without a tenant, it roams.
async fn begin(
    shared: &Arc<Shared>,
    opening: &mut Opening,
    opened: Opened,
    user: &User,
    tenant: Option<&Tenant>,
    worker: usize,
) -> Result<Admitted, Ended> {
    opening.let_in = true;
    build::auth_ok(&mut opening.parting);
    let rules = match tenant {
        Some(_) => None,
        None => Some(roaming_rules(shared)?),
    };
    let nobody = Tenant::new(TenantId::nobody());
    let tenant = tenant.unwrap_or(&nobody);
    if rules.is_none()
        && let Some(register) = shared.register_tenant.get()
        && !shared.topology().tenants.contains_key(&tenant.id)
    {
        register(tenant.id.clone());
    }
    let login = user.server_login.as_ref().map_or(0, |login| shared.logins.number(login));
    let reads = match reads(&opened, user) {
        // What the client may change in any transaction: it stays on the primaries.
        Reads::AtFirst if rules.is_some() => Reads::Anything,
        reads => reads,
    };
    let roams = rules.clone().map(Roams::new);
    let who = Arc::new(Who { user: user.name.clone(), tenant: tenant.id.clone(), reads, login, roams });
    let mut seat = shared.seat(&who, worker).map_err(Ended::Refused)?;
    if rules.is_none()
        && let Some(refusal) = shared.pauses.refusal(&tenant.id, &seat.pool.shard.name)
    {
        return Err(Ended::Refused(refusal));
    }
    let wishes = wishes(shared, &opened, &seat.context)?;
    let stats = shared.stats.tenant(&tenant.id);
    let admitted = crate::limits::admit(&tenant.limits, &stats, opened.address, &shared.leasing).await;
    let arrival = admitted.map_err(|error| {
        tracing::info!(tenant = %tenant.id, address = opened.address.map(tracing::field::display),
            error = error.message, "login over a limit");
        Ended::Refused(error)
    })?;
    let id = shared.next_session();
    if seat.pool.is_of_standbys() && !prime::is_there(&seat, worker).await {
        // The primary serves, or says why not.
        seat.pool.distrust_standbys();
        shared.raise_generation();
        seat = shared.seat(&who, worker).map_err(Ended::Refused)?;
    }
    let keeper = Keeper { session: id, tenant: &tenant.id, deadline: opening.deadline };
    let mut greeted = greet(&seat, &wishes, worker, keeper).await;
    if seat.may_do_without_standbys() && greeted.as_ref().is_err_and(prime::is_absence) {
        seat.pool.distrust_standbys();
        shared.raise_generation();
        seat = shared.seat(&who, worker).map_err(Ended::Refused)?;
        greeted = greet(&seat, &wishes, worker, keeper).await;
    }
    let (reported, kept) = greeted.map_err(Ended::Refused)?;
    let key = shared
        .next_key(opened.startup.granted_minor() >= 2, kept.as_ref().and_then(Kept::pid))
        .ok_or_else(|| Ended::Refused(ErrorResponse::fatal(sqlstate::INTERNAL, "internal error")))?;
    let handle = Arc::new(SessionHandle::new(key, who.clone()));
    let application_name = opened.startup.get("application_name").unwrap_or_default();
    let _ = handle.facts.set(Box::new(ClientFacts::new(id, opening.facts(), application_name)));
    seat.shard_account.logins.add(1);
    let place = shared.take_client_place(handle.clone(), stats.clone()).map_err(|why| {
        shared.stats.reject(why);
        Ended::Refused(
            ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .hint("The router's limit on clients is reached; try again later."),
        )
    })?;
    // A session is counted now.
    drop(arrival);
    let mut out = std::mem::take(&mut opening.parting);
    welcome(&mut out, &reported, &handle)
        .map_err(|_| Ended::Refused(ErrorResponse::fatal(sqlstate::INTERNAL, "internal error")))?;
    opening.send(&out).await?;
    tracing::debug!(session = id, user = who.user, tenant = %who.tenant, shard = %seat.pool.shard.name,
        address = opened.address.map(tracing::field::display), tls = opened.tls, "session begins");
    let (stream, early) = opening.finish()?;
    let core = Core {
        client: stream,
        shared: shared.clone(),
        worker,
        id,
        who,
        handle,
        seat,
        startup_wishes: wishes.clone(),
        parses_unknown: false,
        wishes,
        statements: None,
        pin: None,
        account: stats.accounts[worker].clone(),
        roaming: rules.map(|rules| Box::new(Roaming::new(rules))),
        listening: None,
    };
    let server = kept.and_then(Kept::take);
    Ok(Admitted::Session(Box::new(Session::new(core, &early, place, server))))
}

/// What the session is told at its beginning, and the server connection that it has from then on, if it keeps one.
async fn greet(
    seat: &Seat,
    wishes: &Arc<Wishes>,
    worker: usize,
    keeper: Keeper<'_>,
) -> Result<(prime::Reported, Option<Kept>), ErrorResponse> {
    match seat.mode {
        PoolMode::Transaction => Ok((prime::parameters(seat, wishes, worker).await?, None)),
        PoolMode::Session => {
            let (reported, kept) = prime::keep(seat, wishes, worker, keeper).await?;
            Ok((reported, Some(kept)))
        }
    }
}

/// Whether the session is declared read-only: by its user, or by a startup parameter.
fn reads(opened: &Opened, user: &User) -> Reads {
    let is_on = |name: &str| {
        let mut given = opened.options.iter().chain(&opened.startup.params);
        let last = given.rfind(|(key, _)| key.eq_ignore_ascii_case(name));
        // // src/backend/utils/adt/bool.c parse_bool_with_len, without its abbreviations
        last.is_some_and(|(_, value)| {
            ["on", "true", "yes", "1", "t", "y"].contains(&value.to_ascii_lowercase().as_str())
        })
    };
    if user.methods.read_only || is_on("switchyard.read_only") {
        Reads::Only
    } else if is_on("default_transaction_read_only") {
        Reads::AtFirst
    } else {
        Reads::Anything
    }
}

/// What names the tenants of a session that roams.
fn roaming_rules(shared: &Shared) -> Result<Arc<Rules>, Ended> {
    let rules = Rules::new(&shared.settings().roaming, &shared.topology().context);
    rules.map(Arc::new).ok_or_else(|| {
        tracing::warn!("neither [roaming] nor the context says by what a roaming session names its tenant");
        let text = "sessions that act for many tenants are not set up here";
        Ended::Refused(
            ErrorResponse::fatal(sqlstate::INVALID_AUTHORIZATION, text)
                .hint("Whoever operates this service must name the setting by which tenants are told apart."),
        )
    })
}

/// Makes a session of the console, and tells the client so.
async fn begin_console(
    shared: &Arc<Shared>,
    opening: &mut Opening,
    opened: &Opened,
    user: &User,
    role: ConsoleRole,
) -> Result<Admitted, Ended> {
    let application_name = opened.startup.get("application_name").unwrap_or_default();
    let facts = ClientFacts::new(shared.next_session(), opening.facts(), application_name);
    opening.let_in = true;
    build::auth_ok(&mut opening.parting);
    let long_key = opened.startup.granted_minor() >= 2;
    let place = console::take_place(shared, user, role, facts, long_key).map_err(Ended::Refused)?;
    let mut out = std::mem::take(&mut opening.parting);
    place
        .welcome(&mut out)
        .map_err(|_| Ended::Refused(ErrorResponse::fatal(sqlstate::INTERNAL, "internal error")))?;
    opening.send(&out).await?;
    tracing::info!(
        user = user.name,
        role = role.as_str(),
        tls = opened.tls,
        address = opened.address.map(tracing::field::display),
        "console session begins"
    );
    let (stream, early) = opening.finish()?;
    Ok(Admitted::Console(Box::new(ConsoleSession::new(place, stream, early))))
}

fn welcome(
    out: &mut Vec<u8>,
    reported: &crate::prime::Reported,
    handle: &SessionHandle,
) -> Result<(), build::BuildError> {
    reported.encode(out)?;
    build::backend_key_data(out, handle.key.pid(), handle.key.secret())?;
    build::ready_for_query(out, b'I');
    Ok(())
}

/// What the client asked for at startup that is neither who it is nor the router's business.
fn wishes(
    shared: &Shared,
    opened: &Opened,
    context: &crate::context::TenantContext,
) -> Result<Arc<Wishes>, Ended> {
    if let Some(error) = &opened.options_error {
        return Err(Ended::Refused(error.clone()));
    }
    let mut values = BTreeMap::new();
    let given = opened.options.iter().chain(&opened.startup.params);
    for (name, value) in given {
        let lower = name.to_ascii_lowercase();
        let reserved = matches!(lower.as_str(), "user" | "database" | "options" | "replication");
        let own = shared
            .settings()
            .identity
            .startup_parameter
            .as_deref()
            .is_some_and(|p| p.eq_ignore_ascii_case(name));
        if lower == "session_authorization" {
            // Whoever logs in on a shard is the router's affair.
            return Err(Ended::Refused(ErrorResponse::fatal(
                sqlstate::INSUFFICIENT_PRIVILEGE,
                format!("permission denied to set session authorization \"{value}\""),
            )));
        }
        if reserved || own || context.owns(&lower) || lower.starts_with("switchyard.") {
            continue;
        }
        values.insert(lower, Wish::Value(value.clone()));
    }
    if opened.startup.replication {
        return Err(Ended::Refused(
            ErrorResponse::fatal(sqlstate::FEATURE_NOT_SUPPORTED, "replication connections are not routed")
                .hint("Connect to the shard itself."),
        ));
    }
    Ok(shared.contexts.wishes(values))
}

/// What a failed login may say of itself in the log.
pub(crate) struct Wrong {
    pub(crate) method: Method,
    pub(crate) cause: String,
}

/// Addresses of clients, for the log and for the limits.
pub(crate) type Address = Option<IpAddr>;
