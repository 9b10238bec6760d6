//! What happens to idle connections while nobody looks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_wire::{build, frame};

use super::{Idle, Pool, say_goodbye};
use crate::server::{Route, Server};

/// How long a connection may be idle in a process that another has taken over from.
const LEAVING_IDLE: Duration = Duration::from_secs(2);

/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl Pool {
    /// Closes what is too old, dead or superfluous, probes what has been idle for long, and keeps
    /// the minimum. Called about once a second. `leaving` is for a process that another has taken over
    /// from, which needs the shard's places more.
    pub(crate) fn upkeep(self: &Arc<Self>, leaving: bool) {
        let limits = &self.shard.pool;
        let (idle_timeout, min) =
            if leaving { (LEAVING_IDLE, 0) } else { (limits.idle_timeout, limits.min as usize) };
        let now = Instant::now();
        let mut closing = Vec::new();
        let mut probing = Vec::new();
        {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            let mut kept = Vec::with_capacity(state.idle.len());
            let idle = std::mem::take(&mut state.idle);
            let mut open = state.open;
            for mut one in idle {
                let age = now.duration_since(one.since);
                let superfluous = age >= idle_timeout && open > min;
                if now >= one.server.expires || superfluous || !one.server.is_alive() {
                    self.forget(&mut state, &mut one.server);
                    open -= 1;
                    closing.push(one);
                } else if now.duration_since(one.checked) >= limits.check_after {
                    probing.push(one);
                } else {
                    kept.push(one);
                }
            }
            state.idle = kept;
            let route = Route { database: self.shard.database.as_str().into(), login: 0 };
            let there = !self.is_of_standbys() || self.has_standby();
            let may_try =
                there && !state.hold.is_paused() && state.failing.get(&route).is_none_or(|f| now >= f.until);
            while may_try && state.open < min.min(self.size()) {
                self.start_connecting(&mut state, route.clone());
            }
            // Waiters whose connection attempts failed while others were busy.
            if state.connecting == 0 {
                self.serve_next(&mut state);
            }
            // Those that gave up would only be skipped one by one later.
            state.queue.tidy(now);
            state.hold.retain_those_who_wait();
        }
        for one in closing {
            say_goodbye(*one.server);
        }
        for Idle { mut server, since, .. } in probing {
            let pool = self.clone();
            server.idle_since = Some(since);
            tokio::spawn(async move { pool.probe(server).await });
        }
    }

    async fn probe(self: Arc<Self>, mut server: Box<Server>) {
        let answered = tokio::time::timeout(PROBE_TIMEOUT, round_trip(&mut server)).await;
        if !matches!(answered, Ok(Ok(true))) {
            tracing::warn!(shard = %self.shard.name, pid = server.identity.pid, "idle connection does not answer");
            server.broken = true;
        }
        self.give_back(server);
    }
}

/// Sync and its ReadyForQuery: the cheapest thing that a live server answers.
async fn round_trip(server: &mut Server) -> std::io::Result<bool> {
    let mut out = Vec::with_capacity(5);
    build::sync(&mut out);
    server.stream.write_all(&out).await?;
    let mut buf = [0; 512];
    let mut held = 0;
    loop {
        let n = server.stream.read(&mut buf[held..]).await?;
        held += n;
        if n == 0 || held == buf.len() {
            return Ok(false);
        }
        let mut at = 0;
        while let Ok(Some(header)) = frame::header(&buf[at..held]) {
            if at + header.len > held {
                break;
            }
            match header.tag {
                frame::backend::READY_FOR_QUERY => {
                    return Ok(buf[at + frame::HEADER] == b'I' && at + header.len == held);
                }
                frame::backend::NOTICE | frame::backend::PARAMETER_STATUS | frame::backend::NOTIFICATION => {}
                _ => return Ok(false),
            }
            at += header.len;
        }
    }
}
