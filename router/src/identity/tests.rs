//! Every source alone, every pair of sources in agreement and in contradiction, and who may act for whom.

use std::time::SystemTime;

use switchyard_config::topology::{LoginMethods, UnknownTenants};

use super::*;

fn id(tenant: &str) -> TenantId {
    TenantId::new(tenant).unwrap()
}

fn user(name: &str, tenants: TenantGrant) -> Arc<User> {
    let methods = LoginMethods { jwt: true, ..LoginMethods::default() };
    let name = name.to_owned();
    Arc::new(User { name, verifier: None, methods, tenants, pool_mode: None, server_login: None })
}

fn context(variables: &[(&str, &str)]) -> ContextTemplate {
    let variables = variables.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
    ContextTemplate { variables, ..ContextTemplate::default() }
}

/// Users `app` (any tenant), `solo` (acme), `short` (acme, in a list of one), `duo` (acme, globex), `nobody` (an
/// empty list), `app.x` and `svc@eu` (any); tenants as listed.
fn topology() -> Topology {
    let mut topology = Topology::empty();
    for user in [
        user("app", TenantGrant::Any),
        user("solo", TenantGrant::One(id("acme"))),
        user("short", TenantGrant::List(vec![id("acme")])),
        user("duo", TenantGrant::List(vec![id("acme"), id("globex")])),
        user("nobody", TenantGrant::List(Vec::new())),
        user("app.x", TenantGrant::Any),
        user("svc@eu", TenantGrant::Any),
    ] {
        topology.users.insert(user.name.clone(), user);
    }
    for tenant in ["acme", "globex", "Mixed", "twin", "TWIN", "a.b", "a@b.c", "büro", "42"] {
        topology.tenants.insert(id(tenant), Arc::new(Tenant::new(id(tenant))));
    }
    let mut asleep = Tenant::new(id("asleep"));
    asleep.state = TenantState::Suspended;
    let mut own = Tenant::new(id("own"));
    own.context = Some(Arc::new(context(&[("own.tenant", "t-{tenant}")])));
    for tenant in [asleep, own] {
        topology.tenants.insert(tenant.id.clone(), Arc::new(tenant));
    }
    topology.context = Arc::new(context(&[
        ("app.tenant_id", "{tenant}"),
        ("app.client", "{user}/{tenant}"),
        ("app.region", "eu"),
        ("application_name", "{tenant}"),
    ]));
    topology
}

fn settings() -> IdentitySettings {
    IdentitySettings {
        sni_suffix: Some(".db.example.com".to_owned()),
        database: Some("tenant_{tenant}".to_owned()),
        ..IdentitySettings::default()
    }
}

/// What a client says, in a form that a table can hold.
#[derive(Debug, Clone, Default)]
struct Says {
    user: String,
    database: String,
    startup: Vec<(String, String)>,
    options: Vec<(String, String)>,
    sni: Option<String>,
    claim: Option<TenantId>,
    issuer: Option<TenantId>,
}

impl Says {
    fn user(name: &str) -> Self {
        Self { user: name.to_owned(), database: "crm".to_owned(), ..Self::default() }
    }

    fn add(mut self, source: Source, tenant: &str) -> Self {
        let pair = |name: &str| (name.to_owned(), tenant.to_owned());
        match source {
            Source::TokenClaim => self.claim = Some(id(tenant)),
            Source::TokenIssuer => self.issuer = Some(id(tenant)),
            Source::ServerName => self.sni = Some(format!("{tenant}.db.example.com")),
            Source::UserSuffix => self.user = format!("{}.{tenant}", self.user),
            Source::StartupParameter => self.startup.push(pair("switchyard.tenant")),
            Source::Variable => self.options.push(pair("app.tenant_id")),
            Source::Database => self.database = format!("tenant_{tenant}"),
            Source::Credential => {
                assert_eq!(tenant, "acme");
                self.user = self.user.replacen("app", "solo", 1);
            }
        }
        self
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    fn parameter(mut self, name: &str, value: &str) -> Self {
        self.startup.push((name.to_owned(), value.to_owned()));
        self
    }

    fn resolve(&self, topology: &Topology, settings: &IdentitySettings) -> Result<Resolved, IdentityError> {
        let sources = Sources {
            user: &self.user,
            database: &self.database,
            startup: &self.startup,
            options: &self.options,
            sni: self.sni.as_deref(),
        };
        resolve(topology, settings, &sources)
    }

    fn decide(&self, topology: &Topology, settings: &IdentitySettings) -> Result<String, IdentityError> {
        let resolved = self.resolve(topology, settings)?;
        let claims = claims(self.claim.as_ref(), self.issuer.is_some(), None);
        let proof = if self.claim.is_some() || self.issuer.is_some() {
            Proof::Token { claims: &claims, issuers_of: self.issuer.as_ref() }
        } else {
            Proof::Credential
        };
        decide(topology, &resolved, proof).map(|tenant| tenant.id.as_str().to_owned())
    }

    /// The tenant, or the label of the error.
    fn outcome(&self) -> Result<String, &'static str> {
        self.decide(&topology(), &settings()).map_err(|e| e.label())
    }
}

fn claims(tenant: Option<&TenantId>, from_tenant_issuer: bool, user: Option<&str>) -> Claims {
    Claims {
        issuer_name: "idp".to_owned(),
        tenant: tenant.cloned(),
        user: user.map(str::to_owned),
        expires: Some(SystemTime::now()),
        from_tenant_issuer,
    }
}

const ALL: [Source; 8] = [
    Source::TokenClaim,
    Source::TokenIssuer,
    Source::ServerName,
    Source::UserSuffix,
    Source::StartupParameter,
    Source::Variable,
    Source::Database,
    Source::Credential,
];

#[test]
fn each_source_alone() {
    for source in ALL {
        assert_eq!(Says::user("app").add(source, "acme").outcome(), Ok("acme".to_owned()), "{source}");
    }
    assert_eq!(Says::user("app").outcome(), Err("tenant_not_named"));
}

#[test]
fn each_pair_of_sources() {
    for first in ALL {
        for second in ALL.into_iter().filter(|second| *second != first) {
            let both = |a: &str, b: &str| Says::user("app").add(first, a).add(second, b).outcome();
            // `add` for the credential replaces the user, so it is to come before a suffix or after: both do.
            assert_eq!(both("acme", "acme"), Ok("acme".to_owned()), "{first} {second}");
            if second != Source::Credential {
                assert_eq!(both("acme", "globex"), Err("contradiction"), "{first} {second}");
            }
            if first != Source::Credential {
                assert_eq!(both("globex", "acme"), Err("contradiction"), "{first} {second}");
            }
        }
    }
}

#[test]
fn all_sources_at_once() {
    let mut says = Says::user("app");
    for source in ALL {
        says = says.add(source, "acme");
    }
    assert_eq!(says.outcome(), Ok("acme".to_owned()));
}

#[test]
fn a_source_that_speaks_twice_must_agree_with_itself() {
    let twice = |a: &str, b: &str| {
        Says::user("app").parameter("switchyard.tenant", a).option("Switchyard.Tenant", b).outcome()
    };
    assert_eq!(twice("acme", "acme"), Ok("acme".to_owned()));
    assert_eq!(twice("acme", "globex"), Err("contradiction"));
    let last_wins = Says::user("solo").option("app.tenant_id", "globex").option("app.tenant_id", "acme");
    assert_eq!(last_wins.outcome(), Err("contradiction"));
}

#[test]
fn users_and_their_suffixes() {
    for (login, user, tenant) in [
        ("app", "app", None),
        ("app.acme", "app", Some("acme")),
        ("app@acme", "app", Some("acme")),
        ("app.a.b", "app", Some("a.b")),
        ("app.a@b.c", "app", Some("a@b.c")),
        ("app@a@b.c", "app", Some("a@b.c")),
        // A user's whole name comes first, then the shortest one in front of a separator.
        ("app.x", "app.x", None),
        ("app.x.acme", "app", Some("x.acme")),
        ("svc@eu", "svc@eu", None),
        ("svc@eu.acme", "svc@eu", Some("acme")),
        ("app.büro", "app", Some("büro")),
        ("app.Acme", "app", Some("Acme")),
        ("app.'; --", "app", Some("'; --")),
    ] {
        let resolved = Says::user(login).resolve(&topology(), &settings()).unwrap();
        assert_eq!(resolved.user.name, user, "{login}");
        assert_eq!(resolved.login_name, login);
        assert_eq!(resolved.claimed, tenant.map(id), "{login}");
        assert_eq!(resolved.expected(), tenant.map(id).as_ref(), "{login}");
    }
    for (login, expected) in [("solo", "acme"), ("short", "acme"), ("duo.globex", "globex")] {
        let resolved = Says::user(login).resolve(&topology(), &settings()).unwrap();
        assert_eq!(resolved.expected(), Some(&id(expected)), "{login}");
    }
    for (login, label) in [
        ("", "unknown_user"),
        ("stranger", "unknown_user"),
        (".acme", "unknown_user"),
        ("stranger.acme", "unknown_user"),
        ("App", "unknown_user"),
        ("App.acme", "unknown_user"),
        ("ap\0p", "unknown_user"),
        ("app\0.acme", "unknown_user"),
        ("app#acme", "unknown_user"),
        ("app.", "invalid_tenant"),
        ("app@", "invalid_tenant"),
        ("app.ac\0me", "invalid_tenant"),
        ("app.ac\nme", "invalid_tenant"),
    ] {
        let error = Says::user(login).resolve(&topology(), &settings()).unwrap_err();
        assert_eq!(error.label(), label, "{login:?}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    let long = Says::user(&format!("app.{}", "x".repeat(200))).resolve(&topology(), &settings());
    assert_eq!(long.unwrap_err().label(), "invalid_tenant");
    let long = Says::user(&"é".repeat(5000)).resolve(&topology(), &settings()).unwrap_err();
    assert!(long.to_string().len() < 300);
}

#[test]
fn separators_are_configured() {
    let none = IdentitySettings { user_separators: Vec::new(), ..settings() };
    assert_eq!(Says::user("app.acme").resolve(&topology(), &none).unwrap_err().label(), "unknown_user");
    let wide = IdentitySettings { user_separators: vec!['→'], ..settings() };
    assert_eq!(Says::user("app→acme").resolve(&topology(), &wide).unwrap().claimed, Some(id("acme")));
}

#[test]
fn server_names() {
    for (sni, expected) in [
        ("acme.db.example.com", Ok(Some("acme"))),
        ("acme.db.example.com.", Ok(Some("acme"))),
        ("ACME.DB.Example.com", Ok(Some("acme"))),
        ("mixed.db.example.com", Ok(Some("Mixed"))),
        ("Mixed.db.example.com", Ok(Some("Mixed"))),
        ("twin.db.example.com", Ok(Some("twin"))),
        ("TWIN.db.example.com", Ok(Some("TWIN"))),
        ("Twin.db.example.com", Err("ambiguous_server_name")),
        ("a.b.db.example.com", Ok(Some("a.b"))),
        ("New.db.example.com", Ok(Some("new"))),
        ("db.example.com", Ok(None)),
        (".db.example.com", Ok(None)),
        ("acmedb.example.com", Ok(None)),
        ("router.example.com", Ok(None)),
        ("acme.db.example.com.evil.org", Ok(None)),
        ("ü.b.example.com", Ok(None)),
        ("com", Ok(None)),
        ("", Ok(None)),
    ] {
        let says = Says { sni: Some(sni.to_owned()), ..Says::user("app") };
        let claimed = says.resolve(&topology(), &settings()).map(|r| r.claimed).map_err(|e| e.label());
        assert_eq!(claimed, expected.map(|t| t.map(id)), "{sni}");
    }
    // Without a suffix the name says nothing; with or without the dot it means the same.
    for (suffix, expected) in [(None, None), (Some("db.example.com"), Some(id("acme"))), (Some(""), None)] {
        let settings = IdentitySettings { sni_suffix: suffix.map(str::to_owned), ..settings() };
        let says = Says::user("app").add(Source::ServerName, "acme");
        assert_eq!(says.resolve(&topology(), &settings).unwrap().claimed, expected, "{suffix:?}");
    }
}

#[test]
fn a_server_name_has_no_spelling_of_its_own_for_a_new_tenant() {
    let mut topology = topology();
    topology.unknown_tenants = UnknownTenants::Create;
    let outcome = |says: Says| says.decide(&topology, &settings()).map_err(|e| e.label());
    let sni = |tenant: &str| Says::user("app").add(Source::ServerName, tenant);
    assert_eq!(outcome(sni("NewCo")), Ok("newco".to_owned()));
    assert_eq!(outcome(sni("newco").add(Source::UserSuffix, "NewCo")), Ok("NewCo".to_owned()));
    assert_eq!(outcome(sni("newco").add(Source::TokenClaim, "NewCo")), Ok("NewCo".to_owned()));
    assert_eq!(outcome(sni("newco").add(Source::TokenClaim, "other")), Err("contradiction"));
    let three = sni("newco").add(Source::UserSuffix, "NewCo").add(Source::TokenClaim, "newco");
    assert_eq!(outcome(three), Err("contradiction"));
}

#[test]
fn startup_parameters() {
    for says in [
        Says::user("app").parameter("switchyard.tenant", "acme"),
        Says::user("app").parameter("Switchyard.TENANT", "acme"),
        Says::user("app").option("switchyard.tenant", "acme"),
    ] {
        let resolved = says.resolve(&topology(), &settings()).unwrap();
        assert_eq!(resolved.claimed, Some(id("acme")));
        assert_eq!(resolved.consumed.len(), 1);
        assert!(resolved.is_consumed("switchyard.tenant"));
        assert!(!resolved.is_consumed("app.tenant_id"));
    }
    for value in ["", "a\0b", "a\nb"] {
        let error = Says::user("app").parameter("switchyard.tenant", value).resolve(&topology(), &settings());
        assert_eq!(error.unwrap_err().label(), "invalid_tenant", "{value:?}");
    }
    let off = IdentitySettings { startup_parameter: None, ..settings() };
    let resolved =
        Says::user("app").parameter("switchyard.tenant", "acme").resolve(&topology(), &off).unwrap();
    assert_eq!((resolved.claimed, resolved.consumed), (None, Vec::new()));
}

#[test]
fn variables_of_the_context() {
    let outcome = |name: &str, value: &str| Says::user("app").option(name, value).outcome();
    assert_eq!(outcome("app.tenant_id", "acme"), Ok("acme".to_owned()));
    assert_eq!(outcome("APP.Tenant_ID", "acme"), Ok("acme".to_owned()));
    assert_eq!(outcome("app.client", "app/acme"), Ok("acme".to_owned()));
    assert_eq!(outcome("app.client", "other/acme"), Err("invalid_tenant"));
    assert_eq!(outcome("app.tenant_id", ""), Err("invalid_tenant"));
    // These hold no tenant, or have a meaning of their own to the client.
    for name in ["app.region", "application_name", "app.other"] {
        assert_eq!(outcome(name, "acme"), Err("tenant_not_named"), "{name}");
    }
    let says = Says::user("app").option("app.Tenant_id", "acme").option("app.region", "us");
    let resolved = says.resolve(&topology(), &settings()).unwrap();
    assert_eq!(resolved.consumed, ["app.Tenant_id"]);
    assert!(resolved.is_consumed("app.tenant_id"));
}

#[test]
fn a_tenants_own_context_counts() {
    let own = |login: &str, name: &str, value: &str| Says::user(login).option(name, value).outcome();
    assert_eq!(own("app.own", "own.tenant", "t-own"), Ok("own".to_owned()));
    assert_eq!(own("app.own", "own.tenant", "t-acme"), Err("contradiction"));
    assert_eq!(own("app.own", "own.tenant", "acme"), Err("invalid_tenant"));
    // In the tenant's context that is a setting like any other.
    assert_eq!(own("app.own", "app.tenant_id", "acme"), Ok("own".to_owned()));
    // To another tenant, that of `own` is.
    assert_eq!(own("app.acme", "own.tenant", "whatever"), Ok("acme".to_owned()));
    // The tenant is known by the token only: its context is looked at then.
    let late =
        |value: &str| Says::user("app").add(Source::TokenClaim, "own").option("own.tenant", value).outcome();
    assert_eq!(late("t-own"), Ok("own".to_owned()));
    assert_eq!(late("t-acme"), Err("contradiction"));
}

#[test]
fn database_names() {
    for (database, expected) in [
        ("tenant_acme", Ok(Some("acme"))),
        ("tenant_büro", Ok(Some("büro"))),
        ("tenant_", Err("invalid_tenant")),
        ("tenant_a\0", Err("invalid_tenant")),
        ("Tenant_acme", Ok(None)),
        ("acme", Ok(None)),
        ("", Ok(None)),
    ] {
        let says = Says { database: database.to_owned(), ..Says::user("app") };
        let claimed = says.resolve(&topology(), &settings()).map(|r| r.claimed).map_err(|e| e.label());
        assert_eq!(claimed, expected.map(|t| t.map(id)), "{database:?}");
    }
    let plain = IdentitySettings { database: Some("{tenant}".to_owned()), ..settings() };
    let none = Says { database: String::new(), ..Says::user("app") };
    assert_eq!(none.resolve(&topology(), &plain).unwrap().claimed, None);
    let off = IdentitySettings { database: None, ..settings() };
    let says = Says::user("app").add(Source::Database, "acme");
    assert_eq!(says.resolve(&topology(), &off).unwrap().claimed, None);
}

#[test]
fn permission() {
    for (login, expected) in [
        ("app.acme", Ok("acme")),
        ("app.42", Ok("42")),
        ("solo", Ok("acme")),
        ("solo.acme", Ok("acme")),
        ("solo.globex", Err("contradiction")),
        ("short", Ok("acme")),
        ("short.globex", Err("contradiction")),
        ("duo", Err("tenant_not_named")),
        ("duo.acme", Ok("acme")),
        ("duo.globex", Ok("globex")),
        ("duo.Mixed", Err("tenant_not_granted")),
        ("duo.unknown", Err("tenant_not_granted")),
        ("nobody", Err("tenant_not_named")),
        ("nobody.acme", Err("tenant_not_granted")),
        ("app.unknown", Err("unknown_tenant")),
        ("app.ACME", Err("unknown_tenant")),
        ("app.asleep", Err("suspended")),
        ("duo.asleep", Err("tenant_not_granted")),
    ] {
        assert_eq!(Says::user(login).outcome(), expected.map(str::to_owned), "{login}");
    }
}

#[test]
fn unknown_tenants_may_be_created_by_those_who_may_act_for_them() {
    let mut topology = topology();
    topology.unknown_tenants = UnknownTenants::Create;
    topology.users.insert("newbie".to_owned(), user("newbie", TenantGrant::One(id("fresh"))));
    let outcome = |login: &str| Says::user(login).decide(&topology, &settings()).map_err(|e| e.label());
    assert_eq!(outcome("app.new"), Ok("new".to_owned()));
    assert_eq!(outcome("newbie"), Ok("fresh".to_owned()));
    assert_eq!(outcome("newbie.other"), Err("contradiction"));
    assert_eq!(outcome("duo.new"), Err("tenant_not_granted"));
    assert_eq!(outcome("app.asleep"), Err("suspended"));
}

#[test]
fn what_a_token_must_say() {
    let acme = id("acme");
    let globex = id("globex");
    for (login, claims, issuers_of, expected) in [
        // Any tenant: the claim is what allows it, whatever the session says.
        ("app.acme", claims(Some(&acme), false, None), None, Ok("acme")),
        ("app.acme", claims(Some(&globex), false, None), None, Err("contradiction")),
        ("app.acme", claims(None, false, None), None, Err("token_without_tenant")),
        ("app.acme", claims(None, false, Some("app")), None, Err("token_without_tenant")),
        ("app", claims(Some(&acme), false, None), None, Ok("acme")),
        // Some tenants: a token that names neither tenant nor user would do for everybody.
        ("duo.acme", claims(None, false, None), None, Err("token_without_tenant")),
        ("duo.acme", claims(None, false, Some("duo")), None, Ok("acme")),
        ("duo", claims(Some(&globex), false, None), None, Ok("globex")),
        ("duo", claims(Some(&id("42")), false, None), None, Err("tenant_not_granted")),
        ("solo", claims(None, false, None), None, Err("token_without_tenant")),
        ("solo", claims(None, false, Some("solo")), None, Ok("acme")),
        ("solo", claims(Some(&globex), false, Some("solo")), None, Err("contradiction")),
        // The user claim.
        ("app.acme", claims(Some(&acme), false, Some("app")), None, Ok("acme")),
        ("app.acme", claims(Some(&acme), false, Some("app.acme")), None, Ok("acme")),
        ("app.acme", claims(Some(&acme), false, Some("app.globex")), None, Err("other_user")),
        ("app.acme", claims(Some(&acme), false, Some("duo")), None, Err("other_user")),
        // A tenant's own issuer speaks for that tenant only.
        ("app.acme", claims(None, true, None), Some(&acme), Ok("acme")),
        ("app", claims(None, true, None), Some(&acme), Ok("acme")),
        ("app.acme", claims(Some(&globex), true, None), Some(&acme), Err("contradiction")),
        ("app.acme", claims(Some(&acme), true, None), Some(&globex), Err("contradiction")),
        ("app.acme", claims(Some(&acme), true, None), None, Err("issuer_of_nobody")),
        // Verified by a global issuer, the tenant whose issuers were asked too says nothing.
        ("app.acme", claims(Some(&acme), false, None), Some(&acme), Ok("acme")),
        ("duo.asleep", claims(Some(&id("asleep")), false, None), None, Err("tenant_not_granted")),
        ("app.asleep", claims(Some(&id("asleep")), false, None), None, Err("suspended")),
    ] {
        let resolved = Says::user(login).resolve(&topology(), &settings()).unwrap();
        let proof = Proof::Token { claims: &claims, issuers_of };
        let outcome = decide(&topology(), &resolved, proof).map_err(|e| e.label());
        assert_eq!(
            outcome.as_ref().map(|t| t.id.as_str()),
            expected.as_ref().map(|t| *t),
            "{login} {claims:?}"
        );
    }
}

#[test]
fn the_log_learns_the_cause() {
    let error = Says::user("solo.globex").decide(&topology(), &settings()).unwrap_err();
    assert_eq!(error.to_string(), "the user name says tenant \"globex\", the credential says \"acme\"");
    let error = Says::user("app.a\u{1b}[31m").decide(&topology(), &settings()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the user name names no tenant: \"a\\u{1b}[31m\" must not contain control characters"
    );
}
