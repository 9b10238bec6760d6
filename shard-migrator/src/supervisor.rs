//! Which moves are worked on, and by whom: one process leads, and takes up whatever is unfinished.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use switchyard_catalog::signals::Signals;
use tokio::runtime::Handle;
use tokio::sync::RwLock;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::MoveError;
use crate::engine::Engine;
use crate::journal::{self, Options};
use crate::known::Known;
use crate::replies::Replies;
use crate::rest::Resting;
use crate::secrets::Secrets;
use crate::sessions::{Sessions, Shares};
use crate::streams::Streams;
use crate::unread;

/// Key of the advisory lock that the leading process holds: `swyd-mov` in ASCII.
const LOCK: i64 = 0x7377_7964_2d6d_6f76;

/// A leading process that says nothing for so long, in seconds, leads no more: PostgreSQL ends the session that holds the
/// lock. Several times [`LOOK`], and less than the time for which routers wait for who takes over.
const SILENCE_S: u64 = 5;

/// How often who does not lead tries to, and moves are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Moves are not looked for more often, whatever is heard: of many that begin and end, each would have all of them read.
const BREATH: Duration = Duration::from_millis(100);

/// Pause before a move that could not go on is taken up again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The longest for one that may hold its tenant up.
const RETRY_HELD: Duration = Duration::from_secs(1);

/// How long attempts that are under way may take to end when the process leads no more. Routers hold clients for as long.
const LAST: Duration = Duration::from_secs(10);

/// How often it is written down how much log the streams retain.
const TELL: Duration = Duration::from_secs(2);

/// The channel on which wishes are announced.
const WISHES: &str = "switchyard_move_wishes";

/// What the process is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The catalog, with the right to write it.
    pub catalog: SecretString,
    /// A name for this process.
    pub owner: String,
    /// Moves that are worked on at a time from or to a shard, those that have moved and only follow not counted.
    pub per_shard: usize,
    /// Most sessions on a shard that the mover has, whatever the number of moves. Streams are walsenders beside them.
    pub sessions_per_shard: usize,
    /// Where the passwords of shards are.
    pub secrets: Secrets,
}

/// Works on moves until `stop` is done, and ends no attempt at a cutover half way. Nothing is lost if the process ends in
/// any other way.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) {
    let attempts = Arc::new(RwLock::new(()));
    tokio::select! {
        () = stop => {}
        () = lead(&settings, &attempts) => {}
    }
    let _ = tokio::time::timeout(LAST, attempts.write()).await;
}

async fn lead(settings: &Settings, attempts: &Arc<RwLock<()>>) {
    loop {
        if let Err(error) = term(settings, attempts).await {
            tracing::warn!(%error, "moves are not worked on");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One term of leading: from the lock until the connection that holds it ends.
async fn term(settings: &Settings, attempts: &Arc<RwLock<()>>) -> Result<(), MoveError> {
    let lock = journal::connect(&settings.catalog).await?;
    let failed = |e| MoveError::Catalog(switchyard_catalog::CatalogError::Postgres(e));
    let settings_of_lock = format!(
        "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; SET idle_session_timeout = '{SILENCE_S}s'"
    );
    lock.batch_execute(&settings_of_lock).await.map_err(failed)?;
    loop {
        let row = lock.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await.map_err(failed)?;
        if row.get(0) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::info!(owner = settings.owner, "leads the moves");
    let mut signals = Signals::connect(&settings.catalog, "switchyard-mover-wishes", WISHES).await?;
    let shares = Shares::of(settings.sessions_per_shard);
    let engine = Arc::new(Engine {
        catalog: settings.catalog.clone(),
        owner: settings.owner.clone(),
        secrets: settings.secrets.clone(),
        streams: Streams::default(),
        attempts: attempts.clone(),
        sessions: Arc::new(Sessions::new(shares)),
        resting: Resting::default(),
        look: Arc::default(),
        known: Known::default(),
        replies: Replies::new(settings.catalog.clone()),
    });
    let mut board = Board::new(attempts.clone());
    let mut watching = tokio::spawn(unread::watch(engine.clone()));
    let _ends_with_the_term = AbortOnDrop(watching.abort_handle());
    // One that is queued waits for those of its tenant before it.
    let sql = "SELECT id, source, target, phase, wish NOT IN ('run', 'pause'),
                   coalesce(now() >= moved_at + make_interval(secs => nullif(coalesce(
                       (options->>'retention_s')::float8, $1), 0)), false), wish
               FROM moves m WHERE phase <> 'done' AND NOT (
                   phase = 'queued' AND kind <> 'plan' AND EXISTS (
                       SELECT FROM moves e WHERE e.tenant = m.tenant AND e.id < m.id AND e.phase <> 'done'
                         AND e.kind <> 'plan'))
               ORDER BY phase <> 'cutover', phase <> 'rolling_back', id";
    let unfinished = lock.prepare(sql).await.map_err(failed)?;
    let mut told: Option<Instant> = None;
    loop {
        let looked = Instant::now();
        board.collect();
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            told = Some(Instant::now());
            tell_streams(&lock, &engine.streams).await.map_err(failed)?;
        }
        let retention = Options::default().retention_s as f64;
        let rows = lock.query(&unfinished, &[&retention]).await.map_err(failed)?;
        for row in &rows {
            let (id, phase): (i64, String) = (row.get(0), row.get(3));
            let shards = [row.get::<_, String>(1), row.get::<_, String>(2)];
            let (wanted, over): (bool, bool) = (row.get(4), row.get(5));
            if engine.resting.is_well(id) && !wanted && (!over || engine.resting.is_told(id)) {
                continue;
            }
            board.phases.insert(id, phase.clone());
            board.hear(id, row.get(6));
            // What holds a tenant up comes before what has not begun. Each needs its sessions.
            let free = phase != "queued" || shards.iter().all(|s| board.busy(s) < settings.per_shard);
            let fits = shards.iter().all(|s| board.working_at(s) < shares.moves);
            if free && fits && board.is_due(id) {
                board.start(&engine, id, shards);
            }
        }
        tokio::select! {
            _ = board.tasks.join_next_with_id(), if !board.tasks.is_empty() => {}
            // It makes room for one that waits.
            () = engine.look.notified() => {}
            heard = signals.next::<serde_json::Value>() => if heard.is_none() {
                return Err(MoveError::Catalog(switchyard_catalog::CatalogError::Closed));
            },
            watched = &mut watching => {
                return watched.unwrap_or(Ok(()));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::time::sleep_until(looked + BREATH).await;
    }
}

/// Ends a task with what began it.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes down how much log the open streams retain.
async fn tell_streams(catalog: &Client, streams: &Streams) -> Result<(), tokio_postgres::Error> {
    let retained = streams.retained().await;
    let (mut shards, mut databases, mut bytes, mut budgets) = (vec![], vec![], vec![], vec![]);
    for (shard, database, retained, budget) in &retained {
        shards.push(shard.as_str());
        databases.push(database.as_str());
        bytes.push(i64::try_from(*retained).unwrap_or(i64::MAX));
        budgets.push(i64::try_from(*budget).unwrap_or(i64::MAX));
    }
    let sql = "WITH open AS (SELECT * FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[]) o (shard, database, retained, budget)),
                    closed AS (DELETE FROM move_streams s WHERE NOT EXISTS (
                        SELECT FROM open o WHERE (o.shard, o.database) = (s.shard, s.database)))
               INSERT INTO move_streams (shard, database, retained, budget) SELECT * FROM open
               ON CONFLICT (shard, database) DO UPDATE
               SET retained = excluded.retained, budget = excluded.budget, looked_at = now()";
    catalog.execute(sql, &[&shards, &databases, &bytes, &budgets]).await.map(drop)
}

/// The moves that are being worked on, and those that wait to be tried again.
struct Board {
    tasks: JoinSet<()>,
    working: HashMap<i64, [String; 2]>,
    phases: HashMap<i64, String>,
    ended: Arc<std::sync::Mutex<Vec<(i64, bool)>>>,
    waiting: HashMap<i64, (Instant, Duration)>,
    /// What was wanted of those that wait, when it was last looked.
    wishes: HashMap<i64, String>,
    attempts: Arc<RwLock<()>>,
}

impl Drop for Board {
    /// The catalog is gone, or the process ends: a tenant that is frozen is not left so. Whoever leads next takes the move
    /// over, and ends our sessions, before it does anything else.
    fn drop(&mut self) {
        let (tasks, attempts) = (std::mem::take(&mut self.tasks), self.attempts.clone());
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let _ = tokio::time::timeout(LAST, attempts.write()).await;
            drop(tasks);
        });
    }
}

impl Board {
    fn new(attempts: Arc<RwLock<()>>) -> Self {
        Self {
            tasks: JoinSet::new(),
            working: HashMap::new(),
            phases: HashMap::new(),
            ended: Arc::default(),
            waiting: HashMap::new(),
            wishes: HashMap::new(),
            attempts,
        }
    }

    fn collect(&mut self) {
        let ended =
            std::mem::take(&mut *self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for (id, well) in ended {
            self.working.remove(&id);
            self.wishes.remove(&id);
            if well {
                self.waiting.remove(&id);
                self.phases.remove(&id);
            } else {
                let held = self
                    .phases
                    .get(&id)
                    .is_some_and(|p| matches!(p.as_str(), "cutover" | "rolling_back" | "aborting"));
                let longest = if held { RETRY_HELD } else { RETRY.1 };
                let pause = self.waiting.get(&id).map_or(RETRY.0, |(_, p)| (*p * 2).min(longest));
                self.waiting.insert(id, (Instant::now() + pause, pause));
            }
        }
    }

    /// What is wanted now. Whoever wants something else does not wait for what could not be done before.
    fn hear(&mut self, id: i64, wish: String) {
        if !self.waiting.contains_key(&id) {
            self.wishes.remove(&id);
        } else if self.wishes.get(&id).is_some_and(|before| *before != wish) {
            self.waiting.remove(&id);
        } else {
            self.wishes.insert(id, wish);
        }
    }

    fn is_due(&self, id: i64) -> bool {
        !self.working.contains_key(&id) && self.waiting.get(&id).is_none_or(|(at, _)| *at <= Instant::now())
    }

    /// Moves that weigh on a shard.
    fn busy(&self, shard: &str) -> usize {
        let light: HashSet<_> =
            self.phases.iter().filter(|(_, p)| p.as_str() == "moved").map(|(id, _)| *id).collect();
        self.working.iter().filter(|(id, s)| s.iter().any(|s| s == shard) && !light.contains(id)).count()
    }

    /// Moves that have sessions on a shard.
    fn working_at(&self, shard: &str) -> usize {
        self.working.values().filter(|shards| shards.iter().any(|s| s == shard)).count()
    }

    fn start(&mut self, engine: &Arc<Engine>, id: i64, shards: [String; 2]) {
        self.working.insert(id, shards);
        let (engine, ended) = (engine.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            let worked = engine.run(id).await;
            if let Err(error) = &worked {
                tracing::warn!(id, %error, "a move could not go on");
            }
            ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((id, worked.is_ok()));
        });
    }
}
