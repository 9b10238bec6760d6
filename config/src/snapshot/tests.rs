use proptest::prelude::*;

use super::*;
use crate::topology::{ConsoleRole, ContextMode, SecretKey, Verifier};

const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

fn shard(name: &str, secret: ServerSecret) -> Arc<Shard> {
    Arc::new(Shard {
        name: ShardName::new(name).unwrap(),
        host: "/run/postgresql".to_owned(),
        port: 5433,
        other_hosts: vec![Endpoint { host: "b".to_owned(), port: 1 }],
        database: "crm".to_owned(),
        login: ServerLogin { user: "app".to_owned(), secret },
        tls: ServerTls {
            mode: SslMode::VerifyFull,
            root_cert: Some("ca.pem".into()),
            cert: Some("c.pem".into()),
            key: Some("k.pem".into()),
        },
        pool: PoolLimits {
            size: 7,
            check_after: Duration::from_nanos(1_500_000_001),
            ..PoolLimits::default()
        },
        cordoned: name == "s2",
    })
}

fn issuer(name: &str, keys: JwtKeys) -> Arc<JwtIssuer> {
    Arc::new(JwtIssuer {
        name: name.to_owned(),
        issuer: Some("https://issuer".to_owned()),
        audience: vec!["crm".to_owned()],
        tenant_claim: "org.id".to_owned(),
        user_claim: Some("sub".to_owned()),
        leeway: Duration::from_millis(1500),
        keys,
    })
}

fn id(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

/// A topology in which nothing is left at its default.
fn full() -> Topology {
    let keys = ServerSecret::ScramKeys { client_key: SecretKey([1; 32]), server_key: SecretKey([2; 32]) };
    let context = ContextTemplate {
        mode: ContextMode::Sealed,
        variables: [("app.tenant_id".to_owned(), "{tenant}".to_owned())].into(),
        search_path: Some(vec!["{tenant}".to_owned(), "public".to_owned()]),
        role: Some("tenant_{tenant}".to_owned()),
        database: Some("db_{tenant}".to_owned()),
    };
    let key = |secret: &str| JwtKey {
        kid: Some("k1".to_owned()),
        algorithm: JwtAlgorithm::EdDSA,
        material: SecretString::from(secret),
    };
    let mut tenant = Tenant::new(id("acme"));
    tenant.state = TenantState::Suspended;
    tenant.placement = Some(Placement { shard: ShardName::new("s2").unwrap(), epoch: u64::MAX });
    tenant.context = Some(Arc::new(context.clone()));
    tenant.pool_mode = Some(PoolMode::Session);
    tenant.jwt = vec![issuer("own", JwtKeys::File("jwks.json".into()))];
    tenant.name = Some("Acme \"Ltd\"".to_owned());
    tenant.plan = Some("p".into());
    tenant.own_limits = Some(Arc::new(LimitSet { connections: Some(3), ..LimitSet::default() }));
    tenant.restriction = Some(Restriction::Quota { until: 1_800_000_000 });
    let said = LimitSet {
        weight: Some(7),
        allow: Some(vec!["10.0.0.0/8".parse().unwrap()]),
        wait_budget_ms: Some(0),
        ..LimitSet::default()
    };
    let parent = Plan { name: "p0".to_owned(), extends: None, limits: said };
    let plan = Plan { name: "p".to_owned(), extends: Some("p0".to_owned()), limits: LimitSet::default() };
    let plans = Arc::new(Plans::new(vec![parent, plan], Some("p0".to_owned())).unwrap());
    tenant.limits = plans.resolve(Some("p"), tenant.own_limits.as_deref());
    assert_eq!((tenant.limits.weight, tenant.limits.connections), (7, Some(3)));
    let other = Tenant { limits: plans.resolve(None, None), ..Tenant::new(id("ü")) };
    let user = |name: &str, verifier: Option<Verifier>, tenants: TenantGrant| {
        let login = ServerLogin { user: "u".to_owned(), secret: ServerSecret::Password("pw2".into()) };
        let user = User {
            name: name.to_owned(),
            verifier,
            methods: LoginMethods {
                read_only: true,
                jwt: true,
                cert: name == "a",
                trust: name == "b",
                console: (name == "a").then_some(ConsoleRole::Operator),
                roaming: name == "b",
            },
            tenants,
            pool_mode: Some(PoolMode::Session),
            server_login: (name == "a").then(|| Arc::new(login)),
        };
        (name.to_owned(), Arc::new(user))
    };
    let md5 = "md53175bce1d3201d16594cebf9d7eb3f9d";
    Topology {
        version: 42,
        shards: vec![
            shard("s1", ServerSecret::Password("pw1".into())),
            shard("s2", keys),
            shard("s3", ServerSecret::None),
        ],
        buckets: (0..BUCKETS).map(|b| if b % 5 == 0 { 0 } else { 2 }).collect(),
        tenants: [(id("acme"), Arc::new(tenant)), (id("ü"), Arc::new(other))].into(),
        users: HashMap::from([
            user("a", Some(Verifier::Scram(SCRAM.into())), TenantGrant::One(id("acme"))),
            user("b", Some(Verifier::Md5(md5.into())), TenantGrant::List(vec![id("acme"), id("x")])),
            user("c", None, TenantGrant::Any),
        ]),
        context: Arc::new(context),
        unknown_tenants: UnknownTenants::Create,
        jwt: vec![
            issuer("static", JwtKeys::Static(vec![key("-----BEGIN PUBLIC KEY-----\n")])),
            issuer(
                "url",
                JwtKeys::Url {
                    url: "https://x/jwks".to_owned(),
                    refresh: Duration::from_secs(9),
                    ca: Some("ca".into()),
                },
            ),
        ],
        plans,
    }
}

/// `Debug` of all parts in a fixed order; secrets are compared by the JSON.
fn shown(t: &Topology) -> String {
    let tenants: BTreeMap<_, _> = t.tenants.iter().collect();
    let users: BTreeMap<_, _> = t.users.iter().collect();
    format!(
        "{:?}",
        (t.version, &t.shards, &t.buckets, tenants, users, &t.context, t.unknown_tenants, &t.jwt, &t.plans)
    )
}

#[test]
fn what_is_written_comes_back_exactly() {
    for topology in [full(), Topology::empty()] {
        let json = to_json(&topology);
        let back = from_json(&json).unwrap();
        assert_eq!(shown(&back), shown(&topology));
        assert_eq!(to_json(&back), json);
    }
    let back = from_json(&to_json(&full())).unwrap();
    let ServerSecret::Password(p) = &back.shards[0].login.secret else { panic!("password lost") };
    assert_eq!(p.expose_secret(), "pw1");
    let ServerSecret::ScramKeys { client_key, server_key } = &back.shards[1].login.secret else {
        panic!("keys lost")
    };
    assert_eq!((client_key.0, server_key.0), ([1; 32], [2; 32]));
    assert!(matches!(back.shards[2].login.secret, ServerSecret::None));
    let Some(Verifier::Scram(v)) = &back.users["a"].verifier else { panic!("verifier lost") };
    assert_eq!(v.expose_secret(), SCRAM);
    assert!(matches!(back.users["b"].verifier, Some(Verifier::Md5(_))));
}

#[test]
fn what_is_refused() {
    let json = to_json(&full());
    let with = |from: &str, to: &str| {
        assert!(json.contains(from), "{from}");
        from_json(&json.replacen(from, to, 1)).unwrap_err()
    };
    let inconsistent = |e: &SnapshotError| matches!(e, SnapshotError::Inconsistent(_));
    assert_eq!(with("\"format\":2", "\"format\":1"), SnapshotError::Format(1));
    assert!(matches!(with("\"version\":42", "\"version\":-1"), SnapshotError::Form { .. }));
    assert!(matches!(with("\"host\"", "\"hots\""), SnapshotError::Form { .. }));
    assert!(matches!(with("\"pw1\"", "[\"pw1\"]"), SnapshotError::Form { .. }));
    assert!(inconsistent(&with("\"buckets\":[[1,0]", "\"buckets\":[[1,9]")));
    assert!(inconsistent(&with("\"buckets\":[[1,0]", "\"buckets\":[[2,0]")));
    assert!(inconsistent(&with("\"buckets\":[[1,0],", "\"buckets\":[")));
    assert!(inconsistent(&with("\"name\":\"s3\"", "\"name\":\"s1\"")));
    assert!(inconsistent(&with("\"name\":\"c\"", "\"name\":\"b\"")));
    assert!(inconsistent(&with("\"id\":\"ü\"", "\"id\":\"acme\"")));
    assert!(inconsistent(&with("SCRAM-SHA-256-KEYS$", "")));
    for cut in [0, 1, json.len() / 2, json.len() - 1] {
        if json.is_char_boundary(cut) {
            assert!(matches!(from_json(&json[..cut]), Err(SnapshotError::Form { .. })), "{cut}");
        }
    }
}

#[test]
fn no_error_holds_a_secret() {
    let json = to_json(&full());
    for (from, to) in
        [("\"pw1\"", "{\"pw1\":\"pw1\"}"), ("\"password\":\"pw1\"", "\"pw1\":1"), ("5433", "\"pw1\"")]
    {
        let error = from_json(&json.replacen(from, to, 1)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("pw1"), "{error}");
    }
}

proptest! {
    #[test]
    fn anything_is_read_or_refused(text in ".{0,200}") {
        let _ = from_json(&text);
    }

    #[test]
    fn damage_is_refused_or_harmless(at in 0usize..20_000, byte in 0x20u8..0x7f) {
        let mut json = to_json(&full()).into_bytes();
        let at = at % json.len();
        json[at] = byte;
        if let Ok(text) = String::from_utf8(json) && let Ok(topology) = from_json(&text) {
            // Whatever was understood is whole.
            prop_assert_eq!(to_json(&from_json(&to_json(&topology)).unwrap()), to_json(&topology));
        }
    }
}
