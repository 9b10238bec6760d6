//! `currval` and `lastval`: what a session's `nextval` has left on its connection is no other session's business.
//!
//! No text shows which statement calls `nextval`, so it is the connection that knows whose values it may have
//! ([`crate::server::Server::sequences_of`]), and the database whether anybody asks for them
//! ([`crate::hidden::Hidden::uses_last_values`]). Where somebody does, a session that gets a connection which others have used has them
//! forgotten in front of its statement. Where nobody does, nothing is sent.

use super::Core;
use super::relay::Relay;
use crate::classify::asks_for_last_values;
use crate::server::SEQUENCES_OF_MANY;

/// Takes away what `currval` and `lastval` say, and nothing else.
pub(super) const FORGET_SEQUENCES: &[u8] = b"DISCARD SEQUENCES";

impl Relay {
    /// A statement goes out that may be anything. If it is the first by which anybody asks this database for such values,
    /// those of others are forgotten in front of it, unless something has run in its transaction that may have
    /// called `nextval`.
    pub(super) fn note_last_values(&mut self, core: &Core, text: Option<&str>) {
        if !text.is_some_and(|text| asks_for_last_values(text.as_bytes())) {
            return;
        }
        core.seat.hidden.has_used_last_values();
        let begins = self.reached == 0 && self.exchange.status != b'E' && core.seat.context.sealed.is_none();
        let of_many = self.server.as_ref().is_some_and(|s| s.sequences_of == SEQUENCES_OF_MANY);
        if begins
            && of_many
            && self.say_ahead(FORGET_SEQUENCES, None)
            && let Some(server) = &mut self.server
        {
            server.sequences_of = core.id;
        }
    }
}
