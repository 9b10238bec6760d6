//! Installing, bringing up to date, and taking away.

use secrecy::SecretString;
use switchyard_config::ShardName;
use switchyard_shard_schema::connect::Target;
use switchyard_shard_schema::install::{Form, InstallOptions, Revokes, install, remove, script, status};
use switchyard_shard_schema::{SchemaError, keys};
use switchyard_tests::Cluster;
use switchyard_tests::certs::Certs;
use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};

use crate::{session, session_as};

/// What is in the schema, and who may do what: the same whichever way it came there.
const CONTENTS: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT 'relation ' || relname || ' ' || relkind::text || ' ' || coalesce(relacl::text, '') FROM pg_class
     WHERE relnamespace = 'switchyard'::regnamespace
    UNION ALL
    SELECT 'function ' || oid::regprocedure || ' ' || md5(prosrc) || ' ' || coalesce(proacl::text, '') || coalesce(proconfig::text, '')
      FROM pg_proc WHERE pronamespace = 'switchyard'::regnamespace) AS x(line)";

#[tokio::test]
async fn it_is_installed_once_and_stays_the_same() {
    let cluster = Cluster::start();
    let mut client = session(&cluster).await;
    assert_eq!(status(&*client).await.unwrap(), None);
    let options = InstallOptions::default();
    let made = install(&mut client, &options).await.unwrap();
    assert_eq!((made.steps, made.form), (5, Form::Parameter));
    keys::add(&mut client, &[keys::generate(1).unwrap()]).await.unwrap();
    let (before, contents) = (status(&*client).await.unwrap().unwrap(), cluster.value(CONTENTS));
    assert!(before.current && before.version == before.latest && before.keys == [1]);
    assert_eq!(install(&mut client, &options).await.unwrap().steps, 0);
    assert_eq!(status(&*client).await.unwrap().unwrap(), before);
    assert_eq!(cluster.value(CONTENTS), contents);
    // Functions that were changed by hand are put right.
    cluster.sql("UPDATE switchyard.setting SET functions = '\\x00'");
    assert!(!status(&*client).await.unwrap().unwrap().current);
    install(&mut client, &options).await.unwrap();
    assert!(status(&*client).await.unwrap().unwrap().current);
}

#[tokio::test]
async fn the_script_to_read_does_the_same() {
    for form in [Form::Parameter, Form::Sequence] {
        let (one, other) = (Cluster::start(), Cluster::start());
        let revokes = Revokes { activity: true, signals: true, large_objects: true, advisory_locks: true };
        let mut client = session(&one).await;
        install(&mut client, &InstallOptions { form: Some(form), revokes }).await.unwrap();
        other.sql(&script(form, revokes));
        assert_eq!(one.value(CONTENTS), other.value(CONTENTS));
        assert_eq!(status(&*client).await.unwrap(), status(&*session(&other).await).await.unwrap());
    }
}

/// Whoever connects to a shard judges its certificate as the router does, which does as libpq.
#[tokio::test]
async fn a_shard_s_certificate_is_judged_as_by_the_router() {
    let by_name: fn(&Certs) = |certs| certs.issue_by_common_name("localhost");
    let cases = [
        ("a common name alone", by_name, "verify-full", None),
        (
            "another common name",
            |certs| certs.issue_by_common_name("db.example.com"),
            "verify-full",
            Some("not valid"),
        ),
        ("X.509 version 1", Certs::version_1, "verify-ca", None),
        ("X.509 version 1 of another host", Certs::version_1, "verify-full", Some("NotValidForName")),
    ];
    for (what, prepare, mode, refused) in cases {
        let certs = Certs::new();
        prepare(&certs);
        let cluster = Cluster::builder().tls(&certs).start();
        let url = cluster.url(SUPERUSER, SUPERUSER_PASSWORD).replace("127.0.0.1", "localhost");
        let url = url.split('?').next().unwrap_or_default();
        let url = format!("{url}?sslmode={mode}&sslrootcert={}", certs.ca().display());
        let target = Target::new(ShardName::new("s1").unwrap(), &SecretString::from(url)).unwrap();
        let found = target.connect().await;
        match (found, refused) {
            (Ok(_), None) => {}
            (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{what}: {error}"),
            (found, _) => panic!("{what}: {:?}", found.err()),
        }
    }
}

#[tokio::test]
async fn it_goes_without_a_trace() {
    let cluster = Cluster::start();
    let mut client = session(&cluster).await;
    assert!(matches!(remove(&mut client, false).await, Err(SchemaError::Missing)));
    install(&mut client, &InstallOptions::default()).await.unwrap();
    cluster.sql("CREATE POLICY sealed ON clients USING (tenant_id = (SELECT switchyard.tenant_id()))");
    assert_eq!(status(&*client).await.unwrap().unwrap().policies, 1);
    let refused = remove(&mut client, false).await.unwrap_err().to_string();
    assert!(refused.contains("policy sealed on table public.clients"), "{refused}");
    remove(&mut client, true).await.unwrap();
    assert_eq!(status(&*client).await.unwrap(), None);
    assert_eq!(cluster.value("SELECT count(*) FROM pg_roles WHERE rolname = 'switchyard_owner'"), "0");
    assert_eq!(cluster.value("SELECT count(*) FROM pg_parameter_acl"), "0");
    install(&mut client, &InstallOptions::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let cluster = Cluster::start();
    let mut client = session(&cluster).await;
    cluster.sql("CREATE SCHEMA switchyard");
    let options = InstallOptions::default();
    assert!(matches!(install(&mut client, &options).await, Err(SchemaError::Foreign)));
    assert!(matches!(remove(&mut client, true).await, Err(SchemaError::Foreign)));
    cluster.sql("CREATE TABLE switchyard.topology_version ()");
    assert!(matches!(install(&mut client, &options).await, Err(SchemaError::Catalog)));
    cluster.sql("DROP SCHEMA switchyard CASCADE");
    install(&mut client, &options).await.unwrap();
    cluster.sql("UPDATE switchyard.schema_step SET checksum = '\\x00'");
    assert!(matches!(install(&mut client, &options).await, Err(SchemaError::Checksum { number: 1 })));
}

#[tokio::test]
async fn who_is_no_superuser_gets_the_other_form() {
    let cluster = Cluster::start();
    // What managed services give: an administrator that is none.
    cluster.sql(
        "CREATE ROLE manager LOGIN CREATEROLE PASSWORD 'manager-secret';
         GRANT CREATE ON DATABASE crm TO manager",
    );
    let mut client = session_as(&cluster, "manager", "manager-secret").await;
    let parameter = InstallOptions { form: Some(Form::Parameter), ..InstallOptions::default() };
    let refused = install(&mut client, &parameter).await.unwrap_err().to_string();
    assert!(refused.contains("GRANT SET ON PARAMETER backtrace_functions TO switchyard_owner"), "{refused}");
    assert_eq!(install(&mut client, &InstallOptions::default()).await.unwrap().form, Form::Sequence);
    // Once it has been granted, the other form may be chosen.
    cluster.sql("GRANT SET ON PARAMETER backtrace_functions TO switchyard_owner");
    assert_eq!(install(&mut client, &InstallOptions::default()).await.unwrap().form, Form::Sequence);
    assert_eq!(install(&mut client, &parameter).await.unwrap().form, Form::Parameter);
    assert!(status(&*client).await.unwrap().unwrap().current);
}

#[tokio::test]
async fn keys_come_and_go() {
    let cluster = Cluster::start();
    let mut client = session(&cluster).await;
    install(&mut client, &InstallOptions::default()).await.unwrap();
    let (one, two) = (keys::generate(1).unwrap(), keys::generate(2).unwrap());
    assert!(keys::add(&mut client, &[one.clone(), two.clone()]).await.unwrap());
    assert!(!keys::add(&mut client, &[one]).await.unwrap());
    let other = keys::generate(2).unwrap();
    assert!(matches!(keys::add(&mut client, &[other]).await, Err(SchemaError::Refused(_))));
    assert_eq!(keys::keep_only(&*client, &[2]).await.unwrap(), [1]);
    assert_eq!(keys::list(&*client).await.unwrap(), [2]);
}
