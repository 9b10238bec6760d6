//! The queue in a pool without sockets, in a time that the test decides.

use std::collections::HashMap;

use proptest::prelude::*;
use switchyard_config::limits::DEFAULT_WEIGHT;

use super::*;

fn route() -> Route {
    Route { database: "db".into(), login: 0 }
}

type Answer = oneshot::Receiver<Result<Box<Server>, PoolError>>;

/// Whoever waits, with what would tell it that its turn has come.
struct Asleep {
    context: u64,
    since: Instant,
    _answer: Answer,
}

fn share(tenant: u64, weight: u32) -> Share {
    Share { tenant, weight }
}

struct Connection {
    carries: u64,
    /// Idle since then, or lent since then to a session of `carries`.
    since: Instant,
    charged: Duration,
    /// Until then it is lent to nobody else.
    kept: Option<Instant>,
}

/// What the pool does, with the queue that it does it with.
struct Sim {
    queue: Queue,
    now: Instant,
    idle: Vec<Connection>,
    lent: Vec<Connection>,
    waiting: Vec<Asleep>,
    handovers: usize,
    turns: usize,
    /// Weights that are not the default.
    weights: HashMap<u64, u32>,
    began: Instant,
    /// By how many hundredths more or less transactions may take than they are said to.
    uneven: u32,
}

impl Sim {
    fn new(connections: usize) -> Self {
        let now = Instant::now();
        let fresh = || Connection { carries: 0, since: now, charged: Duration::ZERO, kept: None };
        Self {
            queue: Queue::default(),
            now,
            idle: std::iter::repeat_with(fresh).take(connections).collect(),
            lent: Vec::new(),
            waiting: Vec::new(),
            handovers: 0,
            turns: 0,
            weights: HashMap::new(),
            began: now,
            uneven: 0,
        }
    }

    /// What a transaction takes that began on this connection when it was lent.
    fn takes(&self, connection: &Connection, usual: Duration) -> Duration {
        let seed = (connection.since - self.began).as_micros() as u64 * 31 + connection.carries * 7;
        let chance = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % 1000;
        usual * (100_000 - self.uneven * 1000 + self.uneven * 2 * chance) / 100_000
    }

    fn share(&self, tenant: u64) -> Share {
        share(tenant, self.weights.get(&tenant).copied().unwrap_or(DEFAULT_WEIGHT))
    }

    fn lend(&mut self, mut connection: Connection, context: u64, charged: Duration) {
        connection.charged = charged;
        self.handovers += usize::from(connection.carries != context && connection.carries != 0);
        self.turns += 1;
        let loan = Loan { context, share: self.share(context), since: self.now, charged };
        self.queue.lent(connection.carries, &loan);
        connection.carries = context;
        connection.since = self.now;
        self.lent.push(connection);
    }

    /// True if the session got a connection at once.
    fn arrive(&mut self, context: u64) -> bool {
        let own = self.idle.iter().rposition(|c| c.carries == context || c.carries == 0);
        let mut found = own;
        let free: Vec<usize> = (0..self.idle.len()).filter(|i| self.idle[*i].kept.is_none()).collect();
        if own.is_none() && !free.is_empty() {
            let mut at = free[0];
            let mut waits = false;
            if !is_spare(self.idle[at].since, self.now) {
                at = free.into_iter().rev().max_by_key(|i| self.queue.held(self.idle[*i].carries)).unwrap();
                waits = self.queue.is_worth_waiting(context, self.idle[at].carries, self.now);
            }
            found = (!waits).then_some(at);
        }
        if let Some(at) = found {
            let connection = self.idle.remove(at);
            self.lend(connection, context, Duration::ZERO);
            return true;
        }
        let (reply, answer) = oneshot::channel();
        self.queue.push(Waiter {
            reply,
            route: route(),
            context,
            share: self.share(context),
            wishes: 0,
            session: 0,
            worker: 0,
            tenant: None,
            since: self.now,
            promised: false,
            charged: Duration::ZERO,
        });
        self.waiting.push(Asleep { context, since: self.now, _answer: answer });
        false
    }

    fn woken(&mut self, waiter: &Waiter) {
        let same = |a: &Asleep| a.context == waiter.context && a.since == waiter.since;
        let at = self.waiting.iter().position(same).expect("only who waits is served");
        self.waiting.remove(at);
    }

    fn come_back(&mut self, at: usize) {
        let mut connection = self.lent.remove(at % self.lent.len());
        let (context, since, charged) = (connection.carries, connection.since, connection.charged);
        self.queue.returned(&Loan { context, share: self.share(context), since, charged }, self.now);
        connection.kept = None;
        connection.since = self.now;
        if !self.queue.is_empty() {
            connection.kept = self.queue.keeps(context, self.now);
        }
        match connection.kept {
            Some(_) => self.idle.push(connection),
            None => self.offer(connection),
        }
    }

    /// Gives a connection to who is next.
    fn offer(&mut self, connection: Connection) {
        let route = route();
        let offer = Offer { context: connection.carries, worker: 0, route: &route };
        match self.queue.next(&offer, self.now) {
            Some(waiter) => {
                self.woken(&waiter);
                self.lend(connection, waiter.context, waiter.charged);
            }
            None => self.idle.push(connection),
        }
    }

    /// What the watch does every [`PATIENCE`].
    fn watch(&mut self) {
        while let Some(at) = self.idle.iter().position(|c| c.kept.is_some_and(|until| until <= self.now)) {
            let mut connection = self.idle.remove(at);
            connection.kept = None;
            self.offer(connection);
        }
        for context in self.queue.impatient(self.now) {
            while let Some(waiter) = self.queue.take_impatient(context, self.now) {
                let own = self.idle.iter().position(|c| c.carries == context);
                let Some(at) = own.or_else(|| self.idle.iter().position(|c| c.kept.is_none())) else {
                    self.queue.push_first(waiter);
                    break;
                };
                self.woken(&waiter);
                let connection = self.idle.remove(at);
                self.lend(connection, context, Duration::ZERO);
            }
        }
    }

    fn give_up(&mut self, at: usize) {
        self.waiting.remove(at % self.waiting.len());
    }

    fn check(&self) {
        let mut held: HashMap<u64, (u32, u32)> = HashMap::new();
        for (connection, busy) in self
            .idle
            .iter()
            .map(|c| (c, 0))
            .chain(self.lent.iter().map(|c| (c, 1)))
            .filter(|(c, _)| c.carries != 0)
        {
            let count = held.entry(connection.carries).or_default();
            *count = (count.0 + 1, count.1 + busy);
        }
        for (context, lane) in &self.queue.lanes {
            let expected = held.get(context).copied().unwrap_or_default();
            assert_eq!((lane.held, lane.busy), expected, "context {context}");
        }
        assert_eq!(self.queue.len(), self.waiting.len());
        // The lane of each first waiter is in the order, once, at its place.
        let firsts: std::collections::BTreeSet<_> =
            self.queue.lanes.iter().filter_map(|(c, l)| Some((l.first()?.since, *c))).collect();
        assert_eq!(firsts, self.queue.waiting_lanes().collect());
        self.queue.accounts.check();
    }

    /// So many clients of each tenant, that do transactions of so long one after the other, with a pause
    /// of `pause`, until `turns` are done. For how long each tenant had connections.
    fn loops(&mut self, tenants: &[(usize, Duration)], pause: Duration, turns: usize) -> Vec<Duration> {
        let step = Duration::from_micros(50);
        let mut had = vec![Duration::ZERO; tenants.len()];
        let mut pausing: Vec<(Instant, u64)> = Vec::new();
        for (tenant, (clients, _)) in tenants.iter().enumerate() {
            let start = |n: usize| self.now + step * (n as u32 * 7 % 40);
            pausing.extend((0..*clients).map(|n| (start(n), tenant as u64 + 1)));
        }
        let mut ticked = self.now;
        while self.turns < turns {
            self.now += step;
            let usual = |c: &Connection| tenants[c.carries as usize - 1].1;
            let is_done = |c: &Connection| self.now - c.since >= self.takes(c, usual(c));
            let done: Vec<_> = (0..self.lent.len()).filter(|i| is_done(&self.lent[*i])).rev().collect();
            for at in done {
                let tenant = self.lent[at].carries;
                had[tenant as usize - 1] += self.now - self.lent[at].since;
                pausing.push((self.now + pause, tenant));
                self.come_back(at);
            }
            let (arriving, rest) = pausing.into_iter().partition(|(at, _)| *at <= self.now);
            pausing = rest;
            let arriving: Vec<(Instant, u64)> = arriving;
            for (_, context) in arriving {
                self.arrive(context);
            }
            if self.now - ticked >= PATIENCE {
                ticked = self.now;
                self.watch();
            }
        }
        had
    }
}

const US: Duration = Duration::from_micros(1);

#[test]
fn tenants_of_many_clients_keep_their_connections() {
    for (took, pause) in [(300, 400), (300, 1500), (2000, 2000), (500, 10_000)] {
        let mut sim = Sim::new(20);
        sim.loops(&[(8, took * US); 8], pause * US, 500);
        let (before, turns) = (sim.handovers, sim.turns);
        sim.loops(&[(8, took * US); 8], pause * US, 10_500);
        let (handovers, turns) = (sim.handovers - before, sim.turns - turns);
        assert!(
            handovers * 20 < turns,
            "{handovers} handovers in {turns} turns of {took} µs, {pause} µs apart"
        );
    }
}

#[test]
fn connections_that_cannot_be_divided_evenly_do_not_change_hands_for_it() {
    for (took, pause) in [(300, 0), (900, 0), (900, 300), (4000, 100)] {
        let mut sim = Sim::new(20);
        sim.uneven = 90;
        sim.loops(&[(8, took * US); 8], pause * US, 500);
        let (before, turns) = (sim.handovers, sim.turns);
        let parts = hundredths(&sim.loops(&[(8, took * US); 8], pause * US, 20_500));
        let (handovers, turns) = (sim.handovers - before, sim.turns - turns);
        assert!(
            handovers * 50 < turns,
            "{handovers} handovers in {turns} turns of {took} µs, {pause} µs apart"
        );
        assert!(parts.iter().all(|part| (11..=14).contains(part)), "{parts:?}");
    }
}

/// What each tenant had of the pool, in hundredths.
fn hundredths(had: &[Duration]) -> Vec<u128> {
    let all: Duration = had.iter().sum();
    had.iter().map(|had| had.as_micros() * 100 / all.as_micros()).collect()
}

#[test]
fn a_full_pool_is_shared_by_time_and_not_by_the_number_of_clients() {
    for connections in [2, 8, 20] {
        let mut sim = Sim::new(connections);
        let had = sim.loops(&[(30, 500 * US), (500, 500 * US)], Duration::ZERO, 20_000);
        let parts = hundredths(&had);
        assert!((45..=55).contains(&parts[0]), "{connections} connections: {parts:?}");
    }
    // Nor by the number of transactions.
    let mut sim = Sim::new(8);
    let had = sim.loops(&[(30, 500 * US), (500, 4000 * US)], Duration::ZERO, 20_000);
    let parts = hundredths(&had);
    assert!((45..=55).contains(&parts[0]), "{parts:?}");
}

#[test]
fn a_full_pool_is_shared_by_weight() {
    let mut sim = Sim::new(8);
    sim.weights = HashMap::from([(1, 300), (2, 100)]);
    let had = sim.loops(&[(100, 500 * US), (100, 500 * US)], Duration::ZERO, 20_000);
    let parts = hundredths(&had);
    assert!((70..=80).contains(&parts[0]), "{parts:?}");
}

#[test]
fn who_wants_less_than_its_share_gets_it_beside_a_crowd() {
    let had = |tenants: &[(usize, Duration)]| {
        let mut sim = Sim::new(20);
        let begin = sim.now;
        let had = sim.loops(tenants, 2000 * US, 20_000)[0];
        had.as_secs_f64() / (sim.now - begin).as_secs_f64()
    };
    let (alone, beside) = (had(&[(4, 500 * US)]), had(&[(4, 500 * US), (500, 500 * US)]));
    assert!(beside >= alone * 0.8, "{alone} alone, {beside} beside a crowd");
}

#[test]
fn few_clients_get_their_share_beside_a_crowd() {
    // Eight of twenty connections are less than half: the crowd has the rest.
    for (took, pause) in [(10_000, 100), (10_000, 1000), (3000, 300), (1000, 100)] {
        for uneven in [0, 2, 90] {
            let had = |tenants: &[(usize, Duration)]| {
                let mut sim = Sim::new(20);
                sim.uneven = uneven;
                let begin = sim.now;
                let had = sim.loops(tenants, pause * US, 3000)[0];
                (had.as_secs_f64() / (sim.now - begin).as_secs_f64(), sim.handovers as f64 / sim.turns as f64)
            };
            let (alone, _) = had(&[(8, took * US)]);
            let (beside, handovers) = had(&[(8, took * US), (500, took * US)]);
            let case =
                format!("{took} ± {uneven} % µs, {pause} µs apart: {alone} alone, {beside} beside a crowd");
            assert!(beside >= alone * 0.95, "{case}");
            assert!(handovers < 0.15, "{case}, {handovers} handovers each");
        }
    }
}

#[test]
fn a_tenant_that_lacks_a_connection_is_next_however_long_others_have_waited() {
    let mut sim = Sim::new(4);
    for _ in 0..40 {
        sim.arrive(1);
    }
    sim.now += 100 * US;
    sim.arrive(2);
    sim.arrive(2);
    sim.arrive(2);
    // Its half of the four, one after the other; the third waits as those of the others do.
    for waiting in [2, 1] {
        sim.now += 100 * US;
        sim.come_back(0);
        assert_eq!(sim.waiting.iter().filter(|w| w.context == 2).count(), waiting);
    }
    sim.now += 100 * US;
    sim.come_back(0);
    assert_eq!(sim.waiting.iter().filter(|w| w.context == 2).count(), 1);
}

#[test]
fn a_connection_is_kept_for_who_asks_again_at_once_but_not_for_long() {
    let mut sim = Sim::new(2);
    sim.arrive(1);
    sim.arrive(2);
    for _ in 0..50 {
        sim.arrive(1);
    }
    // The second tenant has shown that it asks again soon, and lacks the one that it has given back.
    let at = |sim: &Sim| sim.lent.iter().position(|c| c.carries == 2);
    for turn in 0..20 {
        sim.now += 5000 * US;
        let lent = at(&sim).expect("its own");
        sim.come_back(lent);
        assert_eq!(sim.idle.len(), 1, "turn {turn}");
        sim.now += 100 * US;
        assert!(sim.arrive(2), "turn {turn}");
    }
    sim.now += 5000 * US;
    sim.come_back(at(&sim).expect("its own"));
    sim.now += PATIENCE;
    sim.watch();
    assert!(sim.idle.is_empty(), "the others wait for it");
    // Whoever takes long to ask again is not waited for.
    for _ in 0..20 {
        sim.now += 5000 * US;
        sim.arrive(2);
        while at(&sim).is_none() {
            sim.come_back(0);
        }
        sim.now += 5000 * US;
        sim.come_back(at(&sim).expect("its own"));
        sim.watch();
    }
    assert!(sim.idle.is_empty());
}

#[test]
fn a_pause_saves_up_no_claim() {
    let mut sim = Sim::new(4);
    sim.loops(&[(50, 500 * US), (0, 500 * US)], Duration::ZERO, 5000);
    let had = hundredths(&sim.loops(&[(0, 500 * US), (50, 500 * US)], Duration::ZERO, 7000));
    assert!((40..=60).contains(&had[1]), "{had:?}");
}

#[test]
fn one_client_for_each_tenant_never_waits_beside_an_idle_connection() {
    let mut sim = Sim::new(4);
    for turn in 0..1000_u64 {
        let tenant = turn % 8 + 1;
        assert!(sim.arrive(tenant), "turn {turn}");
        sim.now += 100 * US;
        sim.come_back(0);
        sim.check();
    }
}

#[test]
fn a_tenant_in_need_takes_what_another_has_too_many_of() {
    let mut sim = Sim::new(8);
    for _ in 0..8 {
        assert!(sim.arrive(1));
    }
    for _ in 0..8 {
        sim.come_back(0);
    }
    // None of its own, then fewer than the other.
    for n in 0..4 {
        assert!(sim.arrive(2), "{n}");
        sim.now += 10 * US;
    }
    // As many: now it waits, as one of its own has just come back and was taken again.
    sim.come_back(0);
    assert!(sim.arrive(2));
    assert!(!sim.arrive(2));
    // But not for long.
    sim.now += PATIENCE * 2;
    sim.watch();
    assert!(sim.waiting.is_empty());
}

#[test]
fn a_connection_for_another_route_is_made_once_for_whom_it_is_promised() {
    let mut sim = Sim::new(2);
    assert!(sim.arrive(1) && sim.arrive(2));
    sim.arrive(3);
    let route_of_first = route();
    let other = Route { database: "other".into(), login: 0 };
    let offer = Offer { context: 1, worker: 0, route: &other };
    let mut first = sim.queue.next(&offer, sim.now).expect("its turn");
    first.promised = true;
    sim.queue.push_first(first);
    assert!(sim.queue.next(&offer, sim.now).is_none());
    let offer = Offer { context: 1, worker: 0, route: &route_of_first };
    let first = sim.queue.next(&offer, sim.now).expect("one for its route");
    sim.queue.push_first(first);
    sim.queue.forget_promises(&route_of_first);
    let offer = Offer { context: 1, worker: 0, route: &other };
    assert!(sim.queue.next(&offer, sim.now).is_some());
}

#[derive(Debug, Clone)]
enum Event {
    Arrive(u64),
    ComeBack(usize),
    GiveUp(usize),
    /// Microseconds pass; the watch looks if more than its interval has.
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..6_u64).prop_map(Event::Arrive),
        4 => any::<usize>().prop_map(Event::ComeBack),
        1 => any::<usize>().prop_map(Event::GiveUp),
        3 => (1..3000_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn counts_hold_and_nobody_waits_for_long_beside_an_idle_connection(
        connections in 1..6_usize,
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut sim = Sim::new(connections);
        for event in events {
            match event {
                Event::Arrive(context) => drop(sim.arrive(context)),
                Event::ComeBack(at) if !sim.lent.is_empty() => sim.come_back(at),
                Event::GiveUp(at) if !sim.waiting.is_empty() => {
                    sim.give_up(at);
                    sim.queue.tidy(sim.now);
                }
                Event::Pass(us) => {
                    sim.now += us as u32 * US;
                    sim.watch();
                    let waits = sim.waiting.iter().any(|w| sim.now - w.since > PATIENCE_MAX);
                    prop_assert!(sim.idle.iter().all(|c| c.kept.is_some()) || !waits);
                }
                _ => {}
            }
            sim.check();
        }
    }

    /// Others come and go all the time, and their tenants have connections of their own.
    #[test]
    fn nobody_starves(connections in 1..4_usize, crowd in 1..30_usize, pace in 100..3000_u32) {
        let mut sim = Sim::new(connections);
        for _ in 0..connections + crowd {
            sim.arrive(1);
            sim.now += US;
        }
        sim.arrive(2);
        let late = sim.now;
        let mut rounds = 0;
        while sim.waiting.iter().any(|w| w.context == 2) {
            sim.now += pace * US;
            sim.come_back(0);
            sim.arrive(1);
            sim.watch();
            rounds += 1;
            // Those who were there before, and those who came while it waited for half as long.
            let patience = PATIENCE_MAX.as_micros() as u32 / pace;
            prop_assert!(rounds <= 2 * (crowd + connections) as u32 + patience + 4, "{:?}", sim.now - late);
        }
    }
}
