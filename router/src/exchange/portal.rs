//! The unnamed portal, where it must not be run.
//!
//! A Query runs in the unnamed portal. One that fails in a transaction leaves that portal until the transaction, or the
//! subtransaction, is rolled back, but not the list of statements that the portal refers to: PostgreSQL frees that with
//! the message, and reads it when the portal is executed. Most often it then says that the transaction has failed; with
//! other bytes in its place the process ends with a segmentation fault, and every session of the server with it.
//! A portal that a Bind has made keeps what it needs, or knows that it has lost it.
// src/backend/tcop/postgres.c exec_simple_query, exec_execute_message; src/backend/utils/mmgr/portalmem.c AtAbort_Portals

use switchyard_wire::error::sqlstate;

use super::{Exchange, Owed};

/// What an Execute of the unnamed portal would run.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Unnamed {
    /// What a Bind has made, or nothing: the server knows what to say.
    Sound,
    /// That depends on what the server has not answered yet.
    Unknown,
    /// Perhaps what is left of a Query that has failed.
    Left,
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Portal {
    /// A Bind without a portal's name was sent, and no Sync or Query since: it has succeeded when the server comes to
    /// what is sent now, or that is skipped.
    pub(super) bound: bool,
    /// The transaction has failed in a Query, and no Bind has replaced the portal since.
    left: bool,
    /// A statement of the Query that is being answered has completed.
    pub(super) ran: bool,
}

impl Portal {
    /// A Query was answered with an error of this code, in a transaction of this status.
    pub(super) fn query_failed(&mut self, code: Option<[u8; 5]>, status: u8) {
        // What is refused before it runs has not touched the portal: the text, and anything in a failed transaction
        // that does not end it. Otherwise these codes may be those of a function.
        let untouched = status == b'E'
            && !self.ran
            && [sqlstate::IN_FAILED_SQL_TRANSACTION.0, sqlstate::SYNTAX_ERROR.0].map(Some).contains(&code);
        self.left |= !untouched;
    }

    /// The server is ready.
    #[inline]
    pub(super) fn ready(&mut self, status: u8) {
        self.ran = false;
        // Portals go with their transaction.
        self.left &= status == b'E';
    }

    /// BindComplete arrived; whether it was for the unnamed portal.
    #[inline]
    pub(super) fn was_bound(&mut self, unnamed: bool) {
        self.left &= !unnamed;
    }
}

impl Exchange {
    /// A Bind was sent; whether it is for the unnamed portal.
    #[inline]
    pub(crate) fn sent_bind(&mut self, unnamed: bool) {
        self.portal.bound |= unnamed;
        self.sent_extended(Owed::Bind { unnamed });
    }

    /// Whether an Execute that is sent now needs no look, whatever portal it names.
    #[inline]
    pub(crate) fn runs_what_was_bound(&self) -> bool {
        self.portal.bound
    }

    /// What an Execute of the unnamed portal would run, if it is sent now.
    pub(crate) fn unnamed_portal(&self) -> Unnamed {
        let queries = |owed: &Owed| matches!(owed, Owed::Query | Owed::RefusedQuery(_) | Owed::OwnQuery(_));
        if self.skipping || self.portal.bound {
            Unnamed::Sound
        } else if self.owed.iter().any(queries) || self.portal.left && self.readies_owed() > 0 {
            Unnamed::Unknown
        } else if self.portal.left {
            Unnamed::Left
        } else {
            Unnamed::Sound
        }
    }
}
