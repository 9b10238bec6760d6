//! Three applications as their users write them, with one URL for all tenants.

use serde_json::json;
use switchyard_tests::cluster::{APP, APP_PASSWORD};
use switchyard_tests::drivers::{node, python};

use super::*;

fn url(s: &Running) -> String {
    format!("postgres://{SERVICE}:{SECRET}@127.0.0.1:{}/crm", s.router.address().port())
}

fn ids() -> [&'static str; 4] {
    TENANTS.map(|(tenant, _)| tenant)
}

fn saw_rows(said: &serde_json::Value) {
    assert!(said["rows"].as_u64().is_some_and(|rows| rows > 300), "{said}");
}

fn nothing_foreign_was_written(s: &Running) {
    for (index, shard) in s.shards.iter().enumerate() {
        let foreign = "SELECT count(*) FROM leads WHERE first_name NOT LIKE tenant_id || ' %'";
        assert_eq!(shard.value(foreign), "0");
        let away = TENANTS.iter().filter(|(_, home)| *home != index).map(|(tenant, _)| format!("'{tenant}'"));
        let away = away.collect::<Vec<_>>().join(", ");
        let strays = format!("SELECT count(*) FROM leads WHERE tenant_id IN ({away})");
        assert_eq!(shard.value(&strays), "0", "every row is on its tenant's shard");
    }
}

#[test]
fn sqlalchemy() {
    // It asks the database for its version and the like before it knows of any tenant.
    let s = with_home().start();
    let input = json!({"url": url(&s), "tenants": ids(), "clients": 2, "rounds": 3});
    saw_rows(&python("roaming_sqlalchemy_app.py", &input));
    nothing_foreign_was_written(&s);
}

#[test]
fn node_postgres() {
    let s = setup().start();
    let input = json!({"url": url(&s), "tenants": ids(), "clients": 2, "rounds": 3});
    saw_rows(&node("roaming_app.mjs", &input));
    nothing_foreign_was_written(&s);
}

#[test]
fn django_tenants() {
    let s = with_home()
        .context("[context]\nsearch_path = [\"tenant_{tenant}\", \"public\"]")
        .sql("GRANT CREATE ON DATABASE crm TO app; GRANT CREATE ON SCHEMA public TO app")
        .start();
    let tenants = ids();
    for (index, shard) in s.shards.iter().enumerate() {
        let here: Vec<_> = TENANTS.iter().filter(|(_, home)| *home == index).map(|(t, _)| *t).collect();
        let url = shard.url(APP, APP_PASSWORD);
        let input =
            json!({"do": "migrate", "url": url, "tenants": tenants, "here": here, "clients": 0, "rounds": 0});
        python("roaming_django_app.py", &input);
    }
    let input = json!({"do": "requests", "url": url(&s), "tenants": tenants, "clients": 2, "rounds": 3});
    saw_rows(&python("roaming_django_app.py", &input));
    for (tenant, home) in TENANTS {
        let foreign =
            format!("SELECT count(*) FROM tenant_{tenant}.crm_lead WHERE first_name NOT LIKE '{tenant} %'");
        assert_eq!(s.shards[home].value(&foreign), "0");
    }
}
