//! Which standbys of a shard are near enough to their primary to be read from.
//!
//! How far a standby is behind is measured without anybody's clock: each second the primary is asked how far it has
//! written, and a standby that has replayed so much has all that was committed before that question. What is
//! not known counts as too far.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use switchyard_config::topology::{Endpoint, Shard};

use super::hosts::Hosts;
use super::{Pool, question};
use crate::logins::Logins;
use crate::seal::Sealer;
use crate::server::connect::{ConnectError, Parameters};
use crate::server::{Route, Server};
use crate::tls::ShardTlsContext;

/// What each host is asked: whether it is in recovery, which cluster it is of, and how far it has come.
const ASK: &[u8] = b"SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
    CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') \
    ELSE pg_current_wal_flush_lsn() END - '0/0'";

/// Time for a host to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Answers of the primary that are kept: one for each second. Who is farther behind is too far.
const SAMPLES: usize = 3700;

/// See the module.
pub(crate) struct Standbys {
    hosts: Vec<Host>,
    /// When the primary was asked, and how far it had written then, the latest last.
    written: Mutex<VecDeque<(Instant, u64)>>,
    /// The cluster's system identifier, by its primary.
    identifier: Mutex<Option<String>>,
    measuring: AtomicBool,
    /// Whose turn it is.
    turn: AtomicUsize,
}

struct Host {
    endpoint: Endpoint,
    usable: AtomicBool,
    lag: Mutex<Option<Duration>>,
    /// To ask it on.
    connection: tokio::sync::Mutex<Option<Server>>,
}

/// A standby as of the last measurement.
pub(crate) struct StandbyLook {
    pub(crate) endpoint: Endpoint,
    /// How far it is behind at most; none if that is not known.
    pub(crate) lag: Option<Duration>,
    pub(crate) usable: bool,
}

/// What a host says.
struct Answer {
    asked: Instant,
    in_recovery: bool,
    identifier: String,
    position: u64,
}

impl Standbys {
    pub(super) fn new(shard: &Shard) -> Self {
        let host = |endpoint| Host {
            endpoint,
            usable: AtomicBool::new(false),
            lag: Mutex::new(None),
            connection: tokio::sync::Mutex::new(None),
        };
        Self {
            hosts: shard.endpoints().into_iter().map(host).collect(),
            written: Mutex::default(),
            identifier: Mutex::default(),
            measuring: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    /// Whether this host may be read from.
    pub(super) fn is_usable(&self, endpoint: &Endpoint) -> bool {
        self.hosts.iter().any(|host| host.endpoint == *endpoint && host.usable.load(Ordering::Relaxed))
    }

    fn is_any(&self) -> bool {
        self.hosts.iter().any(|host| host.usable.load(Ordering::Relaxed))
    }

    /// Takes the answers. Whether another set of hosts may be read from now.
    fn judge(&self, answers: Vec<Option<Answer>>, most: Duration) -> bool {
        let primary = answers.iter().flatten().filter(|a| !a.in_recovery).max_by_key(|a| a.position);
        if let Some(primary) = primary {
            *self.identifier.lock() = Some(primary.identifier.clone());
            let mut written = self.written.lock();
            if written.back().is_some_and(|(_, position)| *position > primary.position) {
                // Another primary, which has not all of the last one.
                written.clear();
            }
            written.push_back((primary.asked, primary.position));
            if written.len() > SAMPLES {
                written.pop_front();
            }
        }
        let (identifier, written) = (self.identifier.lock(), self.written.lock());
        let mut changed = false;
        for (host, answer) in self.hosts.iter().zip(answers) {
            let standby = answer.filter(|a| a.in_recovery && identifier.as_ref() == Some(&a.identifier));
            let lag = standby.and_then(|standby| {
                let (since, _) = written.iter().rev().find(|(_, position)| *position <= standby.position)?;
                Some(since.elapsed())
            });
            *host.lag.lock() = lag;
            let usable = lag.is_some_and(|lag| lag <= most);
            changed |= host.usable.swap(usable, Ordering::Relaxed) != usable;
        }
        changed
    }
}

impl Pool {
    /// The pool of a shard's standbys.
    pub(crate) fn of_standbys(
        shard: Arc<Shard>,
        tls: Arc<ShardTlsContext>,
        logins: Arc<Logins>,
        sealer: Arc<Sealer>,
    ) -> Self {
        Self { hosts: Hosts::of_standbys(&shard), ..Self::new(shard, tls, logins, sealer) }
    }

    /// Whether its connections are to standbys.
    #[inline]
    pub(crate) fn is_of_standbys(&self) -> bool {
        self.hosts.standbys.is_some()
    }

    /// Whether there is a standby that is near enough.
    pub(crate) fn has_standby(&self) -> bool {
        self.hosts.standbys.as_ref().is_some_and(Standbys::is_any)
    }

    /// A connection could not be made, or was lost: nobody is to try until they have been asked again.
    pub(crate) fn distrust_standbys(&self) {
        for host in self.hosts.standbys.iter().flat_map(|standbys| &standbys.hosts) {
            host.usable.store(false, Ordering::Relaxed);
        }
        self.leave_others();
    }

    /// The hosts that are standbys, or were not heard of.
    pub(crate) fn standbys(&self) -> Vec<StandbyLook> {
        let hosts = self.hosts.standbys.iter().flat_map(|standbys| &standbys.hosts);
        let looks = hosts.map(|host| StandbyLook {
            endpoint: host.endpoint.clone(),
            lag: *host.lag.lock(),
            usable: host.usable.load(Ordering::Relaxed),
        });
        looks.collect()
    }

    /// Asks all hosts how far they are. Whether other ones may be read from than before.
    pub(crate) async fn measure_standbys(&self) -> bool {
        let Some(standbys) = &self.hosts.standbys else { return false };
        if standbys.measuring.swap(true, Ordering::Acquire) {
            return false;
        }
        // Each notes when it was asked, so that the order of the answers does not matter.
        let answers = join_all(standbys.hosts.iter().map(|host| self.ask(host))).await;
        let changed = standbys.judge(answers, self.shard.pool.max_standby_lag);
        standbys.measuring.store(false, Ordering::Release);
        if changed {
            for standby in self.standbys() {
                tracing::info!(shard = %self.shard.name, host = %standby.endpoint, usable = standby.usable,
                    lag_ms = standby.lag.map(|lag| lag.as_millis() as u64), "standby");
            }
            self.leave_others();
        }
        changed
    }

    async fn ask(&self, host: &Host) -> Option<Answer> {
        let mut connection = host.connection.lock().await;
        let route = Route { database: self.shard.database.as_str().into(), login: 0 };
        let asking = async {
            let mut server = match connection.take() {
                Some(server) => server,
                None => self.target(&route, host.endpoint.clone()).connect().await.ok()?.0,
            };
            let asked = Instant::now();
            let answer = question::ask(&mut server, ASK, |body| read_answer(body, asked)).await?;
            Some((server, answer))
        };
        let (server, answer) = tokio::time::timeout(ANSWER, asking).await.ok()??;
        *connection = Some(server);
        Some(answer)
    }

    /// A connection to a standby that is near enough: they take turns.
    pub(super) async fn connect_to_standby(
        &self,
        standbys: &Standbys,
        route: &Route,
    ) -> Result<(Server, Parameters), ConnectError> {
        let first = standbys.turn.fetch_add(1, Ordering::Relaxed);
        let count = standbys.hosts.len();
        let mut causes = Vec::new();
        for host in (0..count).map(|n| &standbys.hosts[(first + n) % count]) {
            if !host.usable.load(Ordering::Relaxed) {
                continue;
            }
            match self.target(route, host.endpoint.clone()).connect().await {
                Ok(made) => return Ok(made),
                Err(error) => {
                    host.usable.store(false, Ordering::Relaxed);
                    causes.push(error.to_string());
                }
            }
        }
        Err(ConnectError::NoStandby { causes: causes.join("; ") })
    }
}

fn read_answer(body: &[u8], asked: Instant) -> Option<Answer> {
    let [recovery, identifier, position] = question::texts(body)?;
    Some(Answer {
        asked,
        in_recovery: recovery != "f",
        identifier: identifier.to_owned(),
        position: position.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standbys() -> Standbys {
        let host = |host: &str| Host {
            endpoint: Endpoint { host: host.to_owned(), port: 5432 },
            usable: AtomicBool::new(false),
            lag: Mutex::new(None),
            connection: tokio::sync::Mutex::new(None),
        };
        Standbys {
            hosts: vec![host("a"), host("b")],
            written: Mutex::default(),
            identifier: Mutex::default(),
            measuring: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    fn answer(ago: u64, in_recovery: bool, identifier: &str, position: u64) -> Option<Answer> {
        let asked = Instant::now() - Duration::from_secs(ago);
        Some(Answer { asked, in_recovery, identifier: identifier.to_owned(), position })
    }

    #[test]
    fn what_was_replayed_says_how_far_behind_a_standby_is() {
        let s = standbys();
        let most = Duration::from_secs(10);
        let b = s.hosts[1].endpoint.clone();
        assert!(!s.judge(vec![None, answer(0, true, "7", 100)], most), "no primary has been heard");
        assert!(
            s.judge(vec![answer(30, false, "7", 100), answer(0, true, "7", 100)], Duration::from_secs(60))
        );
        assert!(s.judge(vec![answer(20, false, "7", 200), answer(0, true, "7", 199)], most));
        assert!(!s.is_usable(&b), "30 s");
        assert!(s.judge(vec![answer(5, false, "7", 300), answer(0, true, "7", 300)], most));
        assert!(s.is_usable(&b) && !s.is_usable(&s.hosts[0].endpoint.clone()));
        assert!(s.judge(vec![None, answer(0, true, "8", 300)], most), "another cluster");
        assert!(s.judge(vec![None, answer(0, true, "7", 300)], most), "without the primary, for a while");
        assert!(s.judge(vec![answer(0, true, "7", 300), answer(0, false, "7", 250)], most));
        assert!(s.is_usable(&s.hosts[0].endpoint.clone()) && !s.is_usable(&b), "they have changed places");
    }

    #[test]
    fn answers_are_read_with_care() {
        assert!(read_answer(&[0, 3, 0xff, 0xff, 0xff, 0xff], Instant::now()).is_none());
        assert!(read_answer(b"\0\x02\0\0\0\x01t\0\0\0\x017", Instant::now()).is_none());
        let read = read_answer(b"\0\x03\0\0\0\x01t\0\0\0\x017\0\0\0\x0242", Instant::now()).unwrap();
        assert!(read.in_recovery && read.identifier == "7" && read.position == 42);
    }
}
