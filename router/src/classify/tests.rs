use super::*;

#[test]
fn what_texts_leave_behind() {
    let set = |n: &str| Effect::Set(n.to_owned());
    let pin = Effect::Pin;
    for (sql, effect) in [
        ("SELECT 1", Effect::Nothing),
        ("select abalance from pgbench_accounts where aid = 7;", Effect::Nothing),
        ("select setseed, currval from pg_class p", Effect::Nothing),
        ("select * into Temp x from y", pin(Pin::Temporary)),
        ("update pG_settings set setting = 1", Effect::AnySetting),
        ("", Effect::Nothing),
        (";;", Effect::Nothing),
        ("/* a */ -- b\n select 1", Effect::Nothing),
        ("BEGIN; SET LOCAL app.tenant_id = 'x'; SELECT 1; COMMIT", Effect::Nothing),
        ("SET LOCAL x TO 1", Effect::Nothing),
        ("SET LOCAL search_path TO a", Effect::ParsedOtherwise),
        ("BEGIN; set local TIME ZONE 'UTC'; SELECT 1", Effect::ParsedOtherwise),
        ("SET LOCAL role TO a; SET b = 1", Effect::AnySetting),
        ("SELECT set_config('search_path', $1, true)", Effect::ParsedOtherwise),
        ("SELECT set_config($1, $2, true)", Effect::ParsedOtherwise),
        ("SELECT set_config('search_path', $1, true), f()", Effect::Unknown),
        ("SELECT set_config('a.b', $1, false), f()", Effect::Unknown),
        ("SET search_path TO a, b", set("search_path")),
        ("set SESSION statement_timeout=5", set("statement_timeout")),
        ("SET TIME ZONE 'UTC'", set("timezone")),
        ("SET TIME ZONE LOCAL", Effect::Reset("timezone".to_owned())),
        ("SET time zone default ", Effect::Reset("timezone".to_owned())),
        ("SET work_mem TO DEFAULT", Effect::Reset("work_mem".to_owned())),
        ("SET work_mem=default", Effect::Reset("work_mem".to_owned())),
        ("SET NAMES", Effect::Reset("client_encoding".to_owned())),
        ("SET synchronous_commit = local", set("synchronous_commit")),
        ("SET my.a = 'default'", set("my.a")),
        ("SET NAMES 'utf8'", set("client_encoding")),
        ("SET \"App\".x = 1", pin(Pin::Setting)),
        ("DEALLOCATE \"S_1\"", Effect::Deallocate(Some("S_1".to_owned()))),
        ("SET ROLE bob", Effect::Settings(vec!["role".to_owned()])),
        ("SET SESSION AUTHORIZATION bob", pin(Pin::Setting)),
        ("SET a=1; SET b=2", Effect::Settings(vec!["a".to_owned(), "b".to_owned()])),
        ("SET a=1; SELECT 1", Effect::Settings(vec!["a".to_owned()])),
        ("BEGIN; SET a=1; ROLLBACK", Effect::Settings(vec!["a".to_owned()])),
        ("SET a=1; SET ROLE x", Effect::Settings(vec!["a".to_owned(), "role".to_owned()])),
        ("SET a=1; SET SESSION AUTHORIZATION x", pin(Pin::Setting)),
        ("RESET a", Effect::Reset("a".to_owned())),
        ("RESET ALL", Effect::ResetAll),
        ("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", Effect::AnyReset(vec![])),
        ("RESET ALL; SET a = 1", Effect::AnyReset(vec!["a".to_owned()])),
        ("DISCARD ALL", Effect::DiscardAll),
        ("DEALLOCATE ALL", Effect::Deallocate(None)),
        ("DEALLOCATE PREPARE foo", Effect::Deallocate(Some("foo".to_owned()))),
        ("LISTEN x", Effect::Channels),
        ("SELECT 1; UNLISTEN x; CLOSE ALL", Effect::Channels),
        ("PREPARE a AS SELECT 1", Effect::Prepare("a".to_owned())),
        ("PREPARE a AS SELECT 1; SELECT 2", pin(Pin::Prepare)),
        ("execute a(1)", Effect::Execute("a".to_owned())),
        ("PREPARE TRANSACTION 'x'", Effect::Nothing),
        ("DECLARE c CURSOR FOR SELECT 1", Effect::Nothing),
        ("DECLARE c CURSOR FOR SELECT pg_advisory_lock(5)", pin(Pin::AdvisoryLock)),
        ("DECLARE c CURSOR FOR SELECT set_config('a', 'b', false)", Effect::Settings(vec!["a".to_owned()])),
        ("CREATE TABLE t AS SELECT set_config('a', 'b', false)", Effect::Settings(vec!["a".to_owned()])),
        ("CREATE MATERIALIZED VIEW v AS SELECT f()", Effect::Unknown),
        ("CREATE VIEW v AS SELECT f()", Effect::Nothing),
        ("SET \"Work_Mem\" = 65", set("work_mem")),
        ("RESET \"WORK_MEM\"", Effect::Reset("work_mem".to_owned())),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", pin(Pin::HoldCursor)),
        ("CREATE TEMP TABLE x(a int)", pin(Pin::Temporary)),
        ("create local temporary table x(a int)", pin(Pin::Temporary)),
        ("CREATE TABLE pg_temp.x(a int)", pin(Pin::Temporary)),
        ("CREATE TABLE temperature(a int)", Effect::Nothing),
        ("SELECT 1 AS template", Effect::Nothing),
        ("SELECT 1 INTO TEMP x", pin(Pin::Temporary)),
        ("SELECT 1 INTO LOCAL TEMP x", pin(Pin::Temporary)),
        ("SELECT 1 INTO /**/ TEMP x", pin(Pin::Temporary)),
        ("SELECT 1 INTO/* a */LOCAL -- b\n TEMPORARY x", pin(Pin::Temporary)),
        ("SELECT 1 -- INTO\n AS temp", Effect::Nothing),
        ("SELECT 1 INTO /**/ pg_temp.x FROM y", pin(Pin::Temporary)),
        ("SELECT 1 INTO global temporary x", pin(Pin::Temporary)),
        ("SELECT * INTO pg_temp.x FROM y", pin(Pin::Temporary)),
        ("SELECT * INTO \"pg_temp\".x FROM y", pin(Pin::Temporary)),
        ("SELECT * FROM pg_temp.x", Effect::Nothing),
        ("SET app . theme = 'dark'", pin(Pin::Setting)),
        ("SET app. theme = 'dark'", pin(Pin::Setting)),
        ("SET app/* a */.theme = 'dark'", pin(Pin::Setting)),
        ("SET U&\"app\" = 'dark'", pin(Pin::Setting)),
        ("RESET app . theme", pin(Pin::Setting)),
        ("SELECT 1 -- the user's context\n, set_tenant('x')", Effect::Unknown),
        ("SELECT pg_advisory_lock(1)", pin(Pin::AdvisoryLock)),
        ("SELECT pg_advisory_xact_lock(1)", Effect::Nothing),
        ("SELECT set_config('a.b', $1, true)", Effect::Nothing),
        ("SELECT set_config('a.B', 'x', false)", Effect::Settings(vec!["a.b".to_owned()])),
        ("SELECT SET_CONFIG('a.b', 'x,(', $1)", Effect::Settings(vec!["a.b".to_owned()])),
        ("SELECT set_config($1, $2, false)", Effect::AnySetting),
        ("SELECT set_config(name, 'x', false) FROM t", Effect::AnySetting),
        ("UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", Effect::AnySetting),
        ("SELECT * FROM pg_settings", Effect::Nothing),
        ("DO $$ begin perform 1; end $$", Effect::Unknown),
        ("CALL f()", Effect::Unknown),
        ("SELECT ';'; SELECT $a$;$a$, E'\\';', \";\"", Effect::Nothing),
        ("SELECT nextval('s')", Effect::Nothing),
        ("SELECT set_tenant('x')", Effect::Unknown),
        ("SELECT 1; SELECT set_tenant('x')", Effect::Unknown),
        ("SELECT currval('s')", Effect::Unknown),
    ] {
        assert_eq!(classify(sql.as_bytes()), effect, "{sql}");
    }
}

#[test]
fn names_of_settings() {
    let text =
        b"DO $$ BEGIN SET my.a = 1; PERFORM set_config('My.b', t.c, false); RESET x.y; END $$ 1.5 a. .b";
    assert_eq!(custom_names(text), ["my.a", "my.b", "x.y"]);
}

proptest::proptest! {
    #[test]
    fn names_are_found_in_any_text(sql in "[ '.a1_;$]{0,40}") {
        custom_names(sql.as_bytes());
    }

    #[test]
    fn any_text_is_classified(sql in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        classify(&sql);
    }

    #[test]
    fn odd_texts_are_classified(sql in "[ ;'\"$a/*E\\\\-]{0,40}") {
        classify(sql.as_bytes());
    }
}
