//! `SHOW CLIENTS` and `SHOW SERVERS`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::console::table::{Column, Value, int, row, text};
use crate::console::time::{ago, moment};
use crate::console::view::{View, database_of};
use crate::console::{OWN_DATABASE, client_id};
use crate::pool::Doing;
use crate::server::SocketFacts;
use crate::session::handle::ClientFacts;
use crate::shared::Shared;

pub(super) const COLUMNS: &[Column] = &[
    text("type"),
    text("user"),
    text("database"),
    text("replication"),
    text("state"),
    text("addr"),
    int("port"),
    text("local_addr"),
    int("local_port"),
    text("connect_time"),
    text("request_time"),
    int("wait"),
    int("wait_us"),
    int("close_needed"),
    text("ptr"),
    text("link"),
    int("remote_pid"),
    text("tls"),
    text("application_name"),
    int("prepared_statements"),
    int("id"),
];

/// What is known of one end, in the order of the columns.
struct Socket<'s> {
    kind: &'static str,
    user: String,
    database: String,
    state: &'static str,
    facts: &'s SocketFacts,
    connected: String,
    requested: String,
    waiting: Duration,
    close_needed: bool,
    ptr: String,
    link: String,
    remote_pid: u32,
    application_name: String,
    statements: u32,
    id: u64,
}

impl Socket<'_> {
    fn row(self) -> Vec<Value> {
        let address =
            |a: Option<std::net::SocketAddr>| a.map_or_else(|| "unix".to_owned(), |a| a.ip().to_string());
        let port = |a: Option<std::net::SocketAddr>| u32::from(a.map_or(0, |a| a.port()));
        row![
            self.kind,
            self.user,
            self.database,
            "none",
            self.state,
            address(self.facts.peer),
            port(self.facts.peer),
            address(self.facts.local),
            port(self.facts.local),
            self.connected,
            self.requested,
            self.waiting.as_secs(),
            self.waiting.subsec_micros(),
            self.close_needed,
            self.ptr,
            self.link,
            self.remote_pid,
            self.facts.tls.as_deref().unwrap_or_default().to_owned(),
            self.application_name,
            self.statements,
            self.id,
        ]
    }
}

/// PgBouncer shows addresses of memory here. It is enough that they are the same where it links two rows.
fn client_ptr(number: u64) -> String {
    format!("0xc{number:08x}")
}

fn server_ptr(id: u64) -> String {
    format!("0x5{id:08x}")
}

pub(super) fn clients(shared: &Shared, view: &View, tenant: Option<&str>) -> Vec<Vec<Value>> {
    let mut rows = Vec::with_capacity(view.clients.len());
    for client in &view.clients {
        let handle = &client.handle;
        if tenant.is_some_and(|id| handle.tenant().as_str() != id) {
            continue;
        }
        let Some(facts) = handle.facts.get() else { continue };
        rows.push(
            Socket {
                kind: "C",
                user: handle.who.user.clone(),
                database: client.database(),
                state: client.state(),
                facts: &facts.socket,
                connected: moment(facts.began),
                requested: ago(handle.activity().1),
                waiting: client.waiting.unwrap_or_default(),
                close_needed: false,
                ptr: client_ptr(facts.session),
                link: client.server.as_ref().map(|server| server_ptr(server.id)).unwrap_or_default(),
                remote_pid: 0,
                application_name: facts.application_name.to_string(),
                statements: handle.statements(),
                id: client_id(facts.session).into(),
            }
            .row(),
        );
    }
    if tenant.is_none() {
        rows.extend(own(shared));
    }
    rows
}

/// Sessions of the console itself.
fn own(shared: &Shared) -> Vec<Vec<Value>> {
    let mut sessions: Vec<_> = shared.console.sessions.iter().map(|session| session.clone()).collect();
    sessions.sort_by_key(|session| session.facts.session);
    let row = |session: &std::sync::Arc<crate::console::ConsoleHandle>| {
        let ClientFacts { socket, began, application_name, .. } = &session.facts;
        let idle = crate::clock::seconds().saturating_sub(session.last.load(Ordering::Relaxed));
        Socket {
            kind: "C",
            user: session.user.clone(),
            database: OWN_DATABASE.to_owned(),
            state: "active",
            facts: socket,
            connected: moment(*began),
            requested: ago(idle),
            waiting: Duration::ZERO,
            close_needed: false,
            ptr: client_ptr(session.facts.session),
            link: String::new(),
            remote_pid: 0,
            application_name: application_name.to_string(),
            statements: 0,
            id: client_id(session.facts.session).into(),
        }
        .row()
    };
    sessions.iter().map(row).collect()
}

pub(super) fn servers(view: &View, tenant: Option<&str>) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    for (pool, look) in &view.pools {
        let mut servers: Vec<_> = look.servers.iter().collect();
        servers.sort_by_key(|(server, _)| server.id);
        for (server, doing) in servers {
            let client = view.client(server.holder()).filter(|_| *doing == Doing::Lent);
            if tenant.is_some_and(|id| client.is_none_or(|client| client.handle.tenant().as_str() != id)) {
                continue;
            }
            let facts = client.and_then(|client| client.handle.facts.get());
            let age = server.made.elapsed().as_secs() as u32;
            rows.push(
                Socket {
                    kind: "S",
                    user: server.role.clone(),
                    database: database_of(pool),
                    state: match doing {
                        Doing::Lent => "active",
                        Doing::Idle => "idle",
                        Doing::Unchecked => "used",
                        Doing::Tested => "tested",
                        Doing::BeingCanceled => "being_canceled",
                    },
                    facts: &server.socket,
                    connected: ago(age),
                    requested: ago(server.seconds_since_lent()),
                    waiting: Duration::ZERO,
                    close_needed: look.wants_closed(server),
                    ptr: server_ptr(server.id),
                    link: client.map(|client| client_ptr(client.handle.number())).unwrap_or_default(),
                    remote_pid: server.pid,
                    application_name: facts.map(|f| f.application_name.to_string()).unwrap_or_default(),
                    statements: server.statements(),
                    id: server.id,
                }
                .row(),
            );
        }
    }
    rows
}
