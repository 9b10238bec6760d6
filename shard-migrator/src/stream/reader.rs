//! The task that reads a stream and deals its transactions out.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::pgoutput::{self, Change, Message, Relation, Row, Value};
use super::protocol::{Connection, Frame};
use super::slot::Watch;
use super::{
    BACKLOG_BYTES, Event, Pace, Request, Subscribe, Subscription, TRANSACTION_BYTES, Transaction, Wanted,
    remember,
};

/// How often what is settled is reported to the server.
const REPORT: Duration = Duration::from_millis(500);

/// A shard that says nothing for so long is gone, though its connection may not show it. It is asked for a sign of life
/// when a third of that is over.
const SILENCE: Duration = Duration::from_secs(30);

/// How often the backlog is looked at while it is too large to read on.
const FULL: Duration = Duration::from_millis(5);

/// How long subscribers of before are waited for. For one that comes later, the stream is opened anew.
const EXPECTED: Duration = Duration::from_secs(10);

struct Subscriber {
    /// The move.
    of: i64,
    tenant: String,
    wanted: Vec<Wanted>,
    events: mpsc::UnboundedSender<Event>,
    pace: Arc<Pace>,
}

/// Who wants the rows of a relation.
#[derive(Default)]
struct Interest {
    /// By the index of the tenant's column, which two moves may take for another; none if there is no such column.
    by_column: BTreeMap<Option<usize>, HashMap<Bytes, Vec<u64>>>,
    all: Vec<u64>,
}

impl Interest {
    /// Adds a subscriber, if it wants rows of the relation.
    fn add(&mut self, id: u64, subscriber: &Subscriber, relation: &Relation) {
        let of_table = |w: &&Wanted| w.schema == relation.schema && w.table == relation.name;
        let Some(wanted) = subscriber.wanted.iter().find(of_table) else { return };
        match &wanted.column {
            None => self.all.push(id),
            Some(column) => {
                let column = relation.columns.iter().position(|(name, _)| name == column);
                let tenant = Bytes::from(subscriber.tenant.clone().into_bytes());
                self.by_column.entry(column).or_default().entry(tenant).or_default().push(id);
            }
        }
    }

    fn subscribers(&self) -> impl Iterator<Item = &u64> {
        self.by_column.values().flat_map(HashMap::values).flatten().chain(&self.all)
    }
}

type Changes = Vec<(Arc<Relation>, Change)>;

struct Open {
    xid: u32,
    /// By subscriber, with their bytes.
    changes: HashMap<u64, (Changes, usize)>,
}

pub(super) struct Reader {
    connection: Connection,
    requests: mpsc::UnboundedReceiver<Request>,
    horizon: (u64, Instant),
    moved: watch::Sender<u64>,
    position: watch::Receiver<u64>,
    /// Moves that must be there before anything is read, and how long they are waited for.
    expected: HashSet<i64>,
    expected_until: Instant,
    /// What moves have settled that have followed and are not here: the log behind that is kept for them.
    kept: HashMap<i64, u64>,
    subscribers: BTreeMap<u64, Subscriber>,
    last_id: u64,
    relations: HashMap<u32, Arc<Relation>>,
    interests: HashMap<u32, Interest>,
    open: Option<Open>,
    remembered: VecDeque<u32>,
    reported: (u64, Instant),
}

impl Reader {
    pub(super) fn new(
        connection: Connection,
        requests: mpsc::UnboundedReceiver<Request>,
        (from, horizon): (u64, u64),
        expected: Vec<i64>,
    ) -> Self {
        let (moved, position) = watch::channel(from);
        Self {
            connection,
            requests,
            horizon: (horizon, Instant::now()),
            moved,
            position,
            kept: expected.iter().map(|id| (*id, from)).collect(),
            expected: expected.into_iter().collect(),
            expected_until: Instant::now() + EXPECTED,
            subscribers: BTreeMap::new(),
            last_id: 0,
            relations: HashMap::new(),
            interests: HashMap::new(),
            open: None,
            remembered: VecDeque::new(),
            reported: (from, Instant::now()),
        }
    }

    pub(super) async fn run(mut self, watch: Watch) {
        let (reason, exceeded) = tokio::select! {
            reason = self.read() => (reason, false),
            reason = watch.exceeded() => (reason, true),
        };
        tracing::warn!(reason, "a change stream has ended");
        if exceeded {
            // The log must not grow on, whoever may need it: that comes first.
            drop(self.connection);
            if let Err(error) = watch.drop_slot().await {
                tracing::warn!(%error, "a slot that retains too much could not be dropped; it is tried again");
            }
        }
        for subscriber in self.subscribers.values() {
            let event = if exceeded { Event::Exceeded(reason.clone()) } else { Event::Lost(reason.clone()) };
            let _ = subscriber.events.send(event);
        }
    }

    /// Reads until the stream breaks; says why.
    async fn read(&mut self) -> String {
        let mut ticks = tokio::time::interval(REPORT);
        let mut heard = Instant::now();
        loop {
            let between = self.open.is_none();
            let all_there = self.expected.is_empty() || Instant::now() > self.expected_until;
            let full = self.subscribers.values().map(|s| s.pace.bytes.load(Ordering::Relaxed)).sum::<usize>()
                > BACKLOG_BYTES;
            if full || !all_there {
                heard = Instant::now();
            } else if heard.elapsed() > SILENCE {
                return format!("the shard has said nothing for {} s", SILENCE.as_secs());
            }
            tokio::select! {
                // Between transactions only, so that a subscriber gets whole ones.
                request = self.requests.recv(), if between => match request {
                    Some(Request::Subscribe(request)) => if let Err(reason) = self.subscribe(request) {
                        return reason;
                    },
                    Some(Request::Forget(id)) => self.forget(id),
                    None => return "nobody reads it any more".to_owned(),
                },
                frame = self.connection.next(), if !full && all_there => match frame.inspect(|_| heard = Instant::now()) {
                    Ok(Frame::Data(data)) => match pgoutput::parse(data) {
                        Ok(message) => if let Err(reason) = self.message(message) {
                            return reason;
                        },
                        Err(_) => return "a message of the stream is malformed".to_owned(),
                    },
                    Ok(Frame::Keepalive { end, reply }) => {
                        if self.open.is_none() {
                            self.moved.send_if_modified(|at| {
                                let ahead = *at < end;
                                *at = (*at).max(end);
                                ahead
                            });
                        }
                        if reply {
                            self.reported.1 -= REPORT;
                        }
                    }
                    Err(error) => return error.to_string(),
                },
                _ = ticks.tick() => {}
                () = tokio::time::sleep(FULL), if full => {}
            }
            if self.reported.1.elapsed() >= REPORT && all_there {
                let gone: Vec<_> = self
                    .subscribers
                    .iter()
                    .filter(|(_, s)| s.events.is_closed())
                    .map(|(id, _)| *id)
                    .collect();
                if !gone.is_empty() && self.open.is_none() {
                    gone.iter().for_each(|id| self.leave(*id));
                    self.resolve_all();
                }
                let settled = self.settled();
                if let Err(error) = self.connection.report(settled, heard.elapsed() > SILENCE / 3).await {
                    return error.to_string();
                }
                self.reported = (settled, Instant::now());
            }
        }
    }

    /// Up to where everybody is safe.
    fn settled(&self) -> u64 {
        let position = *self.position.borrow();
        let paces = self.subscribers.values().map(|s| s.pace.settled.load(Ordering::Relaxed));
        paces.chain(self.kept.values().copied()).fold(position, u64::min).max(self.reported.0)
    }

    /// A subscription was dropped: what it has not settled is kept, unless it has ended.
    fn leave(&mut self, id: u64) {
        let Some(gone) = self.subscribers.remove(&id) else { return };
        if !gone.pace.over.load(Ordering::Relaxed) {
            let settled = gone.pace.settled.load(Ordering::Relaxed);
            self.kept.entry(gone.of).and_modify(|at| *at = settled.min(*at)).or_insert(settled);
        }
    }

    fn forget(&mut self, move_id: i64) {
        self.expected.remove(&move_id);
        self.kept.remove(&move_id);
        for subscriber in self.subscribers.values().filter(|s| s.of == move_id) {
            subscriber.pace.over.store(true, Ordering::Relaxed);
        }
    }

    /// Fails if the stream must be read anew for it.
    fn subscribe(&mut self, request: Subscribe) -> Result<(), String> {
        let position = *self.position.borrow();
        if let Some(from) = request.from
            && self.reported.0 <= from
            && from < position
        {
            return Err(format!("move {} is back, for which it must be read once more", request.id));
        }
        // Those of the same move before this one, if they are still here.
        for subscriber in self.subscribers.values().filter(|s| s.of == request.id) {
            subscriber.pace.over.store(true, Ordering::Relaxed);
        }
        self.kept.remove(&request.id);
        let (tell, events) = mpsc::unbounded_channel();
        let pace = Arc::new(Pace::default());
        pace.settled.store(position, Ordering::Relaxed);
        self.expected.remove(&request.id);
        let subscription = Subscription {
            events,
            pace: pace.clone(),
            before: self.remembered.clone(),
            horizon: self.horizon,
            from: position,
            position: self.position.clone(),
            stream: None,
        };
        self.last_id += 1;
        let (of, tenant, wanted) = (request.id, request.tenant, request.wanted);
        let subscriber = Subscriber { of, tenant, wanted, events: tell, pace };
        if request.done.send(subscription).is_ok() {
            // The others' interests stay as they are, of whom there may be hundreds.
            for (oid, relation) in &self.relations {
                self.interests.entry(*oid).or_default().add(self.last_id, &subscriber, relation);
            }
            self.subscribers.insert(self.last_id, subscriber);
        }
        Ok(())
    }

    fn resolve_all(&mut self) {
        let relations: Vec<_> = self.relations.values().cloned().collect();
        self.interests.clear();
        for relation in relations {
            self.resolve(&relation);
        }
    }

    fn resolve(&mut self, relation: &Relation) {
        let mut interest = Interest::default();
        for (id, subscriber) in &self.subscribers {
            interest.add(*id, subscriber, relation);
        }
        self.interests.insert(relation.oid, interest);
    }

    fn message(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Begin { xid } => self.open = Some(Open { xid, changes: HashMap::new() }),
            Message::Commit { end } => {
                let open = self.open.take().ok_or("a commit without a beginning")?;
                self.committed(open, end);
            }
            Message::Relation(relation) => {
                let changed = self.relations.get(&relation.oid).filter(|held| ***held != relation);
                if changed.is_some() {
                    let name = format!("{}.{}", relation.schema, relation.name);
                    self.drift(relation.oid, &format!("the columns of {name} have changed"));
                }
                let relation = Arc::new(relation);
                self.relations.insert(relation.oid, relation.clone());
                self.resolve(&relation);
            }
            Message::Row { oid, change } => self.row(oid, change)?,
            Message::Truncate { oids } => {
                for oid in oids {
                    let name = self.relations.get(&oid).map(|r| r.name.clone()).unwrap_or_default();
                    self.drift(oid, &format!("table {name} was truncated"));
                }
            }
            Message::Other => {}
        }
        Ok(())
    }

    fn drift(&self, oid: u32, what: &str) {
        let Some(interest) = self.interests.get(&oid) else { return };
        for id in interest.subscribers() {
            if let Some(subscriber) = self.subscribers.get(id) {
                let _ = subscriber.events.send(Event::Drift(what.to_owned()));
            }
        }
    }

    fn row(&mut self, oid: u32, change: Change) -> Result<(), String> {
        let interest = self.interests.get(&oid).ok_or("a row of a table that was not described")?;
        if interest.subscribers().next().is_none() {
            return Ok(());
        }
        let open = self.open.as_mut().ok_or("a row outside a transaction")?;
        let relation = self.relations.get(&oid).ok_or("a row of a table that was not described")?;
        let mut to: HashSet<u64> = interest.all.iter().copied().collect();
        for (column, by_tenant) in &interest.by_column {
            let tenant = |row: &Row| match column.and_then(|at| row.get(at)) {
                Some(Value::Text(text)) => Some(text.clone()),
                _ => None,
            };
            let (old, new) = match &change {
                Change::Insert { new } => (None, tenant(new)),
                Change::Update { old, new } => (old.as_ref().and_then(tenant), tenant(new)),
                Change::Delete { old } => (tenant(old), None),
            };
            if old.is_none() && new.is_none() {
                // The key has no tenant: whoever has the row deletes it.
                to.extend(by_tenant.values().flatten());
                continue;
            }
            let concerned = [&old, &new].into_iter().flatten().filter_map(|tenant| by_tenant.get(tenant));
            let concerned: Vec<u64> = concerned.flatten().copied().collect();
            if old.is_some() && new.is_some() && old != new {
                for subscriber in concerned.iter().filter_map(|id| self.subscribers.get(id)) {
                    let what = format!("a row of {} changed its tenant", relation.name);
                    let _ = subscriber.events.send(Event::Drift(what));
                }
            }
            to.extend(concerned);
        }
        let bytes = size(&change);
        for id in to {
            let (changes, total) = open.changes.entry(id).or_default();
            *total += bytes;
            if *total <= TRANSACTION_BYTES {
                changes.push((relation.clone(), change.clone()));
            }
        }
        Ok(())
    }

    fn committed(&mut self, open: Open, end: u64) {
        remember(&mut self.remembered, open.xid);
        for (id, (changes, bytes)) in open.changes {
            let Some(subscriber) = self.subscribers.get(&id) else { continue };
            if bytes > TRANSACTION_BYTES {
                let what = format!("a transaction changed more than {} MiB", TRANSACTION_BYTES >> 20);
                let _ = subscriber.events.send(Event::Drift(what));
                continue;
            }
            subscriber.pace.outstanding.fetch_add(1, Ordering::Relaxed);
            subscriber.pace.bytes.fetch_add(bytes, Ordering::Relaxed);
            let transaction = Transaction { xid: open.xid, end, changes, bytes };
            let _ = subscriber.events.send(Event::Transaction(transaction));
        }
        // After the events, so that who has seen the position has the events before it.
        self.moved.send_replace(end);
    }
}

/// Bytes that a change takes while it waits, about.
fn size(change: &Change) -> usize {
    let row = |row: &Row| -> usize {
        row.iter().map(|v| 40 + if let Value::Text(t) = v { t.len() } else { 0 }).sum::<usize>() + 64
    };
    match change {
        Change::Insert { new } => row(new),
        Change::Update { old, new } => old.as_ref().map_or(0, row) + row(new),
        Change::Delete { old } => row(old),
    }
}
