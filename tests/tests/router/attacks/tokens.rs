//! Tokens, and what a client says at startup.

use switchyard_shard_schema::install::Form;
use switchyard_tests::Raw;
use switchyard_tests::setup::PASSWORD;

use super::{leaked, plain, run, sealed};

/// Tokens as somebody would use who has seen one: isolation.md B2.
#[test]
fn a_token_is_good_once_for_one_connection_until_the_tenant_moves() {
    use aws_lc_rs::hmac;
    for form in [Form::Parameter, Form::Sequence] {
        let s = sealed(form);
        let key = hmac::Key::new(hmac::HMAC_SHA256, switchyard_tests::sealed::seal_key().secret.as_slice());
        let mint = |claims: &str| {
            let tag = hmac::sign(&key, claims.as_bytes());
            tag.as_ref().iter().fold(String::new(), |t, b| t + &format!("{b:02x}")) + "." + claims
        };
        let hello = |raw: &mut Raw| -> Vec<String> {
            let row = raw.rows("SELECT pid, slot, nonce, used FROM switchyard.hello()").remove(0);
            row.into_iter().map(|v| v.expect("a value")).collect()
        };
        let claims = |place: &[String], n: u64, epoch: u64, expiry: u64, tenant: &str| {
            let hex = tenant.bytes().fold(String::new(), |t, b| t + &format!("{b:02x}"));
            let used = place[3].parse::<u64>().expect("a number") + n;
            format!("1.{}.{}.{}.{used}.{epoch}.{expiry}.{hex}", place[0], place[1], place[2])
        };
        const LATER: u64 = 99_999_999_999;
        let enter = |raw: &mut Raw, token: &str| {
            raw.try_rows(&format!("SELECT switchyard.enter('{token}')")).err().map(|e| e.sqlstate)
        };
        let refused = Some("TN001".to_owned());
        let count = "SELECT count(*) FROM clients";
        let mut one = s.shards[0].app().connect();
        let mut other = s.shards[0].app().connect();
        let (place, place_of_other) = (hello(&mut one), hello(&mut other));
        assert_ne!(place[1], place_of_other[1]);
        let token = mint(&claims(&place, 1, 1, LATER, "acme"));
        assert_eq!(enter(&mut other, &token), refused, "on another connection");
        assert_eq!(enter(&mut one, &token), None);
        assert_eq!(one.value(count), "3");
        assert_eq!(enter(&mut one, &token), refused, "once more");
        // Handed over, and tried by the next tenant, inside a transaction that is rolled back too.
        one.rows("DISCARD ALL");
        assert_eq!(enter(&mut one, &mint(&claims(&place, 2, 1, LATER, "globex"))), None);
        assert_eq!(enter(&mut one, &token), refused, "after the hand-over");
        one.rows("BEGIN; SELECT switchyard.hello(); ROLLBACK");
        assert_eq!(enter(&mut one, &token), refused, "after a hello that was rolled back");
        one.rows("BEGIN");
        assert_eq!(enter(&mut one, &mint(&claims(&place, 3, 1, LATER, "acme"))), None);
        one.rows("ROLLBACK");
        assert_eq!(
            enter(&mut one, &mint(&claims(&place, 3, 1, LATER, "acme"))),
            refused,
            "used, and rolled back"
        );
        for (what, bad) in [
            ("expired", mint(&claims(&place, 9, 1, 1_000, "acme"))),
            ("unsigned", "0".repeat(64) + "." + &claims(&place, 9, 1, LATER, "acme")),
            ("edited", mint(&claims(&place, 9, 1, LATER, "globex")).replace(".676c6f626578", ".61636d65")),
            ("of another key", mint(&claims(&place, 9, 1, LATER, "acme").replacen("1.", "2.", 1))),
            ("of another process", mint(&claims(&place, 9, 1, LATER, "acme").replacen(&place[0], "1", 1))),
            ("empty", String::new()),
            ("cut", mint(&claims(&place, 9, 1, LATER, "acme"))[..90].to_owned()),
        ] {
            assert_eq!(enter(&mut one, &bad), refused, "{what}");
        }
        assert_eq!(enter(&mut one, &mint(&claims(&place, 10, 1, LATER, "acme"))), None);
        // A new hello voids what was made before; a new process in the same place too.
        let early = mint(&claims(&place, 11, 1, LATER, "acme"));
        let place = hello(&mut one);
        assert_eq!(enter(&mut one, &early), refused, "of a former nonce");
        // Moved: an older epoch, and a session that had been entered at it.
        assert_eq!(enter(&mut one, &mint(&claims(&place, 1, 4, LATER, "acme"))), None);
        assert_eq!(one.value(count), "3");
        s.shards[0].sql("INSERT INTO switchyard.fence VALUES ('acme', 5, 'active')");
        assert_eq!(one.error(count).sqlstate, "TN002");
        let fenced = Some("TN002".to_owned());
        assert_eq!(enter(&mut one, &mint(&claims(&place, 2, 4, LATER, "acme"))), fenced);
        assert_eq!(enter(&mut one, &mint(&claims(&place, 3, 5, LATER, "acme"))), None);
        assert_eq!(one.value(count), "3");
        for state in ["frozen", "moved", "importing", "aborted"] {
            s.shards[0].sql(&format!("UPDATE switchyard.fence SET state = '{state}'"));
            assert_eq!(one.error(count).sqlstate, "TN002", "{state}");
            assert_eq!(one.error("DELETE FROM clients").sqlstate, "TN002", "{state}");
        }
    }
}

/// What a client may say at startup to be somebody else: security.md T6.
#[test]
fn startup_parameters_forge_nothing() {
    for s in [plain(), sealed(Form::Parameter)] {
        for (name, value) in [
            ("app.tenant_id", "globex"),
            ("options", "-c app.tenant_id=globex"),
            ("options", "--app.tenant_id=globex"),
            ("options", "-c backtrace_functions=sc_9_globex"),
            ("backtrace_functions", "sc_9_globex"),
            ("switchyard.tenant", "globex"),
            ("options", "-c switchyard.tenant=globex"),
            ("role", "crm_owner"),
            ("session_authorization", "super"),
            ("_pq_.tenant", "globex"),
        ] {
            let target = s.plain_target("app.acme", PASSWORD).param(name, value);
            let Ok(mut session) = target.try_connect() else { continue };
            let seen = run(&mut session, &["SELECT name FROM public.clients ORDER BY id"]);
            assert!(!leaked(&seen), "{name}={value}: {seen}");
        }
        assert_eq!(s.login("acme").column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    }
}
