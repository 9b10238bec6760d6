//! Connections that nobody has, and which of them suits whom.

use std::time::Instant;

use super::Want;
use crate::server::Server;

/// A connection that nobody has.
pub(super) struct Idle {
    pub(super) server: Box<Server>,
    /// Since when nobody has used it.
    pub(super) since: Instant,
    /// When it was last seen to answer.
    pub(super) checked: Instant,
    /// Until then it is lent to nobody but its tenant; whoever looks after that clears it.
    pub(super) kept: Option<Instant>,
}

/// How well a connection suits a session, the best first. Of each pair, the first is on the session's
/// own thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// It carries just what is wanted.
    Ready,
    ReadyElsewhere,
    /// It carries the tenant's context.
    Own,
    OwnElsewhere,
    /// It carries nothing.
    Clean,
    CleanElsewhere,
    /// It must be cleaned first.
    Foreign,
}

/// The idle connection that suits best, with its place. Of equals the most recently used; of those that
/// must be cleaned first, the one that was idle longest.
pub(super) fn best(idle: &[Idle], want: &Want<'_>) -> Option<(Fit, usize)> {
    let mut found: Option<(Fit, usize)> = None;
    for (at, candidate) in idle.iter().enumerate().rev() {
        let server = &candidate.server;
        let carried = &server.carried;
        let own = carried.context == want.context;
        // A context has one route.
        if !own && (candidate.kept.is_some() || server.route != *want.route) {
            continue;
        }
        let clean = !carried.dirty || carried.session == want.session;
        let near = server.home == want.worker;
        let either = |here, there| if near { here } else { there };
        let fit = if own && clean && carried.wishes.id == want.wishes {
            either(Fit::Ready, Fit::ReadyElsewhere)
        } else if own && clean {
            either(Fit::Own, Fit::OwnElsewhere)
        } else if carried.context == 0 && clean {
            either(Fit::Clean, Fit::CleanElsewhere)
        } else {
            Fit::Foreign
        };
        if fit == Fit::Ready {
            return Some((fit, at));
        }
        // Walking from the most recent to the oldest: the last of the foreign ones is the oldest.
        if found.is_none_or(|(best, _)| fit < best || (fit, best) == (Fit::Foreign, Fit::Foreign)) {
            found = Some((fit, at));
        }
    }
    found
}

/// Of the connections that can serve whom `oldest` can, which has been idle longest: one of the context
/// that has most of them, unless that is no more than `oldest` belongs to.
pub(super) fn richest(idle: &[Idle], oldest: usize, held: impl Fn(u64) -> u32) -> usize {
    let route = &idle[oldest].server.route;
    let mut found = (held(idle[oldest].server.carried.context), oldest);
    for (at, candidate) in idle.iter().enumerate().skip(oldest + 1) {
        let rich = held(candidate.server.carried.context);
        if rich > found.0 && candidate.kept.is_none() && candidate.server.route == *route {
            found = (rich, at);
        }
    }
    found.1
}
