//! The console: databases that are none, for operators and their tools.

mod acts;
mod hostile;
mod logins;
mod own;
mod pauses;
mod roles;
mod shutdown;
mod tables;
mod tools;

use switchyard_tests::setup::user_toml;
use switchyard_tests::{Raw, Running, Setup};

/// The password of all users of the console.
const PASSWORD: &str = "console-secret";

/// Users of each role, which are called by it.
fn users() -> String {
    ["viewer", "operator", "admin"]
        .map(|role| user_toml(role, PASSWORD, &format!("console = \"{role}\"")))
        .join("\n")
}

/// One shard of two tenants.
fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"]).section(&users())
}

/// A session of the console.
#[track_caller]
fn console(s: &Running, user: &str) -> Raw {
    s.plain_target(user, PASSWORD).database("switchyard").connect()
}

/// The names of columns and their type oids.
fn columns(description: &switchyard_tests::raw::Message) -> Vec<(String, u32)> {
    let mut rest = &description.body[2..];
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == 0).expect("a name has an end");
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let oid = u32::from_be_bytes(rest[end + 7..end + 11].try_into().expect("four bytes"));
        columns.push((name, oid));
        rest = &rest[end + 19..];
    }
    columns
}

/// The rows of a SHOW, with the names of their columns.
#[track_caller]
fn named_rows(console: &mut Raw, sql: &str) -> Vec<std::collections::HashMap<String, String>> {
    let messages = console.round(&switchyard_tests::raw::messages::query(sql));
    let description =
        messages.iter().find(|m| m.tag == b'T').unwrap_or_else(|| panic!("{sql}: {messages:?}"));
    let names = columns(description);
    let rows = messages.iter().filter(|m| m.tag == b'D').map(|row| {
        let values = row.values().into_iter().map(Option::unwrap_or_default);
        names.iter().map(|(name, _)| name.clone()).zip(values).collect()
    });
    rows.collect()
}
