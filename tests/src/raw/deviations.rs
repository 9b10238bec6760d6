//! Where the router answers otherwise than PostgreSQL would, and why. All of it: what differs and is
//! not listed here fails the tests. `docs/protocol.md` shows this list.

/// One thing that the router does in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deviation {
    /// By what the tests name it.
    pub id: &'static str,
    /// What PostgreSQL does.
    pub postgresql: &'static str,
    /// What the router does.
    pub router: &'static str,
    /// Why.
    pub why: &'static str,
}

/// The list.
pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        id: "protocol 3.2",
        postgresql: "15 to 17 have protocol 3.0 alone and say so",
        router: "grants 3.2, with a cancel key of 32 bytes, and says that it supports 3.0 to 3.2",
        why: "as PostgreSQL 18; clients of 3.0 notice nothing",
    },
    Deviation {
        id: "direct TLS",
        postgresql: "15 and 16 close the connection when it begins with a TLS handshake",
        router: "does the handshake, if the client offers the ALPN protocol `postgresql`",
        why: "as PostgreSQL 17",
    },
    Deviation {
        id: "GSSAPI",
        postgresql: "answers GSSENCRequest with G over TCP, where it is built with GSSAPI",
        router: "answers N",
        why: "it has no GSSAPI; clients go on with TLS or in plain text on the same connection",
    },
    Deviation {
        id: "stuffed bytes",
        postgresql: "does the TLS handshake, then refuses what was sent in front of it",
        router: "refuses with the same words before the handshake",
        why: "there is no reason to do the handshake",
    },
    Deviation {
        id: "database name",
        postgresql: "refuses a database that does not exist, after the password",
        router: "connects to the database of the tenant, whatever the client calls it",
        why: "which database a tenant has is the catalog's affair",
    },
    Deviation {
        id: "replication",
        postgresql: "serves replication connections",
        router: "refuses them and says where to connect instead",
        why: "a stream of changes is of all tenants, and its slot is of one server",
    },
    Deviation {
        id: "startup-only settings",
        postgresql: "takes settings at startup that nobody can change later (`ignore_system_indexes`)",
        router: "refuses them with 55P02, as PostgreSQL does later",
        why: "the server connection is already there",
    },
    Deviation {
        id: "custom settings",
        postgresql: "has no value for `my.setting` (NULL) until the session sets it",
        router: "may have an empty one, if another session has set it on the same server connection before",
        why: "PostgreSQL cannot forget the name of a custom setting; its value is gone",
    },
    Deviation {
        id: "bytes that are not UTF-8",
        postgresql: "takes names in the startup packet in any encoding",
        router: "refuses names that are not UTF-8 (22021)",
        why: "they are compared with names in the catalog, where two spellings of one name must not be two names",
    },
    Deviation {
        id: "malformed messages",
        postgresql: "fails the statement (08P01 and others) and goes on, or closes without a word where the length is at fault",
        router: "says 08P01 and closes the connection, where it has to read the message itself",
        why: "what cannot be read cannot be attributed, and its server connection must not go back to the pool",
    },
    Deviation {
        id: "killed server",
        postgresql: "says 57P01 and closes the connection when a server process is terminated",
        router: "fails the statement with the same words, and the session goes on, if no transaction was open (not in session pooling)",
        why: "nothing of the session was lost with the process",
    },
    Deviation {
        id: "aborted transaction",
        postgresql: "counts the parameters of a Bind, or describes a statement, before it looks at the transaction",
        router: "25P02, where the server connection lacks the named statement",
        why: "in an aborted transaction a statement cannot be prepared on a connection that lacks it",
    },
    Deviation {
        id: "names of statements",
        postgresql: "looks at the first 63 bytes of a statement's name, which must be text, and uses it in errors",
        router: "takes any bytes of any length for a name; errors that are not about the name use its own",
        why: "names are the client's; the same text prepared by many clients is one statement on the server",
    },
    Deviation {
        id: "changed results",
        postgresql: "fails a prepared statement whose columns have changed since it was prepared (0A000), by DDL or another `search_path`",
        router: "prepares it again and runs it, where the client has got nothing of the answer yet",
        why: "clients would have to prepare it again; poolers are where they cannot",
    },
    Deviation {
        id: "last values",
        postgresql: "remembers for `currval` and `lastval` what the session's `nextval` has given",
        router: "does so within a transaction; in another one it may answer 55000 (not in session pooling)",
        why: "which statement calls `nextval` cannot be seen, and what another session has called is not to be found",
    },
    Deviation {
        id: "views of the session",
        postgresql: "shows in `pg_prepared_statements`, `pg_listening_channels()` and `pg_settings` (`source`, `reset_val`) what the session has prepared, heard and set",
        router: "shows what the server connection has: statements under names of the router's, startup settings as set by `SET`",
        why: "statements, channels and settings are kept by the router, and follow the session",
    },
    Deviation {
        id: "settings set back first",
        postgresql: "reports a setting (ParameterStatus) whenever a statement of the session's has changed it",
        router: "may not where the session's first statement on a connection that had to be cleaned sets it back to what that had before (`SET NAMES` under another `client_encoding`); behind a `BEGIN` it does",
        why: "what the connection is set to for the session and what the session sets are one change",
    },
    Deviation {
        id: "defaults of roles",
        postgresql: "applies `ALTER ROLE .. SET` and `ALTER DATABASE .. SET` to sessions that begin afterwards",
        router: "applies them to server connections that are made afterwards (`RECONNECT` makes them anew)",
        why: "a session that begins may get a connection that was there before",
    },
    Deviation {
        id: "unchecked startup settings",
        postgresql: "takes some settings at startup without a look at their values (`temp_tablespaces`, `session_authorization`), or looks when it loads what they name (`local_preload_libraries`)",
        router: "looks at them as at a `SET`",
        why: "the server connection is already there",
    },
    Deviation {
        id: "notifications to oneself",
        postgresql: "sends those of a pipelined transaction behind its own completion",
        router: "may send them ahead of the answers to the pipelined messages before it",
        why: "they come by the hub, and answers are passed on as they arrive",
    },
    Deviation {
        id: "statements in another encoding",
        postgresql: "keeps a prepared statement as it was read, whatever `client_encoding` is set afterwards",
        router: "may prepare its bytes again under the new one: what is not ASCII in it is another text then, or an error (22021)",
        why: "the text is kept as the client has sent it; SQL in ASCII, and parameters, are not concerned",
    },
    Deviation {
        id: "EXECUTE of what is gone",
        postgresql: "names the table or column that a prepared statement lacks by now",
        router: "may answer 26000, where the server connection lacks the statement as well",
        why: "it could not be prepared there, and `EXECUTE` is PostgreSQL's to answer",
    },
];

/// The deviation called `id`.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn named(id: &str) -> &'static Deviation {
    DEVIATIONS.iter().find(|d| d.id == id).unwrap_or_else(|| panic!("no deviation is called {id:?}"))
}

/// Whether one message may stand for another wherever they occur.
pub fn is_known(expected: &str, found: &str) -> bool {
    // "aborted transaction"
    (expected.starts_with("E ERROR 08P01 bind message supplies") || expected.starts_with("n "))
        && found.starts_with("E ERROR 25P02 ")
}

/// The list as a table in Markdown.
pub fn table() -> String {
    let mut table = String::from("| what | PostgreSQL | the router | why |\n|---|---|---|---|\n");
    for d in DEVIATIONS {
        table += &format!("| {} | {} | {} | {} |\n", d.id, d.postgresql, d.router, d.why);
    }
    table
}
