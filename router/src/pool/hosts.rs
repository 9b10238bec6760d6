//! Which of a shard's hosts is the primary, and following it when another is promoted.
//!
//! Nothing is believed but what a host says of itself on the connection that is to be used: that it is not in
//! recovery, that it is the same cluster as before, and that nobody has been promoted after it.

use std::time::Duration;

use parking_lot::Mutex;
use switchyard_config::topology::{Endpoint, Shard};

use super::standbys::Standbys;
use super::{Pool, question};
use crate::server::connect::{ConnectError, Parameters, Target};
use crate::server::{Route, Server};

/// Least time that each host is given to answer, where the shard's `connect_timeout` allows for it: one that is
/// gone without a word must not take the time of those that are there.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// What a host is asked once on each new connection. On a primary, the name of the WAL file that is written begins with
/// its timeline, which rises with every promotion.
const LOOK: &[u8] = b"SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
    CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END";

/// The hosts of a shard.
pub(super) struct Hosts {
    all: Vec<Endpoint>,
    known: Mutex<Known>,
    /// Where it is a standby that is wanted, and not the primary.
    pub(super) standbys: Option<Standbys>,
}

#[derive(Default)]
struct Known {
    /// Index of the host that was primary last; the first until one has said so.
    primary: usize,
    /// The cluster's system identifier, once a primary has said it.
    identifier: Option<String>,
    /// The latest timeline seen.
    timeline: u32,
}

/// What a host says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    in_recovery: bool,
    identifier: String,
    timeline: u32,
}

impl Hosts {
    pub(super) fn new(shard: &Shard) -> Self {
        Self { all: shard.endpoints(), known: Mutex::default(), standbys: None }
    }

    /// The hosts of a shard, of which standbys are wanted.
    pub(super) fn of_standbys(shard: &Shard) -> Self {
        Self { standbys: Some(Standbys::new(shard)), ..Self::new(shard) }
    }

    /// Whether there is no primary to be looked for.
    pub(super) fn is_one(&self) -> bool {
        self.all.len() == 1 || self.standbys.is_some()
    }

    /// All hosts, the one that was primary last first.
    fn order(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        let primary = self.known.lock().primary;
        let others = (0..self.all.len()).filter(move |i| *i != primary);
        std::iter::once(primary).chain(others).map(|i| (i, &self.all[i]))
    }

    /// Whether a connection to `endpoint` is one to the host that is primary as far as is known, or to a standby that
    /// is near enough, where these are wanted.
    pub(super) fn is_primary(&self, endpoint: &Endpoint) -> bool {
        if let Some(standbys) = &self.standbys {
            return standbys.is_usable(endpoint);
        }
        self.is_one() || self.all[self.known.lock().primary] == *endpoint
    }

    /// Takes the word of a host. Whether it is a new primary, or why it is none.
    fn judge(&self, index: usize, look: &Look) -> Result<bool, String> {
        if look.in_recovery {
            return Err("is a standby".to_owned());
        }
        let mut known = self.known.lock();
        if let Some(identifier) = known.identifier.as_ref().filter(|i| **i != look.identifier) {
            return Err(format!("is another cluster: its system identifier is not {identifier}"));
        }
        if look.timeline < known.timeline {
            return Err(format!("was primary before timeline {}", known.timeline));
        }
        // Until one has said so, the first was only a guess.
        let changed = known.primary != index && known.identifier.is_some();
        known.identifier = Some(look.identifier.clone());
        known.timeline = look.timeline;
        known.primary = index;
        Ok(changed)
    }
}

impl Pool {
    /// A connection to the shard's primary, whichever of its hosts that is.
    pub(super) async fn connect_to_primary(
        &self,
        route: &Route,
    ) -> Result<(Server, Parameters), ConnectError> {
        if let Some(standbys) = &self.hosts.standbys {
            return self.connect_to_standby(standbys, route).await;
        }
        if self.hosts.is_one() {
            return self.target(route, self.hosts.all[0].clone()).connect().await;
        }
        let limit = self.shard.pool.connect_timeout;
        let each = (limit / self.hosts.all.len() as u32).max(LEAST_TIME).min(limit);
        let mut causes = Vec::new();
        let order: Vec<_> = self.hosts.order().map(|(i, e)| (i, e.clone())).collect();
        for (index, endpoint) in order {
            let target = self.target(route, endpoint.clone());
            let tried = tokio::time::timeout(each, self.try_host(index, &target)).await;
            let cause = match tried {
                Ok(Ok(made)) => return Ok(made),
                // It is there, and has something against us: no other host would say better.
                Ok(Err(NotThis::Error(error @ ConnectError::Refused { .. }))) if !error.may_pass() => {
                    return Err(error);
                }
                Ok(Err(NotThis::Error(error))) => error.to_string(),
                Ok(Err(NotThis::Primary(cause))) => format!("{endpoint} {cause}"),
                Err(_) => format!("{endpoint} does not answer"),
            };
            causes.push(cause);
        }
        Err(ConnectError::NoPrimary { causes: causes.join("; ") })
    }

    pub(super) fn target(&self, route: &Route, endpoint: Endpoint) -> Target {
        Target {
            shard: self.shard.clone(),
            endpoint,
            login: self.logins.get(route.login),
            route: route.clone(),
            tls: self.tls.load_full(),
            cache: self.cache.clone(),
            sealed: self.sealer.is_ready(),
            home: crate::worker::current(),
        }
    }

    async fn try_host(&self, index: usize, target: &Target) -> Result<(Server, Parameters), NotThis> {
        let (mut server, parameters) = target.connect().await.map_err(NotThis::Error)?;
        let look =
            look(&mut server).await.ok_or_else(|| NotThis::Primary("does not say what it is".to_owned()))?;
        if self.hosts.judge(index, &look).map_err(NotThis::Primary)? {
            tracing::warn!(shard = %self.shard.name, host = %target.endpoint, timeline = look.timeline,
                "shard has another primary");
            self.leave_others();
        }
        Ok((server, parameters))
    }

    /// Closes idle connections to hosts that are not primary any more. Those that are lent follow when they
    /// come back.
    pub(super) fn leave_others(&self) {
        let mut state = self.state.lock();
        let (kept, mut left): (Vec<_>, Vec<_>) = std::mem::take(&mut state.idle)
            .into_iter()
            .partition(|idle| self.hosts.is_primary(&idle.server.identity.endpoint));
        state.idle = kept;
        for idle in &mut left {
            self.forget(&mut state, &mut idle.server);
        }
    }
}

/// Why a host is not the one.
enum NotThis {
    Error(ConnectError),
    Primary(String),
}

/// Asks a host what it is. None if it does not say so in the expected form.
async fn look(server: &mut Server) -> Option<Look> {
    question::ask(server, LOOK, read_look).await
}

/// Three values of a row in text form.
fn read_look(body: &[u8]) -> Option<Look> {
    let [recovery, identifier, file] = question::texts(body)?;
    let in_recovery = recovery != "f";
    let timeline = if in_recovery { 0 } else { u32::from_str_radix(file.get(..8)?, 16).ok()? };
    Some(Look { in_recovery, identifier: identifier.to_owned(), timeline })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        let all = ["a", "b"].map(|h| Endpoint { host: h.to_owned(), port: 5432 }).to_vec();
        Hosts { all, known: Mutex::default(), standbys: None }
    }

    fn primary(identifier: &str, timeline: u32) -> Look {
        Look { in_recovery: false, identifier: identifier.to_owned(), timeline }
    }

    #[test]
    fn the_last_promoted_of_one_cluster_is_believed() {
        let hosts = hosts();
        assert_eq!(hosts.judge(0, &primary("7", 1)), Ok(false));
        assert!(hosts.judge(1, &Look { in_recovery: true, ..primary("7", 0) }).is_err());
        assert!(hosts.judge(1, &primary("8", 2)).unwrap_err().contains("another cluster"));
        assert_eq!(hosts.judge(1, &primary("7", 2)), Ok(true));
        assert!(hosts.is_primary(&hosts.all[1]) && !hosts.is_primary(&hosts.all[0]));
        // The old one is back and has not noticed.
        assert!(hosts.judge(0, &primary("7", 1)).unwrap_err().contains("before timeline 2"));
        assert_eq!(hosts.order().map(|(i, _)| i).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn rows_are_read_with_care() {
        let row = |values: [&[u8]; 3]| {
            let mut body = vec![0, 3];
            for value in values {
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value);
            }
            body
        };
        let good = row([b"f", b"7", b"0000000A0000000000000001"]);
        assert_eq!(read_look(&good), Some(primary("7", 10)));
        assert_eq!(read_look(&row([b"t", b"7", b""])).map(|l| l.in_recovery), Some(true));
        assert_eq!(read_look(&row([b"f", b"7", b""])), None);
        (0..good.len()).for_each(|end| assert_eq!(read_look(&good[..end]), None));
        assert_eq!(read_look(&[0, 3, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
