//! Moves that are asked for while others write the catalog.

use switchyard_tests::moves::Moving;
use switchyard_tests::raw::Raw;
use switchyard_tests::wait;

use crate::TABLES;

/// A transaction that has another move of acme in it, behind which the one that is asked for waits.
fn in_the_way(m: &Moving) -> Raw {
    let mut way = m.catalog.admin();
    way.rows("BEGIN");
    way.rows(
        "INSERT INTO switchyard.moves (tenant, source, target, kind, created_by) VALUES ('acme', 's0', 's1', 'move', 'x')",
    );
    way
}

fn wait_asked(m: &Moving) {
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO moves %'";
    wait::until_true("the move to be asked for", || m.catalog.value(waits) == "1");
}

#[test]
fn who_asks_for_a_move_keeps_no_tenant_from_being_placed() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.tenant("other", 0);
    let mut way = in_the_way(&m);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| m.command(&["move", "start", "acme", "--to", "s1"]));
        wait_asked(&m);
        assert_eq!(m.cli(&["tenant", "place", "other", "--to", "s1"])["shard"], "s1");
        way.rows("ROLLBACK");
        let asked = asked.join().expect("it ends");
        assert!(asked.status.success(), "{asked:?}");
    });
}

#[test]
fn a_tenant_that_is_placed_while_its_move_is_asked_for_does_not_move_from_where_it_was() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    let mut way = in_the_way(&m);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| m.command(&["move", "start", "acme", "--to", "s1"]));
        wait_asked(&m);
        assert_eq!(m.cli(&["tenant", "place", "acme", "--to", "s1"])["shard"], "s1");
        way.rows("ROLLBACK");
        let asked = asked.join().expect("it ends");
        assert_eq!(asked.status.code(), Some(4), "{asked:?}");
        assert!(String::from_utf8_lossy(&asked.stderr).contains("was placed elsewhere"), "{asked:?}");
    });
    assert_eq!(m.catalog.value("SELECT count(*) FROM switchyard.moves"), "0");
}
