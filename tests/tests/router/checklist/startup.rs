//! S: the first packets and what is in them.

use switchyard_tests::raw::{Raw, Refused, messages as m};

use super::Case;
use super::side::{PASSWORD, Side, USER, bytes_to_the_end, listen, parameters};

/// A startup packet of any version.
fn packet(major: u16, minor: u16, params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = [major.to_be_bytes(), minor.to_be_bytes()].concat();
    for (name, value) in params {
        body.extend(m::strings(&[name, value]));
    }
    body.push(0);
    m::packet(&body)
}

fn alice<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("user", USER), ("database", "crm")], more].concat()
}

/// Reads the answer to a startup packet; if that is a question, gives the password.
fn log_in(raw: &mut Raw, seen: &mut Vec<String>) -> bool {
    match raw.authenticate(USER, Some(PASSWORD), false) {
        Ok(()) => {
            seen.push(format!("in, with a key of {} bytes", raw.key().len()));
            seen.extend(parameters(raw));
            true
        }
        Err(Refused::Error { error, shape, .. }) => {
            let tags: String = shape.iter().map(|(tag, _)| char::from(*tag)).collect();
            seen.push(format!(
                "{tags} {} {} {} {}",
                error.severity, error.sqlstate, error.message, error.hint
            ));
            false
        }
        Err(Refused::Closed(_)) => {
            seen.push("the end".to_owned());
            false
        }
    }
}

/// A login with these parameters, and what a query says then.
fn login_with(params: &[(&str, &str)], sql: &'static str) -> impl Fn(&Side) -> Vec<String> + use<> {
    let startup = packet(3, 0, params);
    move |side| {
        let mut raw = side.open();
        raw.send(&startup);
        let mut seen = Vec::new();
        if log_in(&mut raw, &mut seen) && !sql.is_empty() {
            raw.send(&m::query(sql));
            seen.extend(listen(&mut raw));
        }
        seen
    }
}

fn closed_after(bytes: Vec<u8>) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut raw = side.open();
        raw.send(&bytes);
        raw.half_close();
        bytes_to_the_end(&mut raw)
    }
}

/// Sends packets that are answered with one byte each, then a startup packet.
fn requests(requests: Vec<Vec<u8>>, unix: bool) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut raw = if unix { side.open_unix() } else { side.open() };
        let mut seen = Vec::new();
        for request in &requests {
            raw.send(request);
            match raw.byte() {
                Ok(byte @ (b'N' | b'S' | b'G')) => seen.push(char::from(byte).to_string()),
                // An error, of which one byte is read.
                Ok(byte) => {
                    let rest = bytes_to_the_end(&mut raw);
                    seen.push(format!("{}{}", char::from(byte), text_of(&rest[0])));
                    return seen;
                }
                Err(_) => return [seen, vec!["the end".to_owned()]].concat(),
            }
        }
        raw.send(&packet(3, 0, &alice(&[])));
        if unix {
            // PostgreSQL here trusts its unix socket; the router does not.
            return seen;
        }
        log_in(&mut raw, &mut seen);
        seen
    }
}

/// The fields of an escaped error that are compared.
fn text_of(escaped: &str) -> String {
    let fields = escaped.split("\\x00").filter(|f| f.starts_with(['V', 'C', 'M']));
    fields.collect::<Vec<_>>().join(" ")
}

fn stuffed(request: Vec<u8>) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut raw = side.open();
        raw.send(&[request.clone(), packet(3, 0, &alice(&[]))].concat());
        let first = raw.byte().expect("an answer");
        let seen = if first == b'S' {
            let mut tls = side.upgrade(raw);
            text_of(&bytes_to_the_end(&mut tls)[0])
        } else {
            text_of(&bytes_to_the_end(&mut raw)[0])
        };
        vec![char::from(first).to_string(), seen]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("S1", "SSLRequest where there is no TLS", requests(vec![m::ssl_request()], false)),
        Case::new("S1", "SSLRequest twice", requests(vec![m::ssl_request(), m::ssl_request()], false))
            .deviates(
                "protocol 3.2",
                &["unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2"],
            ),
        Case::new("S1", "SSLRequest, then TLS", |side| {
            let mut raw = side.open_tls();
            raw.send(&packet(3, 0, &alice(&[])));
            let mut seen = Vec::new();
            log_in(&mut raw, &mut seen);
            seen
        })
        .tls(),
        Case::new("S1", "SSLRequest inside TLS", |side| {
            let mut raw = side.open_tls();
            raw.send(&m::ssl_request());
            listen(&mut raw)
        })
        .tls()
        .deviates("protocol 3.2", &["unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2"]),
        Case::new("S1", "SSLRequest over the unix socket", requests(vec![m::ssl_request()], true)).tls(),
        Case::new("S1", "plain text where TLS is offered", login_with(&alice(&[]), "SELECT 1")).tls(),
        Case::new("S2", "GSSENCRequest over TCP", requests(vec![m::gss_request()], false))
            .deviates("GSSAPI", &["N", "in, with"]),
        Case::new(
            "S2",
            "GSSENCRequest, SSLRequest and plain text, over the unix socket",
            requests(vec![m::gss_request(), m::ssl_request()], true),
        ),
        Case::new("S2", "GSSENCRequest twice", requests(vec![m::gss_request(), m::gss_request()], true))
            .deviates(
                "protocol 3.2",
                &["unsupported frontend protocol 1234.5680: server supports 3.0 to 3.2"],
            ),
        Case::new(
            "S2",
            "SSLRequest, then GSSENCRequest",
            requests(vec![m::ssl_request(), m::gss_request()], true),
        ),
        Case::new("S3", "bytes behind SSLRequest where TLS follows", stuffed(m::ssl_request()))
            .tls()
            .deviates("stuffed bytes", &["E", "C08P01 Mreceived unencrypted data after SSL request"]),
        Case::new("S3", "bytes behind SSLRequest where there is no TLS", {
            move |side: &Side| {
                let mut raw = side.open();
                raw.send(&[m::ssl_request(), packet(3, 0, &alice(&[]))].concat());
                let seen = bytes_to_the_end(&mut raw);
                // PostgreSQL says N first; an error it is either way.
                vec![text_of(&seen[0])]
            }
        }),
        Case::new(
            "S4",
            "a TLS handshake as the first bytes",
            closed_after(b"\x16\x03\x01\x00\xc8\x01".to_vec()),
        )
        .tls(),
    ];
    cases.extend(versions());
    cases.extend(sizes());
    cases.extend(parameters_and_options());
    cases.extend(settings());
    cases.extend(names());
    for (name, bytes) in [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("a message of the protocol", m::query("SELECT 1")),
        ("nothing", Vec::new()),
        ("one byte", vec![0]),
    ] {
        cases.push(Case::new("S13", format!("{name} in place of a startup packet"), closed_after(bytes)));
    }
    cases
}

fn versions() -> Vec<Case> {
    let version = |major, minor, more: &[(&str, &str)]| {
        let startup = packet(major, minor, &alice(more));
        move |side: &Side| {
            let mut raw = side.open();
            raw.send(&startup);
            let first = raw.try_read();
            let Ok(first) = first else { return vec!["the end".to_owned()] };
            let mut seen = vec![format!("{} {}", char::from(first.tag), first.body.escape_ascii())];
            match first.tag {
                b'v' => {
                    log_in(&mut raw, &mut seen);
                }
                b'E' => seen = vec![format!("E {} {}", first.sqlstate(), first.field(b'M'))],
                _ => {}
            }
            seen
        }
    };
    let raw = |major, minor| closed_after(packet(major, minor, &alice(&[])));
    let granted = "v \\x00\\x03\\x00\\x02";
    vec![
        Case::new("S5", "3.0", version(3, 0, &[])),
        Case::new("S5", "3.1, which there never was", version(3, 1, &[])),
        Case::new("S5", "3.2", version(3, 2, &[])).deviates("protocol 3.2", &["R "]),
        Case::new("S5", "3.3", version(3, 3, &[]))
            .deviates("protocol 3.2", &[granted, "in, with a key of 36 bytes"]),
        Case::new("S5", "3.9999 with an option nobody knows", version(3, 9999, &[("_pq_.grease", "")]))
            .deviates("protocol 3.2", &[granted, "in, with a key of 36 bytes"]),
        Case::new("S5", "3.0 with options nobody knows", version(3, 0, &[("_pq_.a", "1"), ("_pq_.b", "2")])),
        Case::new("S5", "2.0", raw(2, 0)).deviates(
            "protocol 3.2",
            &["EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2"],
        ),
        Case::new("S5", "1.0", raw(1, 0))
            .deviates("protocol 3.2", &["EFATAL:  unsupported frontend protocol 1.0"]),
        Case::new("S5", "4.0", version(4, 0, &[])).deviates(
            "protocol 3.2",
            &["E 0A000 unsupported frontend protocol 4.0: server supports 3.0 to 3.2"],
        ),
        Case::new("S5", "0.0", version(0, 0, &[]))
            .deviates("protocol 3.2", &["E 0A000 unsupported frontend protocol 0.0"]),
        Case::new("S6", "a key of 4 bytes for a client of 3.0", |side| {
            vec![format!("{} bytes", side.login().key().len())]
        }),
    ]
}

fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for length in [0_u32, 3, 4, 7, 10_005, 1 << 31, u32::MAX] {
        let bytes = length.to_be_bytes().to_vec();
        cases.push(Case::new("S7", format!("a length of {length}"), closed_after(bytes)));
    }
    // 10 000 bytes behind the length is the most.
    let filled = |len: usize| {
        let bare = packet(3, 0, &alice(&[("application_name", "")])).len();
        let name = "n".repeat(len - bare);
        let bytes = packet(3, 0, &alice(&[("application_name", &name)]));
        assert_eq!(bytes.len(), len);
        move |side: &Side| {
            let mut raw = side.open();
            raw.send(&bytes);
            let mut seen = Vec::new();
            match raw.try_read() {
                Ok(message) => {
                    seen.push(format!("{} {}", char::from(message.tag), message.body.escape_ascii()))
                }
                Err(_) => seen.push("the end".to_owned()),
            }
            seen
        }
    };
    cases.push(Case::new("S7", "the largest packet", filled(10_004)));
    cases.push(Case::new("S7", "one byte more", filled(10_005)));
    for (name, body) in [
        ("no terminator", m::strings(&["user", USER])),
        ("a name without a value", [m::strings(&["user", USER, "database"]), vec![0]].concat()),
        ("a name that does not end", b"user".to_vec()),
        ("a value that does not end", b"user\0ali".to_vec()),
        ("something behind the terminator", [m::strings(&["user", USER]), vec![0, b'x']].concat()),
        ("another terminator", [m::strings(&["user", USER]), vec![0, 0]].concat()),
        ("nothing at all", Vec::new()),
    ] {
        let bytes = m::packet(&[&[0, 3, 0, 0][..], &body].concat());
        cases.push(Case::new("S7", name, move |side| {
            let mut raw = side.open();
            raw.send(&bytes);
            raw.half_close();
            listen(&mut raw)
        }));
    }
    cases.push(Case::new("S7", "one byte in each segment", |side| {
        let mut raw = side.open();
        for byte in packet(3, 0, &alice(&[])) {
            raw.send(&[byte]);
        }
        let mut seen = Vec::new();
        log_in(&mut raw, &mut seen);
        seen
    }));
    cases
}

fn parameters_and_options() -> Vec<Case> {
    let login = |name: &str, params: &[(&str, &str)], sql| Case::new("S8", name, login_with(params, sql));
    let mut cases = vec![
        login("no user", &[("database", "crm")], ""),
        login("an empty user", &[("user", ""), ("database", "crm")], ""),
        login("user twice", &[("user", "bob"), ("user", USER), ("database", "crm")], "SELECT current_user"),
        login("user twice, the other way", &[("user", USER), ("user", "bob"), ("database", "crm")], ""),
        login("USER is no user", &[("USER", USER), ("database", "crm")], ""),
        login(
            "database twice",
            &[("user", USER), ("database", "nowhere"), ("database", "crm")],
            "SELECT current_database()",
        ),
        login("an unknown database", &[("user", USER), ("database", "nowhere")], "SELECT current_database()")
            .deviates("database name", &["in, with", "crm"]),
        login("no database", &[("user", USER)], "SELECT current_database()")
            .deviates("database name", &["in, with", "crm"]),
        login("replication = off", &alice(&[("replication", "off")]), "SELECT 1"),
        login("replication = nonsense", &alice(&[("replication", "nonsense")]), ""),
        login("replication = true", &alice(&[("replication", "true")]), "")
            .deviates("replication", &["0A000"]),
        login("replication = database", &alice(&[("replication", "database")]), "")
            .deviates("replication", &["0A000"]),
        login("a name that is not UTF-8", &alice(&[]), ""),
    ];
    cases.pop();
    cases.push(
        Case::new("S8", "a user that is not UTF-8", |side| {
            let mut raw = side.open();
            raw.send(&m::packet(b"\0\x03\0\0user\0al\xffce\0\0"));
            let mut seen = listen_to_refusal(&mut raw);
            seen.truncate(1);
            seen
        })
        .deviates("bytes that are not UTF-8", &["22021"]),
    );
    for options in [
        "-c work_mem=5MB",
        "-cwork_mem=5MB",
        "--work_mem=5MB",
        "--work-mem=5MB",
        "-c work-mem=5MB",
        "-c work_mem=5MB -c work_mem=6MB",
        "  -c   work_mem=5MB  ",
        "-c\twork_mem=5MB\n",
        "-c work_mem=5MB --application-name=x",
        "-c application_name=a\\ b",
        "-c application_name=a\\\\b",
        "-c application_name=-c",
        "-c application_name=a=b=c",
        "-c application_name=\"quoted\"",
        "-c application_name=",
        "-S 512",
        "-e",
        "-c",
        "-c work_mem",
        "-c =5",
        "-c ",
        "--",
        "-- x",
        "-",
        "x",
        "work_mem=5MB",
        "-Z",
        "-q",
        "--work_mem",
        "-c work_mem=nonsense",
        "-c no_such_setting=1",
        "-c no.such=1",
        "-c no..such=1",
        "-c shared_buffers=1",
        "-d 1",
        "-B 100",
        "-p 1234",
        "-F",
        "-O",
        "-f s",
        "-f z",
        "-t pa",
        "-t z",
        "-E",
        "-b",
        "-n",
        "-D /tmp",
        "-r x",
        "-N 3",
        "-l",
        "-s",
        "",
    ] {
        let params = alice(&[("options", options)]);
        let sql = "SELECT current_setting('work_mem'), current_setting('application_name'), current_setting('datestyle')";
        cases.push(login(&format!("options = {options:?}"), &params, sql));
    }
    let params = alice(&[("options", "-W 0")]);
    cases.push(login("options = \"-W 0\"", &params, "").deviates("startup-only settings", &["55P02"]));
    cases
}

fn listen_to_refusal(raw: &mut Raw) -> Vec<String> {
    match raw.try_read() {
        Ok(message) if message.tag == b'E' => {
            vec![format!("E {} {}", message.sqlstate(), message.field(b'M'))]
        }
        Ok(message) => vec![format!("{} {}", char::from(message.tag), message.body.escape_ascii())],
        Err(_) => vec!["the end".to_owned()],
    }
}

/// Settings at startup: name, value, and whether PostgreSQL takes them there only.
const SETTINGS: &[(&str, &str, bool)] = &[
    ("extra_float_digits", "3", false),
    ("statement_timeout", "12345", false),
    ("lock_timeout", "1min", false),
    ("search_path", "scratch, public", false),
    ("search_path", "\"$user\", \"odd\"\"name\"", false),
    ("DateStyle", "SQL, DMY", false),
    ("datestyle", "German", false),
    ("TimeZone", "Asia/Tokyo", false),
    ("timezone", "-03:30", false),
    ("IntervalStyle", "iso_8601", false),
    ("client_encoding", "LATIN1", false),
    ("client_encoding", "utf-8", false),
    ("client_encoding", "nonsense", false),
    ("standard_conforming_strings", "off", false),
    ("bytea_output", "escape", false),
    ("default_transaction_read_only", "on", false),
    ("default_transaction_isolation", "serializable", false),
    ("idle_in_transaction_session_timeout", "60000", false),
    ("geqo", "off", false),
    ("GEQO", "on", false),
    ("my.own", "x", false),
    ("my.own", "it's \\ \"odd\"", false),
    ("my.own", "", false),
    ("work_mem", "nonsense", false),
    ("work_mem", "1", false),
    ("geqo", "perhaps", false),
    ("TimeZone", "Mars/Olympus", false),
    ("DateStyle", "nonsense", false),
    ("no_such_setting", "1", false),
    ("", "1", false),
    ("shared_buffers", "1MB", false),
    ("max_connections", "5", false),
    ("log_statement", "all", false),
    ("log_min_duration_statement", "0", false),
    ("session_replication_role", "replica", false),
    ("server_version", "9", false),
    ("is_superuser", "on", false),
    ("lc_messages", "C", false),
    ("role", "app", false),
    ("role", "super", false),
    ("session_authorization", "app", false),
    ("ignore_system_indexes", "on", true),
    ("post_auth_delay", "0", true),
];

fn settings() -> Vec<Case> {
    let mut cases = Vec::new();
    for &(name, value, only_at_startup) in SETTINGS {
        let sql = "SELECT current_setting('search_path'), current_setting('statement_timeout'), \
            current_setting('extra_float_digits'), current_setting('geqo'), current_setting('my.own', true), \
            current_setting('lock_timeout'), current_setting('role'), current_user, session_user, \
            current_setting('bytea_output'), current_setting('default_transaction_read_only')";
        let case = Case::new("S9", format!("{name} = {value}"), login_with(&alice(&[(name, value)]), sql));
        cases.push(match only_at_startup {
            true => case.deviates("startup-only settings", &["55P02"]),
            false => case,
        });
    }
    cases.push(Case::new("S9", "a setting in options and on its own", {
        login_with(&alice(&[("work_mem", "5MB"), ("options", "-c work_mem=6MB")]), "SHOW work_mem")
    }));
    cases.push(Case::new("S9", "a setting twice, in two spellings", {
        login_with(&alice(&[("WORK_MEM", "5MB"), ("work_mem", "6MB")]), "SHOW work_mem")
    }));
    cases.push(Case::new("S9", "a bad setting, and a wrong password", |side| {
        let target = side.target().param("work_mem", "nonsense").password("wrong");
        vec![target.refused().sqlstate().to_owned()]
    }));
    cases.push(Case::new("S10", "what is reported at login", |side| parameters(&side.login())));
    cases.push(
        Case::new("S10", "what is reported at login under TLS", |side| {
            let mut raw = side.open_tls();
            raw.send(&packet(3, 0, &alice(&[])));
            let mut seen = Vec::new();
            log_in(&mut raw, &mut seen);
            seen
        })
        .tls(),
    );
    cases
}

fn names() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, name) in [
        ("a plain name", "psql".to_owned()),
        ("63 bytes", "n".repeat(63)),
        ("64 bytes", "n".repeat(64)),
        ("150 bytes", "n".repeat(150)),
        ("5000 bytes", "n".repeat(5000)),
        ("nothing", String::new()),
        ("not ASCII", "zürich ☃".to_owned()),
        ("not ASCII, cut", "☃".repeat(40)),
        ("control characters", "a\tb\nc\x1b[31md".to_owned()),
        ("quotes", "it's \"a\" \\name\\".to_owned()),
    ] {
        let params = alice(&[("application_name", &name)]);
        cases.push(Case::new("S11", format!("application_name: {what}"), {
            login_with(&params, "SELECT current_setting('application_name'), application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        }));
        // Of another letter than the name before it, which may have been set on the same connection.
        let set = format!("SET application_name = '{}{}'", name.len() % 10, name.replace('\'', "''"));
        cases.push(Case::new("S11", format!("SET application_name: {what}"), move |side| {
            let mut raw = side.login();
            raw.send(&m::query(&set));
            let mut seen = listen(&mut raw);
            seen.extend(parameters(&raw));
            raw.send(&m::query("SHOW application_name"));
            seen.extend(listen(&mut raw));
            seen
        }));
    }
    cases
}
