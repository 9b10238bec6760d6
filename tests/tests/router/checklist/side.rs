//! The two sides that are compared, and what is read from them.

use std::sync::Arc;

use rustls::ClientConfig;
use switchyard_tests::raw::differential::{Step, normal, play};
use switchyard_tests::raw::{Message, Raw, Target, messages as m, scram_verifier};
use switchyard_tests::{Running, Setup};

/// The user of both sides.
pub(super) const USER: &str = "alice";
/// Its password.
pub(super) const PASSWORD: &str = "wonder-land";
/// A user whose password is not ASCII.
pub(super) const OTHER_USER: &str = "zoë";
/// Its password, in which SASLprep has something to do: a soft hyphen, a ligature, a wide space.
pub(super) const OTHER_PASSWORD: &str = "pa\u{ad}ß ﬁn\u{3000}é";

/// PostgreSQL, or the router.
pub(super) struct Side {
    tcp: Target,
    unix: Target,
    tls: Arc<ClientConfig>,
}

impl Side {
    /// A connection on which nothing has happened.
    pub(super) fn open(&self) -> Raw {
        self.tcp.open().expect("it listens")
    }

    /// The same over the unix socket.
    pub(super) fn open_unix(&self) -> Raw {
        self.unix.open().expect("it listens")
    }

    /// Begins TLS.
    pub(super) fn upgrade(&self, raw: Raw) -> Raw {
        raw.upgrade(&self.tls, "localhost").expect("the handshake")
    }

    /// A connection under TLS.
    pub(super) fn open_tls(&self) -> Raw {
        let mut raw = self.open();
        raw.send(&m::ssl_request());
        assert_eq!(raw.byte().expect("an answer"), b'S');
        self.upgrade(raw)
    }

    /// Where `alice` logs in.
    pub(super) fn target(&self) -> Target {
        self.tcp.clone().user(USER).password(PASSWORD).database("crm")
    }

    /// A session of `alice`.
    #[track_caller]
    pub(super) fn login(&self) -> Raw {
        self.target().connect()
    }
}

/// A server and a router in front of it.
pub(super) struct Pair {
    pub(super) direct: Side,
    pub(super) routed: Side,
    running: Running,
}

/// All that cases are played on.
pub(super) struct Stand {
    plain: Pair,
    tls: Pair,
}

impl Stand {
    pub(super) fn start() -> Self {
        std::thread::scope(|scope| {
            let tls = scope.spawn(|| Pair::start(true));
            Self { plain: Pair::start(false), tls: tls.join().expect("it starts") }
        })
    }

    pub(super) fn pair(&self, tls: bool) -> &Pair {
        if tls { &self.tls } else { &self.plain }
    }

    /// After all that was done to the router, others are served.
    pub(super) fn still_good(&self) {
        for pair in [&self.plain, &self.tls] {
            let s = &pair.running;
            assert_eq!(
                s.login("globex").column("SELECT name FROM clients ORDER BY id"),
                s.canaries("globex")
            );
        }
    }
}

impl Pair {
    fn start(tls: bool) -> Self {
        let mut setup = Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 3");
        for (user, password) in [(USER, PASSWORD), (OTHER_USER, OTHER_PASSWORD)] {
            let verifier = scram_verifier(password);
            setup = setup
                .sql(&format!("CREATE ROLE \"{user}\" LOGIN PASSWORD '{verifier}' IN ROLE app"))
                .sql(&format!("ALTER ROLE \"{user}\" SET app.tenant_id = 'acme'"))
                .section(&format!(
                    "[[users]]\nname = \"{user}\"\nverifier = \"{verifier}\"\ntenant = \"acme\"\n\
                     server_user = \"{user}\"\nserver_password = \"{password}\"\n"
                ));
        }
        if tls {
            setup = setup.tls("allow").shard_tls("require");
        }
        let running = setup.start();
        let config = running.certs.client(None);
        let shard = &running.shards[0];
        let socket = shard.socket_dir().join(format!(".s.PGSQL.{}", shard.port()));
        let direct =
            Side { tcp: Target::tcp(shard.address()), unix: Target::unix(socket), tls: config.clone() };
        let (tcp, unix) = (running.router.target(), running.router.unix_target());
        let routed = Side { tcp, unix, tls: config };
        Self { direct, routed, running }
    }
}

/// Shows all that comes up to and with ReadyForQuery, or to the end of the connection.
pub(super) fn listen(raw: &mut Raw) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match raw.try_read() {
            Ok(message) => {
                let last = message.tag == b'Z';
                seen.extend(show(&message));
                if last {
                    return seen;
                }
            }
            Err(error) => {
                assert!(!is_timeout(&error), "silence after {seen:?}");
                seen.push("the end".to_owned());
                return seen;
            }
        }
    }
}

/// Shows what comes as it is, to the end of the connection.
pub(super) fn bytes_to_the_end(raw: &mut Raw) -> Vec<String> {
    let mut bytes = Vec::new();
    loop {
        match raw.byte() {
            Ok(byte) => bytes.push(byte),
            Err(error) => {
                assert!(!is_timeout(&error), "silence after {}", bytes.escape_ascii());
                return vec![bytes.escape_ascii().to_string(), "the end".to_owned()];
            }
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// A message as it is compared, with those of a login, in which much is random.
fn show(message: &Message) -> Option<String> {
    match (message.tag, message.body.get(..4)) {
        (b'R', Some([0, 0, 0, kind @ (11 | 12)])) => {
            let text = String::from_utf8_lossy(&message.body[4..]).into_owned();
            let parts: Vec<_> = text
                .split(',')
                .map(|part| match part.split_once('=') {
                    Some(("i", count)) => format!("i={count}"),
                    Some((name, value)) => format!("{name}={} bytes", value.len()),
                    None => part.to_owned(),
                })
                .collect();
            Some(format!("R {kind} {}", parts.join(",")))
        }
        (b'K', _) => Some(format!("K {} bytes", message.body.len())),
        (b'S', _) => None,
        _ => normal(message),
    }
}

/// What the server has reported of its parameters, in the order of their names.
pub(super) fn parameters(raw: &Raw) -> Vec<String> {
    let mut all: Vec<_> = raw.parameters().iter().map(|(n, v)| format!("S {n}={v}")).collect();
    all.sort();
    all
}

/// A script on a session of `alice`, and what the server has reported at its end.
pub(super) fn session(script: Vec<Step>) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut raw = side.login();
        let mut seen = play(&mut raw, &script);
        seen.extend(parameters(&raw));
        seen
    }
}

/// Simple queries, one after the other.
pub(super) fn queries(sql: &[&str]) -> Vec<Step> {
    sql.iter().flat_map(|sql| [Step::Send(m::query(sql)), Step::Ready(1)]).collect()
}
