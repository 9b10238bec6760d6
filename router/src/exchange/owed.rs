//! What a server owes, reply by reply, and what is undone where it never comes.

use std::sync::Arc;

use switchyard_wire::error::ErrorResponse;

use crate::server::UnnamedOf;
use crate::statements::{SavedUnnamed, Statement};

/// A reply, or group of replies, that is owed.
#[derive(Debug)]
pub(crate) enum Owed {
    /// ReadyForQuery for a Query.
    Query,
    /// ReadyForQuery for a FunctionCall.
    Call,
    /// ReadyForQuery for a Sync.
    Sync,
    /// No reply: the client has ended this many COPYs here.
    CopyEnd(usize),
    /// BindComplete.
    Bind {
        /// Whether it is for the unnamed portal.
        unnamed: bool,
    },
    /// RowDescription or NoData.
    Describe,
    /// NoData, not to be shown: the router has asked whether there is an unnamed portal.
    IsPortalThere,
    /// CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// ParseComplete for a statement without a name, which has this serial number in the session.
    ParseUnnamed(u64),
    /// No reply: what comes next replaces the unnamed statement, if the server does not skip it. What there was, and
    /// whose the server's was.
    Replaced(Box<(SavedUnnamed, UnnamedOf)>),
    /// No reply: what comes next has the effect of this number, if the server does not skip it.
    Effect(u64),
    /// ParseComplete for a named statement that was sent on.
    Parse(Box<[u8]>, Arc<Statement>),
    /// CloseComplete, to be shown as ParseComplete: the server had the statement already.
    ParseAsClose(Box<[u8]>),
    /// ParseComplete for a text that the server had already, and was to judge once more.
    ParseAgain(Box<[u8]>),
    /// The error for a name that the client has in use; the name is the client's.
    ParseDuplicate(Box<[u8]>),
    /// ParseComplete, not to be shown: the router prepared a statement that the server lacked.
    Inject(Option<Arc<Statement>>),
    /// ParseComplete, not to be shown: the router prepared a statement by the client's own name, which its SQL uses.
    InjectByName(Box<str>),
    /// CloseComplete, not to be shown, for the same.
    CloseByName(Box<str>),
    /// CloseComplete, not to be shown: the router made room, by closing this one, or the unnamed one.
    Evict(Option<Arc<Statement>>),
    /// CloseComplete, not to be shown: what was tried is gone.
    CloseTried,
    /// CloseComplete for a portal, or for a statement that the client does not have.
    Close,
    /// CloseComplete for a statement of the client, which the server may have had as well. If an
    /// error comes first, it is still there.
    CloseStatement {
        /// The client's name.
        name: Box<[u8]>,
        statement: Arc<Statement>,
        /// Whether it was closed on the server, too.
        on_server: bool,
    },
    /// CloseComplete for a statement that the client has prepared by SQL. If an error comes first, it is still there.
    ClosePrepared {
        /// The client's name.
        name: Box<str>,
        /// The `PREPARE`.
        sql: String,
        /// Whether the server had it, too.
        on_server: bool,
    },
    /// An error, which the client gets in other words, and ReadyForQuery: a Query that the router refuses.
    RefusedQuery(Box<ErrorResponse>),
    /// An error, which the client gets in other words: what makes the server skip a group that the router refuses.
    RefusedGroup(Box<ErrorResponse>),
    /// ReadyForQuery for a Query or a FunctionCall of the router's own; the name of what it prepares.
    OwnQuery(Option<Box<str>>),
    /// ParseComplete for a statement of the router's own; its name, where it is one of the client's.
    OwnParse(Option<Box<str>>),
    /// BindComplete for it.
    OwnBind,
    /// CommandComplete for it; the name of what it prepares, in a group of the client's.
    OwnExecute(Option<Box<str>>),
    /// ReadyForQuery for the Sync behind it.
    OwnSync,
}

impl Owed {
    /// Whether the client is told when the server is ready.
    pub(super) fn brings_ready(&self) -> bool {
        matches!(self, Self::Query | Self::Call | Self::Sync | Self::RefusedQuery(_))
    }

    /// Whether no reply to it is the client's.
    pub(super) fn is_own(&self) -> bool {
        matches!(
            self,
            Self::OwnQuery(_) | Self::OwnParse(_) | Self::OwnBind | Self::OwnExecute(_) | Self::OwnSync
        )
    }

    /// Whether no reply comes to it at all.
    #[inline]
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::CopyEnd(_) | Self::Replaced(_) | Self::Effect(_))
    }

    /// What is to be undone if it never comes; `failed` says that it was refused, and not skipped.
    pub(super) fn undo(self, failed: bool) -> Option<Undo> {
        match self {
            Self::Parse(name, statement) => Some(Undo::Parsed(name, statement)),
            Self::ParseAsClose(name) | Self::ParseAgain(name) => Some(Undo::Named(name)),
            Self::Inject(Some(statement)) => Some(Undo::Injected(statement)),
            // The old one goes before the new one is looked at. // src/backend/tcop/postgres.c exec_parse_message
            Self::ParseUnnamed(serial) if failed => Some(Undo::Unnamed(serial)),
            Self::Replaced(before) => Some(Undo::Replaced(before)),
            Self::Inject(None) | Self::Evict(None) | Self::RefusedGroup(_) => Some(Undo::OnServer),
            Self::OwnExecute(Some(name)) | Self::OwnParse(Some(name)) | Self::InjectByName(name) => {
                Some(Undo::BySql(name))
            }
            Self::CloseByName(name) => Some(Undo::StillByName(name)),
            Self::ClosePrepared { name, sql, on_server } => Some(Undo::StillPrepared(name, sql, on_server)),
            Self::Evict(Some(statement)) => Some(Undo::Evicted(statement)),
            Self::CloseStatement { name, statement, on_server } => {
                Some(Undo::Closed(name, statement, on_server))
            }
            _ => None,
        }
    }
}

/// What is to be undone, because the server skipped it.
#[derive(Debug)]
pub(crate) enum Undo {
    /// The client's statement of this name was not made, nor this one on the server.
    Parsed(Box<[u8]>, Arc<Statement>),
    /// The client's statement of this name was not made.
    Named(Box<[u8]>),
    /// The server does not have this statement.
    Injected(Arc<Statement>),
    /// The server still has this statement.
    Evicted(Arc<Statement>),
    /// The client still has this statement; so has the server, if it was to be closed there.
    Closed(Box<[u8]>, Arc<Statement>, bool),
    /// There is no unnamed statement, if the last is the one of this number.
    Unnamed(u64),
    /// The unnamed statement is what it was.
    Replaced(Box<(SavedUnnamed, UnnamedOf)>),
    /// The server does not have this statement, which the session has prepared by SQL.
    BySql(Box<str>),
    /// The server still has the statement of this name of the client's.
    StillByName(Box<str>),
    /// The client still has this statement, prepared by SQL; so has the server, if it was to be closed there.
    StillPrepared(Box<str>, String, bool),
    /// What unnamed statement the server has is not known.
    OnServer,
}
