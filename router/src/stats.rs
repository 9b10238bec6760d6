//! What is counted, where it is counted without a lock, and nothing of how it is shown.
//!
//! What is counted per transaction has one instance per worker thread, written by that thread
//! alone; whoever scrapes adds them up.

mod sign_ins;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use sign_ins::SignIns;
use switchyard_config::{ShardName, TenantId};

use crate::classify::Pin;

/// A count that one thread writes: no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Local(AtomicU64);

impl Local {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A count that any thread writes.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets of a [`Histogram`], in microseconds; the last bucket has none.
pub(crate) const BOUNDS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// A histogram of durations that any thread writes.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    #[inline]
    pub(crate) fn record(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let bucket = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts per bucket, not cumulated, and the sum in microseconds.
    pub(crate) fn read(&self) -> ([u64; BOUNDS_US.len() + 1], u64) {
        let mut counts = [0; BOUNDS_US.len() + 1];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        (counts, self.sum_us.load(Ordering::Relaxed))
    }
}

/// What one worker has done for one tenant.
#[derive(Debug, Default)]
pub(crate) struct TenantAccount {
    pub(crate) transactions: Local,
    pub(crate) statements: Local,
    pub(crate) errors: Local,
    /// Rows that statements returned or changed, by their command tags.
    pub(crate) rows: Local,
    /// Transactions that a limit of the tenant's held back or refused.
    pub(crate) limited: Local,
    pub(crate) bytes_in: Local,
    pub(crate) bytes_out: Local,
    /// Time that server connections were lent, in microseconds.
    pub(crate) busy_us: Local,
    /// Time spent waiting for server connections, in microseconds.
    pub(crate) wait_us: Local,
    /// Transactions that had to wait for a server connection, or until a limit allowed them.
    pub(crate) waits: Local,
    /// Transactions that were refused because a limit or the queue's timeout was reached.
    pub(crate) shed: Local,
}

impl TenantAccount {
    #[inline]
    pub(crate) fn transaction(&self, took: Duration) {
        self.transactions.add(1);
        self.busy_us.add(took.as_micros() as u64);
    }
}

/// All of one tenant.
pub(crate) struct TenantStats {
    /// Its number in this process, never given twice.
    pub(crate) number: u64,
    /// One for each worker.
    pub(crate) accounts: Vec<Arc<TenantAccount>>,
    /// Sessions now.
    pub(crate) sessions: AtomicI64,
    /// What it has used of its limits.
    pub(crate) gate: crate::limits::Gate,
}

impl TenantStats {
    /// Bytes of both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.accounts.iter().map(|account| account.bytes_in.get() + account.bytes_out.get()).sum()
    }
}

/// What one worker has done on one shard.
// Each is written by one thread, and must not share a cache line with another's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ShardAccount {
    /// From the moment a server connection was lent to the end of the transaction.
    pub(crate) transactions: Histogram,
    /// Sessions that began here.
    pub(crate) logins: Local,
    /// Server connections lent.
    pub(crate) assignments: Local,
    pub(crate) statements: Local,
    pub(crate) bytes_in: Local,
    pub(crate) bytes_out: Local,
    /// Time spent waiting for server connections, in microseconds.
    pub(crate) wait_us: Local,
    /// Parse messages of clients.
    pub(crate) parses: Local,
    /// Parse messages to servers.
    pub(crate) server_parses: Local,
    /// Bind messages of clients.
    pub(crate) binds: Local,
}

/// How a login was attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Scram,
    Jwt,
    Password,
    Md5,
    Cert,
    Trust,
    /// Refused before a method was chosen.
    None,
}

impl Method {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::Scram, "scram"),
        (Self::Jwt, "jwt"),
        (Self::Password, "password"),
        (Self::Md5, "md5"),
        (Self::Cert, "cert"),
        (Self::Trust, "trust"),
        (Self::None, "none"),
    ];
}

/// A limit on time that a session has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeLimit {
    /// A statement was canceled.
    Statement,
    /// A transaction was open for too long.
    Transaction,
    /// A session was idle in a transaction.
    IdleInTransaction,
    /// A session was idle.
    Idle,
}

impl TimeLimit {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Statement, "statement"),
        (Self::Transaction, "transaction"),
        (Self::IdleInTransaction, "idle_in_transaction"),
        (Self::Idle, "idle"),
    ];
}

/// Why a connection was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Too many clients.
    Clients,
    /// Too many connections that have not logged in.
    Unauthenticated,
    /// The same, of one address.
    Address,
    /// It did not log in in time.
    Timeout,
    /// It did not speak the protocol.
    Protocol,
    /// The TLS handshake failed.
    Tls,
    /// The router is draining.
    Draining,
}

impl Rejected {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::Clients, "clients"),
        (Self::Unauthenticated, "unauthenticated"),
        (Self::Address, "address"),
        (Self::Timeout, "login_timeout"),
        (Self::Protocol, "protocol"),
        (Self::Tls, "tls"),
        (Self::Draining, "draining"),
    ];
}

/// A count for each of the variants of a small enum.
#[derive(Debug)]
pub(crate) struct ByKind<const N: usize>([Count; N]);

impl<const N: usize> ByKind<N> {
    pub(crate) fn add_at(&self, index: usize) {
        self.0[index].add(1);
    }

    pub(crate) fn get_at(&self, index: usize) -> u64 {
        self.0[index].get()
    }
}

/// Pins by reason.
#[derive(Debug)]
pub(crate) struct Pins(ByKind<{ Pin::ALL.len() }>);

impl Pins {
    pub(crate) fn add(&self, pin: Pin) {
        self.0.add_at(pin as usize);
    }

    pub(crate) fn get(&self, pin: Pin) -> u64 {
        self.0.get_at(pin as usize)
    }
}

/// Limits on time that were reached.
#[derive(Debug)]
pub(crate) struct TimeLimits(ByKind<{ TimeLimit::ALL.len() }>);

impl TimeLimits {
    pub(crate) fn add(&self, which: TimeLimit) {
        self.0.add_at(which as usize);
    }

    pub(crate) fn get(&self, which: TimeLimit) -> u64 {
        self.0.get_at(which as usize)
    }
}

/// Everything that is counted in a process.
pub(crate) struct Stats {
    workers: usize,
    pub(crate) tenants: DashMap<TenantId, Arc<TenantStats>>,
    last_tenant: AtomicU64,
    shards: DashMap<ShardName, Vec<Arc<ShardAccount>>>,
    pub(crate) accepted: Count,
    pub(crate) rejected: ByKind<{ Rejected::ALL.len() }>,
    pub(crate) logins_succeeded: ByKind<{ Method::ALL.len() }>,
    pub(crate) logins_failed: ByKind<{ Method::ALL.len() }>,
    pub(crate) pins: Pins,
    pub(crate) time_limits: TimeLimits,
    pub(crate) statement_parses: Count,
    pub(crate) statement_reuses: Count,
    pub(crate) statement_evictions: Count,
    pub(crate) handover_failures: Count,
    pub(crate) probes: Count,
    pub(crate) cancels_sent: Count,
    pub(crate) cancels_of_waits: Count,
    pub(crate) cancels_ignored: Count,
    pub(crate) cancels_passed_on: Count,
    pub(crate) cancels_limited: Count,
    pub(crate) reloads_succeeded: Count,
    pub(crate) reloads_failed: Count,
    /// For the catalog, where there is one.
    pub(crate) sign_ins: SignIns,
}

impl Stats {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            tenants: DashMap::new(),
            last_tenant: AtomicU64::new(0),
            shards: DashMap::new(),
            accepted: Count::default(),
            rejected: ByKind(std::array::from_fn(|_| Count::default())),
            logins_succeeded: ByKind(std::array::from_fn(|_| Count::default())),
            logins_failed: ByKind(std::array::from_fn(|_| Count::default())),
            pins: Pins(ByKind(std::array::from_fn(|_| Count::default()))),
            time_limits: TimeLimits(ByKind(std::array::from_fn(|_| Count::default()))),
            statement_parses: Count::default(),
            statement_reuses: Count::default(),
            statement_evictions: Count::default(),
            handover_failures: Count::default(),
            probes: Count::default(),
            cancels_sent: Count::default(),
            cancels_of_waits: Count::default(),
            cancels_ignored: Count::default(),
            cancels_passed_on: Count::default(),
            cancels_limited: Count::default(),
            reloads_succeeded: Count::default(),
            reloads_failed: Count::default(),
            sign_ins: SignIns::default(),
        }
    }

    /// The stats of a tenant that somebody has logged in for. Never called before that: a scanner
    /// must not be able to make series.
    pub(crate) fn tenant(&self, tenant: &TenantId) -> Arc<TenantStats> {
        if let Some(found) = self.tenants.get(tenant) {
            return found.clone();
        }
        let made = || {
            Arc::new(TenantStats {
                number: self.last_tenant.fetch_add(1, Ordering::Relaxed) + 1,
                accounts: (0..self.workers).map(|_| Arc::default()).collect(),
                sessions: AtomicI64::new(0),
                gate: crate::limits::Gate::default(),
            })
        };
        self.tenants.entry(tenant.clone()).or_insert_with(made).clone()
    }

    /// The account of a shard and a worker.
    pub(crate) fn shard(&self, shard: &ShardName, worker: usize) -> Arc<ShardAccount> {
        if let Some(found) = self.shards.get(shard) {
            return found[worker].clone();
        }
        let made = || (0..self.workers).map(|_| Arc::default()).collect();
        self.shards.entry(shard.clone()).or_insert_with(made)[worker].clone()
    }

    /// Visits the accounts of each shard.
    pub(crate) fn each_shard(&self, mut visit: impl FnMut(&ShardName, &[Arc<ShardAccount>])) {
        for entry in &self.shards {
            visit(entry.key(), entry.value());
        }
    }

    pub(crate) fn reject(&self, why: Rejected) {
        self.rejected.add_at(why as usize);
    }

    pub(crate) fn login(&self, method: Method, succeeded: bool) {
        let counts = if succeeded { &self.logins_succeeded } else { &self.logins_failed };
        counts.add_at(method as usize);
    }
}
