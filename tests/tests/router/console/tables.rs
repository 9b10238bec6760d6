//! The tables that tools depend on: exactly PgBouncer's columns, in its order, of its types.

use switchyard_tests::Raw;
use switchyard_tests::raw::messages::{self as m, Message};

use super::{columns, console, named_rows, setup};

/// As PgBouncer 1.25.2 describes them: `s` text, `i` int4, `q` int8, `N` numeric (`pktbuf_write_RowDescription` in
/// its `src/admin.c` and `src/stats.c`).
const TABLES: &[(&str, &str, &str)] = &[
    (
        "STATS",
        "sNNNNNNNNNNNNNNNNNNNNNNNN",
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count
         total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count
         avg_recv avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count
         avg_server_parse_count avg_bind_count avg_client_login_count",
    ),
    (
        "STATS_TOTALS",
        "sNNNNNNNNNNNN",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time
         wait_time client_parse_count server_parse_count bind_count client_login_count",
    ),
    (
        "STATS_AVERAGES",
        "sNNNNNNNNNNNN",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time
         wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count",
    ),
    ("TOTALS", "sN", "name value"),
    (
        "POOLS",
        "ssiiiiiiiiiiiiiss",
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel
         sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    ),
    (
        "CLIENTS",
        "ssssssisissiiississii",
        "type user database replication state addr port local_addr local_port connect_time request_time wait
         wait_us close_needed ptr link remote_pid tls application_name prepared_statements id",
    ),
    (
        "SERVERS",
        "ssssssisissiiississii",
        "type user database replication state addr port local_addr local_port connect_time request_time wait
         wait_us close_needed ptr link remote_pid tls application_name prepared_statements id",
    ),
    (
        "DATABASES",
        "ssissiiiissiiiiii",
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode
         load_balance_hosts max_connections current_connections max_client_connections
         current_client_connections paused disabled",
    ),
    (
        "USERS",
        "ssssiiii",
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections
         max_user_client_connections current_client_connections",
    ),
    ("LISTS", "si", "list items"),
    ("CONFIG", "ssss", "key value default changeable"),
    ("PEERS", "isii", "peer_id host port pool_size"),
    ("PEER_POOLS", "iiiii", "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login"),
    ("MEM", "siiii", "name size used free memtotal"),
    ("DNS_HOSTS", "sqs", "hostname ttl addrs"),
    ("DNS_ZONES", "sqi", "zonename serial count"),
    ("STATE", "ss", "key value"),
    ("VERSION", "s", "version"),
];

fn expected(types: &str, names: &str) -> Vec<(String, u32)> {
    let oid = |kind| match kind {
        's' => 25,
        'i' => 23,
        'q' => 20,
        'N' => 1700,
        other => panic!("no type {other}"),
    };
    let names: Vec<_> = names.split_whitespace().collect();
    assert_eq!(names.len(), types.len(), "{names:?}");
    names.into_iter().map(str::to_owned).zip(types.chars().map(oid)).collect()
}

fn of(messages: &[Message], tag: u8) -> Vec<&Message> {
    messages.iter().filter(|m| m.tag == tag).collect()
}

#[test]
fn columns_are_those_of_pgbouncer_in_both_protocols() {
    let s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    for database in ["switchyard", "pgbouncer"] {
        let mut console = s.plain_target("viewer", super::PASSWORD).database(database).connect();
        for (name, types, names) in TABLES {
            let expected = expected(types, names);
            for sql in
                [format!("SHOW {name}"), format!("show {};", name.to_lowercase()), format!("SELECT {name}")]
            {
                let simple = console.round(&m::query(&sql));
                assert_eq!(columns(of(&simple, b'T')[0]), expected, "{sql}");
                assert_eq!(of(&simple, b'C')[0].text(), "SHOW", "{sql}");
                let described = [m::parse("", &sql), m::describe(b'S', ""), m::bind("", "", &[])];
                let run = [m::describe(b'P', ""), m::execute("", 0), m::sync()];
                let extended = console.round(&[described.concat(), run.concat()].concat());
                let tags: Vec<u8> = extended.iter().map(|m| m.tag).filter(|tag| *tag != b'D').collect();
                assert_eq!(tags, b"1tT2TCZ", "{sql}");
                for description in of(&extended, b'T') {
                    assert_eq!(columns(description), expected, "{sql}");
                }
                assert!(of(&simple, b'D').iter().all(|row| row.values().len() == expected.len()), "{sql}");
                assert_eq!(of(&simple, b'D').len(), of(&extended, b'D').len(), "{sql}");
            }
        }
    }
}

/// `Bind` of the unnamed statement that asks for binary results.
fn bind_binary() -> Vec<u8> {
    m::frame(b'B', &[0, 0, 0, 0, 0, 0, 0, 1, 0, 1])
}

/// The values of a row as they stand in it.
type RawRow = Vec<Option<Vec<u8>>>;

/// Reads them.
fn raw_values(row: &Message) -> RawRow {
    let mut rest = &row.body[2..];
    let mut values = Vec::new();
    while !rest.is_empty() {
        let len = i32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
        rest = &rest[4..];
        values.push(usize::try_from(len).ok().map(|len| rest[..len].to_vec()));
        rest = &rest[usize::try_from(len).unwrap_or(0)..];
    }
    values
}

fn binary(console: &mut Raw, sql: &str) -> (Vec<(String, u32)>, Vec<RawRow>) {
    let messages = [m::parse("", sql), bind_binary(), m::describe(b'P', ""), m::execute("", 0), m::sync()];
    let messages = console.round(&messages.concat());
    let description = of(&messages, b'T')[0];
    assert!(description.body.ends_with(&[0, 1]), "{sql}: not binary");
    (columns(description), of(&messages, b'D').into_iter().map(raw_values).collect())
}

/// What a binary value says, as text.
fn read(oid: u32, value: &[u8]) -> String {
    match oid {
        25 => String::from_utf8(value.to_vec()).expect("UTF-8"),
        23 => i32::from_be_bytes(value.try_into().expect("four bytes")).to_string(),
        20 => i64::from_be_bytes(value.try_into().expect("eight bytes")).to_string(),
        _ => {
            let word = |at: usize| u16::from_be_bytes([value[2 * at], value[2 * at + 1]]);
            assert_eq!((word(2), word(3)), (0, 0), "sign and scale");
            let digits = (0..usize::from(word(0))).map(|i| u64::from(word(4 + i)));
            let number = digits.fold(0, |number, digit| number * 10_000 + digit);
            let zeros = (word(1) + 1).saturating_sub(word(0));
            (number * 10_000_u64.pow(zeros.into())).to_string()
        }
    }
}

#[test]
fn binary_values_say_the_same_as_text() {
    let s = setup().start();
    let mut acme = s.login("acme");
    for _ in 0..20 {
        acme.rows("SELECT repeat('x', 1000)");
    }
    drop(acme);
    let mut console = console(&s, "viewer");
    // Of these nothing changes from one look to the next.
    for name in ["DATABASES", "CONFIG", "LISTS", "VERSION", "LIMITS", "TENANTS", "STATE"] {
        let sql = format!("SHOW {name}");
        let text = console.rows(&sql);
        let (columns, rows) = binary(&mut console, &sql);
        let rows: Vec<Vec<_>> = rows
            .iter()
            .map(|row| {
                row.iter().zip(&columns).map(|(v, (_, oid))| v.as_ref().map(|v| read(*oid, v))).collect()
            })
            .collect();
        assert_eq!(rows, text, "{sql}");
    }
}

#[test]
fn figures_are_those_of_what_happened() {
    let s = setup().start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    for _ in 0..10 {
        acme.rows("SELECT 1");
    }
    globex.rows("BEGIN; SELECT 1");
    acme.round(&[m::parse("s", "SELECT 1"), m::sync()].concat());
    acme.round(&[m::bind("", "s", &[]), m::execute("", 0), m::sync()].concat());
    let mut console = console(&s, "viewer");
    let find = |rows: Vec<std::collections::HashMap<String, String>>, key: &str, value: &str| {
        rows.into_iter().find(|row| row[key] == value).unwrap_or_else(|| panic!("no row of {value}"))
    };
    let stats = find(named_rows(&mut console, "SHOW STATS"), "database", "crm@s0");
    let number = |name: &str| stats[name].parse::<u64>().unwrap();
    // Preparing is a transaction as well.
    assert_eq!(number("total_xact_count"), 12, "{stats:?}");
    assert_eq!(number("total_query_count"), 12, "{stats:?}");
    assert_eq!(number("total_server_assignment_count"), 13, "{stats:?}");
    assert_eq!(number("total_client_login_count"), 2);
    assert_eq!((number("total_client_parse_count"), number("total_bind_count")), (1, 1));
    assert!(number("total_received") > 200 && number("total_sent") > 200 && number("total_xact_time") > 0);
    let own = find(named_rows(&mut console, "SHOW STATS"), "database", "pgbouncer");
    assert_eq!(own["total_client_login_count"], "1");
    assert!(own["total_xact_count"].parse::<u64>().unwrap() >= 1);

    let pools = named_rows(&mut console, "SHOW POOLS");
    let sum = |name: &str| pools.iter().map(|row| row[name].parse::<u64>().unwrap()).sum::<u64>();
    let row = find(pools.clone(), "user", "app");
    assert_eq!((row["database"].as_str(), row["cl_active"].as_str()), ("crm@s0", "2"));
    assert_eq!((sum("sv_active"), sum("cl_waiting")), (1, 0));
    assert!(sum("sv_idle") >= 1, "{pools:?}");
    let clients = named_rows(&mut console, "SHOW CLIENTS");
    let states: Vec<_> = clients.iter().map(|row| (row["user"].as_str(), row["state"].as_str())).collect();
    assert_eq!(states, [("app", "idle"), ("app", "active"), ("viewer", "active")]);
    let servers = named_rows(&mut console, "SHOW SERVERS");
    let linked: Vec<_> = servers.iter().filter(|row| row["state"] == "active").collect();
    assert_eq!(linked.len(), 1);
    assert_eq!(linked[0]["link"], clients[1]["ptr"]);
    assert_eq!(clients[1]["link"], linked[0]["ptr"]);
    assert_eq!(linked[0]["remote_pid"], globex.value("SELECT pg_backend_pid()"));
    assert_eq!(clients[0]["prepared_statements"], "1");
    assert_eq!(clients[0]["addr"], "127.0.0.1");
    let time = &clients[0]["connect_time"];
    assert!(time.ends_with(" UTC") && time.len() == "2026-11-20 21:14:53 UTC".len(), "{time}");
    let database = find(named_rows(&mut console, "SHOW DATABASES"), "name", "crm@s0");
    assert_eq!((database["pool_size"].as_str(), database["current_client_connections"].as_str()), ("2", "2"));
    let users = find(named_rows(&mut console, "SHOW USERS"), "name", "app");
    assert_eq!(
        (users["current_client_connections"].as_str(), users["current_connections"].as_str()),
        ("2", "1")
    );
}

#[test]
fn the_configuration_is_shown_the_same_each_time_and_without_secrets() {
    let mut s = setup().start();
    let mut viewer = console(&s, "viewer");
    let first = viewer.rows("SHOW CONFIG");
    let keys: Vec<_> = first.iter().map(|row| row[0].clone().unwrap()).collect();
    assert!(keys.is_sorted(), "{keys:?}");
    s.login("acme").rows("SELECT 1");
    s.router.reload_files();
    assert_eq!(viewer.rows("SHOW CONFIG"), first);
    let value = |rows: &[Vec<Option<String>>], key: &str| {
        let row = rows.iter().find(|row| row[0].as_deref() == Some(key));
        row.unwrap_or_else(|| panic!("no {key}"))[1].clone().unwrap()
    };
    assert_eq!(value(&first, "max_client_conn"), "10000");
    assert_eq!(value(&first, "max_user_connections"), "0");
    for sql in ["SHOW CONFIG", "SHOW LIMITS", "SHOW SHARDS", "SHOW DATABASES", "SHOW USERS", "SHOW SERVERS"] {
        let all = format!("{:?}", viewer.rows(sql));
        for secret in [switchyard_tests::cluster::APP_PASSWORD, super::PASSWORD, "SCRAM-SHA-256"] {
            assert!(!all.contains(secret), "{sql} shows {secret}");
        }
    }
    assert!(s.reload(|toml| format!("{toml}\n[limits]\nclients = 77\n")));
    let changed = viewer.rows("SHOW CONFIG");
    assert_eq!(value(&changed, "max_client_conn"), "77");
}

#[test]
fn averages_are_of_the_last_period() {
    let s = setup().section("[console]\nstats_period = \"1s\"").start();
    let mut acme = s.login("acme");
    let mut console = console(&s, "viewer");
    switchyard_tests::wait::until_true("a period with queries in it", || {
        acme.rows("SELECT 1");
        let rows = named_rows(&mut console, "SHOW STATS");
        let row = rows.iter().find(|row| row["database"] == "crm@s0");
        row.is_some_and(|row| row["avg_query_count"] != "0" && row["avg_xact_time"] != "0")
    });
}
