//! What is sent behind the data of a COPY that fails: it is carried out, and must be counted for its sender.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup};

fn setup() -> Running {
    Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start()
}

/// A COPY that fails at its first row, with `behind` in one packet with that row.
fn attack(acme: &mut Raw, behind: &[u8]) {
    acme.send(&m::query("COPY scratch.items FROM STDIN"));
    acme.until_tag(b'G');
    acme.send(&[&m::copy_data(b"not a number\tx\n")[..], behind].concat());
}

/// The other tenant reads and writes its own, by either protocol.
#[track_caller]
fn unharmed(s: &Running, what: &str) {
    let mut globex = s.login("globex");
    for _ in 0..3 {
        let sql = "SELECT current_setting('app.tenant_id')";
        let told = globex.round(&m::extended(sql, &[]));
        let rows: Vec<_> = told.iter().filter(|r| r.tag == b'D').map(m::Message::values).collect();
        assert_eq!(rows, [[Some("globex".to_owned())]], "{what}");
        assert_eq!(globex.column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"), "{what}");
    }
}

#[test]
fn statements_behind_it_do_not_answer_for_another_tenant() {
    let s = setup();
    let one = [m::parse("", "SELECT 'acme'"), m::bind("", "", &[]), m::execute("", 0)].concat();
    let slow = [m::parse("", "SELECT pg_sleep(0.3)"), m::bind("", "", &[]), m::execute("", 0)].concat();
    let padding = [&slow[..], &one.repeat(3), &m::close(b'S', ""), &m::flush()].concat();
    for (what, behind) in [
        ("statements without Sync", padding),
        ("statements with Sync", [&slow[..], &m::sync()].concat()),
        ("a Query", m::query("SELECT pg_sleep(0.3)")),
        ("a FunctionCall", m::frame(b'F', &[0; 10])),
    ] {
        let mut acme = s.login("acme");
        attack(&mut acme, &behind);
        let told = acme.until_ready_or_end();
        assert!(told.iter().any(|r| r.tag == b'E'), "{what}");
        unharmed(&s, what);
    }
}

#[test]
fn a_sync_behind_it_is_answered_to_nobody_else() {
    let s = setup();
    for syncs in [1, 3] {
        let mut acme = s.login("acme");
        attack(&mut acme, &m::sync().repeat(syncs));
        // If more answers come than the Query brings, its own session ends: no driver sends this.
        let told = acme.until_ready_or_end();
        assert!(told.iter().any(|r| r.tag == b'E'));
        unharmed(&s, "Syncs");
    }
}

#[test]
fn a_copy_that_fails_before_it_reads_answers_the_sync_of_its_group() {
    let s = setup();
    s.shards[0].sql(
        "CREATE FUNCTION scratch.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON scratch.items FOR EACH STATEMENT EXECUTE FUNCTION scratch.refuse()",
    );
    let mut acme = s.login("acme");
    for _ in 0..3 {
        acme.send(&m::extended("COPY scratch.items FROM STDIN", &[]));
        acme.until_tag(b'E');
        acme.until_ready();
        unharmed(&s, "a Sync that was read after the error");
    }
}

#[test]
fn a_copy_with_syncs_in_its_data_succeeds() {
    let s = setup();
    let mut acme = s.login("acme");
    acme.send(&m::query("COPY scratch.items FROM STDIN"));
    acme.until_tag(b'G');
    acme.send(&[m::sync(), m::copy_data(b"1\tx\n"), m::flush(), m::sync(), m::copy_done()].concat());
    assert!(acme.until_ready().iter().all(|r| r.tag != b'E'));
    assert_eq!(acme.value("SELECT count(*) FROM scratch.items"), "1");
}
