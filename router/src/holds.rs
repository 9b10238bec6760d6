//! Tenants that are being moved: their transactions wait here, in front of the pools, until the
//! mover says where to go on.
//!
//! A hold is a courtesy to clients and no fence: it keeps them from running into one. Who must
//! not write any more is decided on the shard.

mod ask;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use secrecy::SecretString;
use switchyard_catalog::signals::{self, Order, Reply, Signals, Voice};
use switchyard_config::topology::{Placed, Placement, ShardIndex, Tenant, Topology};
use switchyard_config::{ShardName, TenantId};
use switchyard_wire::error::{ErrorResponse, SqlState};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use self::ask::{Asker, Says};
use crate::context::TenantContext;
use crate::pool::{Pool, PoolError};
use crate::server::Server;
use crate::session::handle::{Activity, Order as SessionOrder, SessionHandle};
use crate::shared::Shared;

/// Longest hold of a tenant that is frozen on its shard: its mover has died, and the successor is left the
/// time to put things right. One that is not frozen goes on when the budget of the attempt is spent.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// How often the fence is asked when the budget is spent.
const ASK: Duration = Duration::from_millis(20);

/// How long connections to the target may take that are made ready before a hold.
const ARMING: Duration = Duration::from_millis(450);

/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(2);

/// How often a hold that is not drained is looked at and reported, where no session gives its connection back.
const REPORT: Duration = Duration::from_millis(20);

/// Connections to the target that are made ready before a hold, at most.
const WARM: usize = 8;

/// Fences that are asked at a time because a shard has refused something, at most. The others wait.
const DOUBTS: usize = 4;

/// How long a client's error is held back to find out whether the fence is behind it, at most: where it is, and that is not found
/// out, the client is told of a missing right rather than to try again.
const DOUBT: Duration = Duration::from_secs(5);

/// How soon it is asked again if it has not answered.
const DOUBT_AGAIN: Duration = Duration::from_millis(50);

/// First and longest pause between attempts to reach the catalog.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What a shard says to who is not served there any more, or not yet.
pub(crate) const FENCED: &[u8; 5] = b"TN002";

/// What a client is told whose statement ran into a fence: nothing of it has been done, and
/// again it will be done where the tenant lives.
pub(crate) fn late() -> ErrorResponse {
    ErrorResponse::error(
        SqlState(*b"40001"),
        "could not serialize access: the tenant has moved to another shard",
    )
    .hint("The transaction might succeed if retried.")
}

/// What a waiting session is sent: never a connection, but the word to look again.
type Wake = oneshot::Sender<Result<Box<Server>, PoolError>>;

/// See the module.
#[derive(Default)]
pub(crate) struct Holds {
    held: DashMap<TenantId, Hold>,
    /// Where tenants have moved to that the topology still has elsewhere.
    moved: DashMap<TenantId, Placement>,
    serial: AtomicU64,
    doubts: Doubts,
}

struct Doubts(Semaphore);

impl Default for Doubts {
    fn default() -> Self {
        Self(Semaphore::new(DOUBTS))
    }
}

struct Hold {
    attempt: String,
    serial: u64,
    waiting: Vec<(Wake, Instant)>,
}

/// How clients fared under a hold.
#[derive(Default)]
struct Waited {
    clients: u32,
    longest: Duration,
}

impl Holds {
    /// Whether no transaction of the tenant may begin.
    pub(crate) fn is_held(&self, tenant: &TenantId) -> bool {
        !self.held.is_empty() && self.held.contains_key(tenant)
    }

    /// Waits for the end of the tenant's hold; `None` if it has ended.
    pub(crate) fn join(
        &self,
        tenant: &TenantId,
    ) -> Option<oneshot::Receiver<Result<Box<Server>, PoolError>>> {
        let mut hold = self.held.get_mut(tenant)?;
        let (wake, woken) = oneshot::channel();
        hold.waiting.push((wake, Instant::now()));
        Some(woken)
    }

    /// Where `tenant` lives: as the topology has it, unless we have heard of a later epoch.
    pub(crate) fn place(&self, topology: &Topology, tenant: &Tenant) -> Option<Placed> {
        let placed = topology.place(tenant);
        if self.moved.is_empty() {
            return placed;
        }
        let Some(moved) = self.moved.get(&tenant.id) else { return placed };
        if placed.is_some_and(|p| p.epoch >= moved.epoch) {
            return placed;
        }
        match topology.shards.iter().position(|s| s.name == moved.shard) {
            Some(shard) => Some(Placed { shard: shard as ShardIndex, epoch: moved.epoch }),
            // On a shard that we do not know yet: until the topology has it, the old one goes on saying so, and
            // clients try again.
            None => placed,
        }
    }

    /// Whether `tenant` lives on another shard than this, as far as we have heard.
    fn lives_elsewhere(&self, shared: &Shared, tenant: &TenantId, than: &ShardName) -> bool {
        let topology = shared.topology();
        let placed = topology.tenant(tenant).and_then(|tenant| self.place(&topology, &tenant));
        placed.is_some_and(|placed| topology.shards[usize::from(placed.shard)].name != *than)
    }

    /// Forgets what the topology knows by now.
    pub(crate) fn catch_up(&self, topology: &Topology) {
        self.moved.retain(|id, moved| {
            let known = topology.tenant(id).and_then(|t| topology.place(&t));
            known.is_some_and(|placed| placed.epoch < moved.epoch)
        });
    }

    /// Has learnt that the tenant lives elsewhere. Whether that was news.
    pub(crate) fn learn(&self, tenant: &TenantId, placement: Placement) -> bool {
        let mut moved = self
            .moved
            .entry(tenant.clone())
            .or_insert_with(|| Placement { shard: placement.shard.clone(), epoch: 0 });
        let news = moved.epoch < placement.epoch;
        if news {
            *moved = placement;
        }
        news
    }

    /// Has learnt from a fence's detail.
    pub(crate) fn learn_from(&self, shared: &Shared, tenant: &TenantId, detail: &[u8]) {
        if let Some(placement) = moved_to(detail) {
            self.moved(shared, tenant, placement);
        }
    }

    fn begin(&self, tenant: &TenantId, attempt: &str) -> u64 {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let mut hold = self.held.entry(tenant.clone()).or_insert_with(|| Hold {
            attempt: String::new(),
            serial,
            waiting: Vec::new(),
        });
        attempt.clone_into(&mut hold.attempt);
        hold.serial = serial;
        serial
    }

    fn is_current(&self, tenant: &TenantId, serial: u64) -> bool {
        self.held.get(tenant).is_some_and(|hold| hold.serial == serial)
    }

    /// Has learnt from a fence that was asked, or that a statement ran into.
    fn moved(&self, shared: &Shared, tenant: &TenantId, placement: Placement) {
        if self.learn(tenant, placement) {
            tracing::info!(%tenant, "a fence tells that the tenant has moved");
            shared.raise_generation();
        }
    }

    /// Ends the hold, if `which` holds for its attempt and serial. Who waits is woken when the
    /// generation has been raised.
    fn end(&self, shared: &Shared, tenant: &TenantId, which: impl Fn(&str, u64) -> bool) -> Option<Waited> {
        let (_, hold) = self.held.remove_if(tenant, |_, hold| which(&hold.attempt, hold.serial))?;
        shared.raise_generation();
        let mut waited = Waited::default();
        for (wake, since) in hold.waiting {
            // Not one whose client has gone, or was canceled.
            if wake.send(Err(PoolError::Closed)).is_ok() {
                waited.clients += 1;
                waited.longest = waited.longest.max(since.elapsed());
            }
        }
        for session in of_tenant(shared, tenant) {
            session.command(SessionOrder::Refresh);
        }
        Some(waited)
    }
}

/// Asks the fence whether a right that a shard has refused was taken because the tenant is not served there any more: in
/// schemas and databases of their own, nothing else keeps late readers out.
/// `from` is the shard that has refused: a router that has heard meanwhile asks the one where the tenant lives now.
pub(crate) fn doubt(shared: Arc<Shared>, tenant: TenantId, from: ShardName) -> oneshot::Receiver<bool> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let asked = async {
            let _turn = shared.holds.doubts.0.acquire().await;
            let mut asker = Asker::default();
            // It may be heard of before the fence is asked, and while it is.
            while !shared.holds.lives_elsewhere(&shared, &tenant, &from) {
                match asker.ask(&shared, &tenant).await {
                    Says::Nothing => tokio::time::sleep(DOUBT_AGAIN).await,
                    Says::Served if shared.holds.lives_elsewhere(&shared, &tenant, &from) => break,
                    says => return says,
                }
            }
            Says::NotServed
        };
        let fenced = match tokio::time::timeout(DOUBT, asked).await {
            Ok(Says::Moved(placement)) => {
                shared.holds.moved(&shared, &tenant, placement);
                true
            }
            Ok(Says::NotServed) => true,
            Ok(Says::Served | Says::Nothing) | Err(_) => false,
        };
        let _ = tell.send(fenced);
    });
    told
}

/// Where a fence says that its tenant has gone: `state=moved epoch=4 moved_to=s1`. The epoch is the one that has
/// ended.
fn moved_to(detail: &[u8]) -> Option<Placement> {
    let text = String::from_utf8_lossy(detail);
    let value = |name: &str| text.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let (Some("moved"), Some(epoch), Some(shard)) = (value("state"), value("epoch"), value("moved_to"))
    else {
        return None;
    };
    Some(Placement { shard: ShardName::new(shard).ok()?, epoch: epoch.parse::<u64>().ok()? + 1 })
}

fn of_tenant(shared: &Shared, tenant: &TenantId) -> Vec<Arc<SessionHandle>> {
    shared.sessions.iter().filter(|s| s.tenant() == *tenant).map(|s| s.clone()).collect()
}

/// Does what the mover orders, for as long as the process lives.
pub(crate) async fn follow(shared: Arc<Shared>, catalog: SecretString) {
    let mut pause = BACKOFF.0;
    loop {
        match Signals::connect(&catalog, signals::ROUTER_NAME, signals::ORDERS).await {
            Ok(signals) => {
                pause = BACKOFF.0;
                obey(&shared, signals).await;
            }
            Err(error) => tracing::debug!(%error, "no connection for moves"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Says what holds answer, beside whatever else is being heard and said.
async fn speak(voice: Voice, mut answers: mpsc::UnboundedReceiver<Reply>) {
    while let Some(reply) = answers.recv().await {
        // Whoever listens on the same connection finds out.
        if voice.say(signals::REPLIES, &reply).await.is_err() {
            return;
        }
    }
}

async fn obey(shared: &Arc<Shared>, mut signals: Signals) {
    let (answer, answers) = mpsc::unbounded_channel::<Reply>();
    let router = signals.pid;
    // It ends when nobody has anything to say any more.
    tokio::spawn(speak(signals.voice(), answers));
    loop {
        match signals.next::<Order>().await {
            None => return,
            Some(Order::Arm { tenant, to, attempt }) => {
                tokio::spawn(arm(shared.clone(), tenant, to, (attempt, router), answer.clone()));
            }
            Some(Order::Hold { tenant, attempt, budget_ms, end_pinned }) => {
                let budget = Duration::from_millis(budget_ms).min(LONGEST);
                let end_pinned = end_pinned.then(|| budget / 4);
                // Here and not in the task: nothing that comes behind the order overtakes it.
                let serial = shared.holds.begin(&tenant, &attempt);
                shared.raise_generation();
                let order = Ordered { tenant, attempt, router, serial, began: Instant::now() };
                tokio::spawn(hold(shared.clone(), order, answer.clone(), (budget, end_pinned)));
            }
            Some(Order::Release { tenant, attempt, shard, epoch, moved }) => {
                if moved {
                    shared.holds.learn(&tenant, Placement { shard, epoch });
                    shared.raise_generation();
                }
                // Without an attempt: from a mover that has taken over, and knows of none.
                let waited =
                    shared.holds.end(shared, &tenant, |held, _| attempt.is_empty() || held == attempt);
                if let Some(Waited { clients, longest }) = waited {
                    tracing::info!(%tenant, attempt, moved, clients, longest_ms = longest.as_millis() as u64,
                        "tenant released");
                    let waited_us = longest.as_micros() as u64;
                    let reply = Reply { attempt, router, ..nothing_open() };
                    let _ = answer.send(Reply { waited: Some(clients), waited_us, ..reply });
                }
            }
        }
    }
}

fn nothing_open() -> Reply {
    Reply {
        attempt: String::new(),
        router: 0,
        open: 0,
        pinned: 0,
        example: None,
        drained_us: 0,
        waited: None,
        waited_us: 0,
    }
}

/// Makes connections to the target ready, so that the first transactions there need not wait for one. Says so, if that
/// is asked for.
async fn arm(
    shared: Arc<Shared>,
    tenant: TenantId,
    to: ShardName,
    (attempt, router): (String, i32),
    answer: mpsc::UnboundedSender<Reply>,
) {
    let began = Instant::now();
    if let Some(pool) = shared.pool(&to)
        && let Some(context) = context_on(&shared, &tenant, &pool)
    {
        let sessions = of_tenant(&shared, &tenant).len();
        pool.warm(&context.route, sessions.clamp(1, WARM));
        while pool.is_connecting() && began.elapsed() < ARMING {
            tokio::time::sleep(LOOK).await;
        }
    }
    if !attempt.is_empty() {
        let _ = answer.send(Reply { attempt, router, ..nothing_open() });
    }
}

/// The context of the tenant's first user on a shard: connections for one will do for others too, where they
/// log in alike.
fn context_on(shared: &Shared, tenant: &TenantId, pool: &Pool) -> Option<Arc<TenantContext>> {
    let topology = shared.topology();
    let tenant = topology.tenant(tenant)?;
    let template = tenant.context.as_ref().unwrap_or(&topology.context);
    let route = crate::server::Route { database: pool.shard.database.as_str().into(), login: 0 };
    Some(shared.contexts.context(template, &tenant.id, "", route, 0, tenant.is_read_only()))
}

/// A hold that was ordered.
struct Ordered {
    tenant: TenantId,
    attempt: String,
    router: i32,
    serial: u64,
    began: Instant,
}

/// Holds a tenant until the mover says where to go on. Without its word the tenant goes on when `budget` is
/// spent, unless the fence keeps it from that.
async fn hold(
    shared: Arc<Shared>,
    order: Ordered,
    answer: mpsc::UnboundedSender<Reply>,
    (budget, end_pinned): (Duration, Option<Duration>),
) {
    let Ordered { tenant, attempt, router, serial, began } = order;
    let sessions = of_tenant(&shared, &tenant);
    let given_back = Arc::new(Notify::new());
    let mut reported: Option<Instant> = None;
    let mut told = false;
    while began.elapsed() < budget * 9 / 10 {
        let mut reply = Reply { attempt: attempt.clone(), router, ..nothing_open() };
        // All of them, as each is to tell.
        for session in sessions.iter().filter(|s| s.is_attached(&given_back)) {
            let (activity, seconds) = session.activity();
            match activity {
                Activity::Idle => reply.pinned += 1,
                Activity::Active | Activity::IdleInTransaction => reply.open += 1,
            }
            reply.example.get_or_insert_with(|| {
                let user: String = session.who.user.chars().take(60).collect();
                let doing = match activity {
                    Activity::Idle => "keeps its server connection",
                    Activity::Active => "is in a transaction",
                    Activity::IdleInTransaction => "is idle in a transaction",
                };
                let why = session.pin().map(|(pin, _)| format!(" ({})", pin.label())).unwrap_or_default();
                format!("a session of user {user} {doing}{why}, for {seconds} s")
            });
        }
        let drained = reply.open == 0 && reply.pinned == 0;
        if drained || reported.is_none_or(|at| at.elapsed() >= REPORT) {
            reported = Some(Instant::now());
            reply.drained_us = began.elapsed().as_micros() as u64;
            let _ = answer.send(reply);
        }
        if drained {
            break;
        }
        if !told && end_pinned.is_some_and(|after| began.elapsed() >= after) {
            told = true;
            for session in sessions.iter().filter(|s| s.is_attached(&given_back)) {
                session.command(SessionOrder::Moving);
            }
        }
        let _ = tokio::time::timeout(REPORT, given_back.notified()).await;
        if !shared.holds.is_current(&tenant, serial) {
            return;
        }
    }
    // A mover in its right mind freezes nobody any more by then, and the answer takes a moment.
    tokio::time::sleep((budget * 9 / 10).saturating_sub(began.elapsed())).await;
    let mut asker = Asker::default();
    let why = loop {
        if !shared.holds.is_current(&tenant, serial) {
            return;
        }
        match asker.ask(&shared, &tenant).await {
            Says::Served => break "the fence lets it go on",
            Says::Moved(placement) => {
                shared.holds.moved(&shared, &tenant, placement);
                break "it has moved";
            }
            Says::NotServed | Says::Nothing if began.elapsed() < LONGEST => tokio::time::sleep(ASK).await,
            Says::NotServed | Says::Nothing => break "it was held for long enough",
        }
    };
    if let Some(waited) = shared.holds.end(&shared, &tenant, |_, current| current == serial) {
        tracing::warn!(%tenant, attempt, why, clients = waited.clients, "no word from the mover: the tenant is released");
    }
}
