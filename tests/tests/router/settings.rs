//! Settings of sessions that share connections: each has its own, and nobody else's.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Dice, Raw, Running, Setup};

const NOTE: &str = "SELECT coalesce(current_setting('my.note', true), '')";

/// Runs one statement by either protocol; whether it failed.
fn say(raw: &mut Raw, dice: &mut Dice, sql: &str) -> bool {
    let bytes = if dice.roll(2) == 0 { m::query(sql) } else { m::extended(sql, &[]) };
    raw.round(&bytes).iter().any(|m| m.tag == b'E')
}

/// One session that sets, resets, commits and rolls back, and knows what it must see.
fn session(s: &Running, dice: &mut Dice, tenant: &str, mark: &str) {
    let mut raw = s.login(tenant);
    let (mut kept, mut now, mut in_transaction, mut failed) = (String::new(), String::new(), false, false);
    let mut story = Vec::new();
    for n in 0..dice.roll(12) {
        let value = format!("{tenant} {mark} {n}");
        let choice = dice.roll(9);
        story.push(choice);
        match choice {
            0 | 1 if !failed => {
                say(&mut raw, dice, &format!("SET my.note = '{value}'"));
                now = value;
            }
            2 if !failed => {
                say(&mut raw, dice, "RESET my.note");
                now.clear();
            }
            3 if !in_transaction => {
                say(&mut raw, dice, "BEGIN");
                in_transaction = true;
            }
            4 => {
                say(&mut raw, dice, "COMMIT");
                if failed {
                    now.clone_from(&kept);
                }
                (in_transaction, failed) = (false, false);
            }
            5 => {
                say(&mut raw, dice, "ROLLBACK");
                if in_transaction {
                    now.clone_from(&kept);
                }
                (in_transaction, failed) = (false, false);
            }
            6 => {
                say(&mut raw, dice, "SELECT 1/0");
                failed = in_transaction;
            }
            7 if !failed && !in_transaction => {
                // Gone with its transaction, which is the statement itself.
                raw.rows(&format!("BEGIN; SET LOCAL my.note = '{value}'; COMMIT"));
            }
            _ => {}
        }
        if !in_transaction {
            kept.clone_from(&now);
        }
        if !failed {
            assert_eq!(raw.value(NOTE), now, "{tenant} {mark} after {story:?}");
        }
    }
}

#[test]
fn heavy_each_session_sees_its_own_settings() {
    let setup = Setup::new().shards(1).tenants(["acme", "globex"]);
    let s = setup.pool("size = 6\nqueue_timeout = \"60s\"").start();
    std::thread::scope(|scope| {
        for seed in 1..=6 {
            let s = &s;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                for n in 0..150 {
                    let tenant = *dice.pick(&["acme", "globex"]);
                    session(s, &mut dice, tenant, &format!("{seed}-{n}"));
                }
            });
        }
    });
}

#[test]
fn a_setting_that_has_become_wrong_fails_one_statement() {
    let s = Setup::new()
        .shards(1)
        .pool("size = 1")
        .tenants(["acme", "globex"])
        .sql("CREATE TEXT SEARCH CONFIGURATION scratch.mine (COPY = simple)")
        .start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    let usual = acme.value("SHOW default_text_search_config");
    acme.rows("SET default_text_search_config = 'scratch.mine'");
    assert_eq!(globex.value("SELECT 1"), "1");
    assert_eq!(acme.value("SHOW default_text_search_config"), "scratch.mine");
    assert_eq!(globex.value("SELECT 1"), "1");
    s.shard_of("acme").sql("DROP TEXT SEARCH CONFIGURATION scratch.mine");
    let error = acme.error("SELECT 1");
    assert_eq!(error.sqlstate, "22023", "{error:?}");
    for _ in 0..3 {
        assert_eq!(globex.value("SELECT 1"), "1");
        assert_eq!(acme.value("SHOW default_text_search_config"), usual);
    }
    assert_eq!(s.router.metrics().sum("switchyard_handover_failures_total", &[]), 1.0);
}

#[test]
fn a_setting_is_kept_however_its_name_is_written_and_wherever_it_is_set() {
    let s = Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    for (statements, expected) in [
        (&["SET work_mem = 64", "SET \"Work_Mem\" = 65"][..], "65kB"),
        (&["RESET \"WORK_MEM\""], "4MB"),
        (
            &[
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT set_config('work_mem', '70', false)",
                "FETCH c",
                "COMMIT",
            ],
            "70kB",
        ),
        (&["CREATE TABLE scratch.made AS SELECT set_config('work_mem', '80', false)"], "80kB"),
    ] {
        for sql in statements {
            acme.rows(sql);
            // The one connection is another tenant's in between, where it is free.
            if !statements.contains(&"BEGIN") {
                globex.rows("SELECT 1");
            }
        }
        globex.rows("SELECT 1");
        assert_eq!(acme.value("SHOW work_mem"), expected, "{statements:?}");
    }
}
