//! L: how sessions end.

use switchyard_tests::raw::messages as m;

use super::Case;
use super::side::{Side, listen, session};

/// A session whose server process is terminated as it sleeps.
fn killed(before: &'static str) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut session = side.login();
        let mut other = side.login();
        if !before.is_empty() {
            session.rows(before);
        }
        session.send(&m::query("SELECT pg_sleep(600) /* to be killed */"));
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
            WHERE query LIKE '%/* to be killed */%' AND wait_event = 'PgSleep'";
        switchyard_tests::wait::until_true("the query to be killed", || other.column(kill) == ["t"]);
        listen(&mut session)
    }
}

pub(super) fn cases() -> Vec<Case> {
    use switchyard_tests::raw::differential::Step;
    let goodbye = |bytes: Vec<u8>| session(vec![Step::Send(bytes), Step::Ready(1)]);
    vec![
        Case::new("L1", "Terminate", goodbye(m::frame(b'X', &[]))),
        Case::new("L1", "Terminate in a transaction", {
            goodbye([m::query("BEGIN"), m::frame(b'X', &[])].concat())
        }),
        Case::new("L1", "Terminate behind a query", {
            goodbye([m::query("SELECT 1"), m::frame(b'X', &[])].concat())
        }),
        Case::new("L2", "killed in a transaction", killed("BEGIN")),
        Case::new("L2", "killed outside a transaction", killed("")).deviates(
            "killed server",
            &["E ERROR 57P01 terminating connection due to administrator command", "Z I"],
        ),
        Case::new(
            "L3",
            "statement_timeout",
            session(super::side::queries(&[
                "SET statement_timeout = 50",
                "SELECT pg_sleep(600)",
                "SET statement_timeout = 0",
                "SELECT 1",
            ])),
        ),
        Case::new(
            "L3",
            "lock_timeout",
            session(super::side::queries(&[
                "SET lock_timeout = 50",
                "BEGIN",
                "LOCK scratch.items IN ACCESS SHARE MODE",
                "ROLLBACK",
            ])),
        ),
    ]
}
