//! Sessions that act for many tenants, and say in SQL whose each transaction is.
//!
//! Between transactions such a session has no server connection. What a client sends then is looked at before
//! anything is decided ([`scout`]): what needs no shard is answered at once ([`local`]), `BEGIN` among it; what names a
//! tenant, or needs the one that was named, makes the session that tenant's and borrows a connection to its shard, to
//! which all of it goes. From then to the end of the transaction each statement is looked at for whether it is still
//! that tenant's ([`attached`]).
//!
//! The setting itself is set by the client alone and never by the router, except as the session has set it before: it
//! is carried from one connection to the next like any other (`super::effects`, `super::probe`). So PostgreSQL always
//! reports for it what the client has asked for. `docs/decisions/0012-roaming.md` has the invariant.

mod attached;
mod counted;
mod local;
mod scout;

pub(super) use counted::Place;
pub(super) use scout::Look;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use switchyard_config::TenantId;
use switchyard_config::limits::TenantLimits;
use switchyard_config::topology::{ContextTemplate, PoolMode, Topology};
use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};

use super::expiry::TimeLimits;
use super::{Core, End, Reads, Seat, Who, suspended};
use crate::classify::{Effect, Pin};
use crate::context::{Wish, Wishes};
use crate::limits::Presence;
use crate::pool::Share;
use crate::roaming::read::{self, Step};
use crate::roaming::track::Track;
use crate::roaming::{Named, Rules};
use crate::shared::Shared;

/// How the tenant of a roaming session was named.
#[derive(Debug, Clone)]
pub(crate) struct Roams {
    rules: Arc<Rules>,
    /// By a comment: then the setting is the router's to set, as nobody else does.
    commented: bool,
}

impl Roams {
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        Self { rules, commented: false }
    }

    /// What the router sets for the tenant.
    pub(super) fn context<'t>(&self, template: &'t ContextTemplate) -> Cow<'t, ContextTemplate> {
        if self.commented { Cow::Borrowed(template) } else { Cow::Owned(self.rules.without_own(template)) }
    }
}

/// What a roaming session keeps.
pub(crate) struct Roaming {
    rules: Arc<Rules>,
    /// The setting within the transaction that is open, if one is.
    track: Option<Track>,
    /// The statements that the router has answered since `BEGIN`, that one first: they are run on the shard before
    /// anything else, once there is one.
    opening: Vec<Box<[u8]>>,
    /// The transaction has failed before it came to a shard.
    failed: bool,
    /// What was sent and is not answered yet.
    sent: VecDeque<Sent>,
    /// The portals that were made since the last Sync.
    portals: Vec<Portal>,
    /// What a statement of `opening` failed with, which the client is still to be told.
    late: Option<ErrorResponse>,
    /// The message that comes next sets the setting, and does nothing else that lasts.
    sets_own: bool,
    /// Whom the session's own setting names, by the number of the wishes it was read from.
    session: (u64, Named),
    /// The tenant among whose connections it counts.
    counted: Option<(TenantId, Presence)>,
}

/// A portal.
struct Portal {
    name: Box<[u8]>,
    /// What running it does.
    step: Step,
    /// Its text, where the router may have to answer it.
    text: Box<[u8]>,
}

/// An answer that is awaited.
enum Sent {
    /// The completion of a statement that does this.
    Step(Step),
    /// ReadyForQuery.
    End,
}

/// What a message needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Need {
    /// No shard.
    Nothing,
    /// Any shard: settings are changed or shown.
    Anywhere,
    /// The shard for what is nobody's.
    Home,
    /// The shard of this tenant, named by a comment or not.
    Tenant(TenantId, bool),
}

impl Need {
    /// What both need.
    fn and(self, other: Self) -> Result<Self, (Self, Self)> {
        Ok(match (self, other) {
            (Self::Nothing, need) | (need, Self::Nothing) => need,
            (Self::Anywhere, need) | (need, Self::Anywhere) => need,
            (Self::Tenant(a, first), Self::Tenant(b, second)) if a == b => Self::Tenant(a, first || second),
            (Self::Home, Self::Home) => Self::Home,
            (first, second) => return Err((first, second)),
        })
    }
}

impl Roaming {
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            track: None,
            opening: Vec::new(),
            failed: false,
            sent: VecDeque::new(),
            portals: Vec::new(),
            late: None,
            sets_own: false,
            session: (0, Named::Nobody),
            counted: None,
        }
    }

    /// Whom the session's own setting names.
    fn session(&mut self, wishes: &Wishes) -> &Named {
        if self.session.0 != wishes.id || wishes.id == 0 {
            let named = match wishes.values.get(&self.rules.name) {
                None => Named::Nobody,
                Some(Wish::Value(value)) => self.rules.whom_by_value(value),
                Some(Wish::Statement(sql)) => read::read(&self.rules, sql.as_bytes())
                    .into_iter()
                    .find_map(|statement| match statement.step.with(&self.rules, &[]) {
                        Step::Set { to, .. } => Some(to),
                        _ => None,
                    })
                    .unwrap_or(Named::Unreadable),
            };
            self.session = (wishes.id, named);
        }
        &self.session.1
    }

    /// The setting as it will be when all that was sent is done.
    fn ahead(&mut self, wishes: &Wishes) -> Track {
        let mut track = match &self.track {
            Some(track) => track.clone(),
            None => Track::new(self.session(wishes).clone()),
        };
        for sent in &self.sent {
            if let Sent::Step(step) = sent {
                track.apply(step);
            }
        }
        track
    }

    /// What `steps` need, in this order, from where `track` is. `comment` is whom a comment names.
    fn need(&self, track: &Track, steps: &[Step], comment: Option<&Named>) -> Result<Need, ErrorResponse> {
        self.need_where(track, steps, comment, false)
    }

    /// The same; `attached` says that there is a connection, on which whatever touches nothing of anybody's is run.
    fn need_where(
        &self,
        track: &Track,
        steps: &[Step],
        comment: Option<&Named>,
        attached: bool,
    ) -> Result<Need, ErrorResponse> {
        let mut track = track.clone();
        let mut need = Need::Nothing;
        for step in steps {
            let touches = matches!(
                step,
                Step::Runs
                    | Step::PrepareTransaction
                    | Step::Listen
                    | Step::Set { to: Named::Tenant(_) | Named::Unreadable, .. }
                    | Step::Set { runs: true, .. }
            );
            let this = match attached && !touches {
                true => Need::Anywhere,
                false => self.need_of(&track, step, comment)?,
            };
            need = need.and(this).map_err(|(first, second)| changes(&first, &second))?;
            track.apply(step);
        }
        Ok(need)
    }

    fn need_of(&self, track: &Track, step: &Step, comment: Option<&Named>) -> Result<Need, ErrorResponse> {
        let named = |named: &Named, otherwise: Need| match named {
            Named::Tenant(tenant) => Ok(Need::Tenant(tenant.clone(), false)),
            Named::Nobody => Ok(otherwise),
            Named::Unreadable => Err(self.unreadable()),
        };
        let current = |otherwise: Need| match (track.now(), comment) {
            (now, None) => named(now, otherwise),
            (_, Some(Named::Unreadable)) => Err(self.unreadable()),
            (Named::Nobody, Some(Named::Tenant(tenant))) => Ok(Need::Tenant(tenant.clone(), true)),
            (now, Some(said)) if now == said => named(now, otherwise),
            (now, Some(said)) => {
                let need = |named: &Named| match named {
                    Named::Tenant(tenant) => Need::Tenant(tenant.clone(), false),
                    Named::Nobody | Named::Unreadable => Need::Home,
                };
                Err(contradiction(&self.rules.name, &need(now), &need(said)))
            }
        };
        match step {
            Step::Set { to: Named::Unreadable, .. } | Step::Set { to: Named::Nobody, runs: true, .. } => {
                Err(self.unreadable())
            }
            Step::Set { to: to @ Named::Tenant(_), .. } => named(to, Need::Nothing),
            Step::Set { to: Named::Nobody, select, .. } => {
                let local = !select && (track.block || !self.rules.is_search_path());
                named(track.now(), if local { Need::Nothing } else { Need::Anywhere })
            }
            Step::Runs | Step::PrepareTransaction => current(Need::Home),
            Step::InBlock if track.block => named(track.now(), Need::Nothing),
            Step::Settings | Step::InBlock => named(track.now(), Need::Anywhere),
            Step::Listen => Err(no_listening()),
            // Its parameters are not known, as it is only described.
            Step::Config { .. } => named(track.now(), Need::Anywhere),
            Step::ResetAll
            | Step::DiscardAll
            | Step::Show { .. }
            | Step::Nothing(_)
            | Step::UnlockAll
            | Step::DeallocateAll => match track.now() {
                Named::Tenant(tenant) => Ok(Need::Tenant(tenant.clone(), false)),
                // Whatever it is that cannot be read, it may be taken back.
                Named::Nobody | Named::Unreadable => Ok(Need::Nothing),
            },
            Step::Begin(_)
            | Step::Commit { .. }
            | Step::Rollback { .. }
            | Step::Savepoint(_)
            | Step::RollbackTo(_)
            | Step::Release(_) => Ok(Need::Nothing),
        }
    }

    fn unreadable(&self) -> ErrorResponse {
        let text = format!("whose statement this is cannot be told from what it sets {} to", self.rules.name);
        ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
            .hint("Give the value as a plain string or as a parameter.")
    }

    /// The server is ready, outside a transaction: what was open is over.
    fn over(&mut self) {
        self.track = None;
        self.opening.clear();
        self.failed = false;
        self.late = None;
    }

    /// What the client is told when it is the router that says it is ready.
    pub(super) fn status(&self) -> u8 {
        match (self.opening.is_empty(), self.failed) {
            (true, _) => b'I',
            (false, false) => b'T',
            (false, true) => b'E',
        }
    }
}

impl Core {
    /// What the client is told when the router says that it is ready.
    #[inline]
    pub(super) fn idle_status(&self) -> u8 {
        self.roaming.as_ref().map_or(b'I', |roaming| roaming.status())
    }

    /// A statement has failed before it came to a shard.
    #[inline]
    pub(super) fn note_failure(&mut self) {
        if let Some(roaming) = &mut self.roaming {
            roaming.failed = !roaming.opening.is_empty();
            roaming.sent.clear();
        }
    }

    /// The setting that names the tenant of a roaming session.
    pub(super) fn roams_by(&self) -> Option<String> {
        self.roaming.as_ref().map(|roaming| roaming.rules.name.clone())
    }

    /// What a message leaves behind of which `effect` is said; a roaming session's own setting is known however it
    /// is spelt.
    pub(super) fn own_effect(&mut self, effect: Effect) -> Effect {
        let Some(roaming) = &mut self.roaming else { return effect };
        if std::mem::take(&mut roaming.sets_own) && effect == Effect::Pin(Pin::Setting) {
            return Effect::Settings(vec![roaming.rules.name.clone()]);
        }
        effect
    }

    /// Whether that is `name`.
    pub(super) fn is_roamed_by(&self, name: &str) -> bool {
        self.roaming.as_ref().is_some_and(|roaming| roaming.rules.name == name)
    }

    /// Makes the session that tenant's, or nobody's.
    fn become_of(&mut self, tenant: &TenantId, commented: bool) -> Result<(), ErrorResponse> {
        let Some(roams) = &self.who.roams else { return Ok(()) };
        let same = self.who.tenant == *tenant && roams.commented == commented;
        if same && self.seat.generation == self.shared.generation() && !self.seat.held {
            return Ok(());
        }
        let who = if same {
            self.who.clone()
        } else {
            let roams = Some(Roams { rules: roams.rules.clone(), commented });
            let Who { user, login, reads, .. } = &*self.who;
            Arc::new(Who { user: user.clone(), login: *login, reads: *reads, tenant: tenant.clone(), roams })
        };
        let shared = self.shared.clone();
        let topology = shared.topology();
        if !tenant.is_nobody() {
            let user = topology.users.get(&who.user);
            let known = topology.tenant(tenant);
            let (Some(user), Some(known)) = (user, known) else { return Err(denied(tenant)) };
            if !user.tenants.allows(tenant) {
                return Err(denied(tenant));
            }
            if !known.is_served() {
                return Err(ErrorResponse { severity: Severity::Error, ..suspended(tenant) });
            }
            if let Some(register) = shared.register_tenant.get()
                && !topology.tenants.contains_key(tenant)
            {
                register(tenant.clone());
            }
        }
        if !same {
            // Before the seat is looked up: whoever holds the tenant from here on sees the session.
            self.handle.becomes(tenant);
        }
        let seat = shared.seat(&who, self.worker);
        let seat = seat.and_then(|seat| match shared.pauses.refusal(tenant, &seat.pool.shard.name) {
            Some(refusal) if !same && !tenant.is_nobody() => Err(refusal),
            _ => Ok(seat),
        });
        match seat {
            Ok(seat) => self.seat = seat,
            Err(error) => {
                self.handle.becomes(&self.who.tenant);
                return Err(ErrorResponse { severity: Severity::Error, ..error });
            }
        }
        if !same {
            self.account = shared.stats.tenant(tenant).accounts[self.worker].clone();
            self.who = who;
        }
        Ok(())
    }

    /// The topology has changed while the session was idle. If its tenant is not served any more, it is nobody's; if
    /// its user is gone, it ends.
    pub(super) fn look_around(&mut self) -> Result<(), End> {
        let tenant = self.who.tenant.clone();
        let commented = self.who.roams.as_ref().is_some_and(|roams| roams.commented);
        if self.become_of(&tenant, commented).is_err() {
            let nobody = TenantId::nobody();
            self.become_of(&nobody, false)
                .map_err(|error| End::Fatal(ErrorResponse { severity: Severity::Fatal, ..error }))?;
        }
        Ok(())
    }

    /// Looks where the tenant lives now, before a connection is borrowed.
    pub(super) fn look_again(&mut self) -> Result<(), ErrorResponse> {
        let tenant = self.who.tenant.clone();
        let commented = self.who.roams.as_ref().is_some_and(|roams| roams.commented);
        self.become_of(&tenant, commented)
    }
}

impl Shared {
    /// Where statements go that name no tenant, by the current topology: nothing is set for them.
    pub(super) fn seat_of_nobody(
        &self,
        who: &Who,
        roams: &Roams,
        topology: &Topology,
        generation: u64,
        worker: usize,
    ) -> Result<Seat, ErrorResponse> {
        let gone = || {
            let text = "the user of this session, or its shard, is no longer served here";
            ErrorResponse::fatal(sqlstate::ADMIN_SHUTDOWN, text).hint("Connect again.")
        };
        debug_assert!(!roams.commented);
        if !topology.users.contains_key(&who.user) {
            return Err(gone());
        }
        let settings = self.settings();
        let home = settings.roaming.default_shard.as_ref();
        let shard = match home {
            Some(name) => topology.shards.iter().find(|shard| shard.name == *name),
            None => topology.shards.first(),
        };
        let shard = shard.ok_or_else(gone)?;
        let pool = self.pool(&shard.name).ok_or_else(gone)?;
        let route = crate::server::Route { database: shard.database.as_str().into(), login: who.login };
        let nothing = ContextTemplate::default();
        let read_only = who.reads == Reads::Only;
        let context = self.contexts.context(&nothing, &who.tenant, &who.user, route, 0, read_only);
        let stats = self.stats.tenant(&who.tenant);
        Ok(Seat {
            generation,
            pool,
            hidden: self.hidden(&shard.name, &context),
            context,
            share: Share { tenant: stats.number, weight: 1 },
            voice: self.voices.get(&who.tenant),
            limited: None,
            times: TimeLimits::new(&TenantLimits::default(), &settings.limits),
            mode: PoolMode::Transaction,
            held: false,
            shard_account: self.stats.shard(&shard.name, worker),
        })
    }
}

/// What is said for a tenant that there is not, and for one that the user may not act for.
fn denied(tenant: &TenantId) -> ErrorResponse {
    let text = format!("permission denied for tenant \"{tenant}\"");
    ErrorResponse::error(sqlstate::INSUFFICIENT_PRIVILEGE, text)
}

/// What is said where no tenant is named and nothing may run without.
fn nobody(name: &str) -> ErrorResponse {
    ErrorResponse::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, "no tenant is named for this statement")
        .hint(format!("Set it first: SET {name} = '...', or SET LOCAL in the transaction."))
}

fn named(need: &Need) -> String {
    match need {
        Need::Tenant(tenant, _) => format!("for tenant \"{tenant}\""),
        Need::Nothing | Need::Anywhere | Need::Home => "for no tenant".to_owned(),
    }
}

/// What is said where a transaction changes its tenant.
fn changes(first: &Need, second: &Need) -> ErrorResponse {
    let text = "cannot change the tenant within a transaction";
    ErrorResponse::error(sqlstate::ACTIVE_SQL_TRANSACTION, text)
        .detail(format!("The transaction runs {}, and this statement is {}.", named(first), named(second)))
        .hint("End the transaction, or the batch of statements, first.")
}

fn contradiction(name: &str, set: &Need, said: &Need) -> ErrorResponse {
    let text = format!("the statement's comment contradicts {name}");
    ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, text).detail(format!(
        "The setting is {}, the comment {}.",
        named(set),
        named(said)
    ))
}

fn no_listening() -> ErrorResponse {
    let text = "LISTEN is not available to sessions that act for many tenants";
    ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
        .hint("Listen on a connection that names its tenant when it logs in.")
}
