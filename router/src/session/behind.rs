//! What runs behind the texts of a session's statements: whether the connection is to be asked what that has left.
//! [`crate::hidden`] says of which statements.

use std::sync::Arc;

use switchyard_wire::{build, message};

use super::Core;
use super::relay::Relay;
use crate::exchange::Owed;
use crate::hidden::look::{COUNT, LOOK, PATTERNS};
use crate::hidden::{DEFINES, Disturbance, Found, READS, SURE, WRITES};

/// A look at the database under way.
#[derive(Debug, Default)]
pub(super) struct Look {
    version: u64,
    /// Only whether something has changed is asked.
    counts: bool,
    found: Found,
    pub(super) failed: bool,
}

impl Relay {
    /// A statement goes out that reaches `reach`. `is_noted` says that it may do anything by its text already; `text`
    /// gives that text. While nothing is known of the database, its transaction's end decides.
    #[inline]
    pub(super) fn note_reach(
        &mut self,
        core: &Core,
        reach: u8,
        is_noted: bool,
        text: impl FnOnce(&Self) -> Option<String>,
    ) {
        self.reached |= reach;
        if reach & DEFINES != 0 && self.disturbance.is_none() {
            self.disturbance = Some(Disturbance::begin(&core.seat.hidden));
        }
        let hidden = &core.seat.hidden;
        if hidden.is_known_loud(reach) && (!is_noted || hidden.is_sure(reach, "")) {
            let text = text(self);
            self.may_have_reached(core, reach, text.as_deref());
        }
    }

    #[cold]
    fn may_have_reached(&mut self, core: &Core, reach: u8, text: Option<&str>) {
        self.note_unknown(core, reach, text);
        self.touch(|touched| touched.behind = true);
    }

    /// Looks at the database, if that is due, and sees to it that the connection is asked where nothing is known. The
    /// exchange is over. Whether it looks.
    #[inline]
    pub(super) fn looks_behind(&mut self, core: &Core, now: std::time::Instant) -> bool {
        if self.reached == 0 {
            return false;
        }
        let hidden = &core.seat.hidden;
        if (hidden.is_due(now) || self.reached & DEFINES != 0) && self.look_behind(core) {
            return true;
        }
        if hidden.is_unknown() && self.touched.is_none() {
            self.may_have_reached(core, self.reached, None);
            self.touch(|touched| touched.unknown = true);
        }
        self.reached = 0;
        false
    }

    #[cold]
    fn look_behind(&mut self, core: &Core) -> bool {
        let counts = self.reached & DEFINES == 0 && core.seat.hidden.may_be_unchanged();
        self.reached &= !DEFINES;
        // It is over: what it has defined is there for a look that begins now.
        self.disturbance = None;
        let Some(server) = &mut self.server else { return false };
        let out = self.c.own();
        let begin = out.len();
        let mut ask = |sql: &str, parameters: &[&[u8]]| {
            build::parse(out, b"", sql.as_bytes(), &[0, 0])
                .and_then(|()| build::bind_text(out, b"", b"", parameters))
                .and_then(|()| build::execute(out, b"", 0))
        };
        let built = ask(COUNT, &[]);
        let all = PATTERNS.map(str::as_bytes);
        let built = if counts { built } else { built.and_then(|()| ask(LOOK, &all)) };
        if built.is_err() {
            self.c.own().truncate(begin);
            core.seat.hidden.failed();
            return false;
        }
        build::sync(self.c.own());
        server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        for _ in 0..if counts { 1 } else { 2 } {
            for owed in [Owed::OwnParse(None), Owed::OwnBind, Owed::OwnExecute(None)] {
                self.exchange.sent_own(owed);
            }
        }
        self.exchange.sent_own(Owed::OwnSync);
        self.look = Some(Box::new(Look { version: core.seat.hidden.version(), counts, ..Look::default() }));
        true
    }

    /// The connection has said what there is.
    pub(super) fn has_looked(&mut self, core: &Core, look: Look) {
        let hidden = Arc::clone(&core.seat.hidden);
        if look.failed {
            tracing::warn!(session = core.id, tenant = %core.who.tenant,
                "cannot see what a database runs behind statements: its connections are asked after each transaction");
            hidden.failed();
        } else if look.counts {
            hidden.counted(look.found.print.as_deref());
        } else {
            hidden.learn(look.version, look.found);
        }
        // Of the transaction that has just ended nothing was known yet, or something older.
        if hidden.is_loud(self.reached) && self.touched.is_none() {
            self.may_have_reached(core, self.reached, None);
            self.touch(|touched| touched.unknown = hidden.is_unknown());
        }
        self.reached = 0;
    }
}

impl Look {
    /// Takes one row. None if it is not as it must be.
    pub(super) fn row(&mut self, body: &[u8]) -> Option<()> {
        let mut row = message::data_row(body).ok()?;
        let mut next = || row.next()?.ok()?.and_then(|value| std::str::from_utf8(value).ok());
        match (next()?, next()?) {
            ("r", "s") => self.found.loud |= (READS | WRITES) | (READS | WRITES) << SURE,
            ("w", "s") => self.found.loud |= WRITES | WRITES << SURE,
            ("r", _) => self.found.loud |= READS | WRITES,
            ("w", _) => self.found.loud |= WRITES,
            ("v", _) => self.found.last_values = true,
            ("f", name) => self.found.functions.push(name.to_ascii_lowercase()),
            ("p", print) => self.found.print = Some(print.to_owned()),
            ("c", name) => self.found.names.push(name.to_owned()),
            _ => return None,
        }
        Some(())
    }
}
