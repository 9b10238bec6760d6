//! What is right is understood.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;
use crate::settings::{ClientTlsMode, ListenAddress};
use crate::topology::{ContextMode, JwtKeys, PoolMode, ServerSecret, Shard, TenantGrant, Verifier};
use crate::{ShardName, TenantId};

fn password(shard: &Shard) -> &str {
    match &shard.login.secret {
        ServerSecret::Password(p) => p.expose_secret(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults() {
    let loaded = good(&base());
    assert_eq!(loaded.warnings, []);
    assert_eq!(format!("{:?}", loaded.settings), format!("{:?}", RouterSettings::default()));
    let t = &loaded.topology;
    assert_eq!((t.version, t.shards.len(), t.unknown_tenants), (1, 1, UnknownTenants::Refuse));
    assert_eq!(t.buckets, Topology::even_buckets(1));
    assert_eq!(t.context.variables["app.tenant_id"], "{tenant}");
    let user = &t.users["app"];
    assert!(matches!(user.verifier, Some(Verifier::Scram(_))));
    assert_eq!(user.tenants, TenantGrant::Any);
    assert!(matches!(t.shards[0].login.secret, ServerSecret::None));
}

#[test]
fn listeners() {
    let text = "[router]\nlisten = [\"0.0.0.0:6432\", \"unix:/run/sy:7\"]\nhttp_listen = \"\"\n";
    let loaded = good(&(text.to_owned() + &base()));
    let tcp = ListenAddress::Tcp(SocketAddr::from(([0, 0, 0, 0], 6432)));
    let unix = ListenAddress::Unix { dir: "/run/sy".into(), port: 7 };
    assert_eq!(loaded.settings.listen, [tcp, unix]);
    assert_eq!(loaded.settings.http_listen, None);
    let warning =
        "router.toml:2: router.listen: clients beyond this machine are accepted without TLS; see [tls]";
    assert_eq!(loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [warning]);
}

#[test]
fn tls_is_allowed_once_there_is_a_certificate() {
    let dir = Dir::new("tls");
    for name in ["c.pem", "k.pem"] {
        dir.write(name, "pem");
    }
    for (mode, expected) in [
        ("", ClientTlsMode::Allow),
        ("mode = \"require\"\n", ClientTlsMode::Require),
        ("mode = \"disable\"\n", ClientTlsMode::Disable),
    ] {
        let text = format!("[tls]\n{mode}cert = \"c.pem\"\nkey = \"k.pem\"\n{}", base());
        let loaded = load(&dir.write("router.toml", &text)).unwrap();
        assert_eq!(loaded.settings.tls.mode, expected);
        assert_eq!(loaded.settings.tls.cert, Some(dir.0.join("c.pem")));
    }
}

#[test]
fn secrets_from_everywhere() {
    let dir = Dir::new("secrets");
    dir.write("pw", " from a file \r\n");
    let shard = |n: u8, key: &str| {
        format!("[[shards]]\nname = \"s{n}\"\nurl = \"postgres://app@db{n}/crm\"\n{key}\n")
    };
    let text = [
        shard(2, "password = \"in place\""),
        shard(3, "password_file = \"pw\""),
        shard(4, "password_env = \"SECRET\""),
        shard(5, "").replace("app@", "app:in%20url@"),
        shard(6, &format!("scram_keys = \"SCRAM-SHA-256-KEYS${0}:{0}\"", "A".repeat(43) + "=")),
    ]
    .concat();
    let loaded = parse(&(text + &base()), &dir.0.join("router.toml"), &env).unwrap();
    let shards = &loaded.topology.shards;
    let passwords: Vec<_> = shards[..4].iter().map(|s| password(s)).collect();
    assert_eq!(
        passwords,
        ["in place", " from a file ", "from the environment, longer than 32 bytes", "in url"]
    );
    assert!(matches!(shards[4].login.secret, ServerSecret::ScramKeys { .. }));
    let shown = format!("{loaded:?}");
    for secret in passwords {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_key_of_notifications() {
    use secrecy::ExposeSecret;
    let key = "0c".repeat(16);
    let loaded = good(&format!("{}\n[notifications]\nkey = \"  {key} \"\n", base()));
    assert!(!format!("{loaded:?}").contains(&key[..8]));
    assert_eq!(loaded.settings.notification_key.unwrap().expose_secret(), key);
    for (text, expected) in [
        ("[notifications]\nkey = \"short\"", "must have 32 bytes or more"),
        ("[notifications]", "give `key`, `key_file` or `key_env`"),
    ] {
        let error = read(&format!("{}\n{text}\n", base())).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_sealed_context_in_either_form() {
    let key = "ab".repeat(32);
    let rest = base().split_once("[[shards]]").map(|(_, rest)| format!("[[shards]]{rest}")).unwrap();
    let seal = format!("[seal]\nkey = \"\"\"\n4 {key}\n3 {}\n\"\"\"\n", "cd".repeat(32));
    let short = good(&format!("context = \"sealed\"\n{seal}{rest}"));
    assert_eq!(short.topology.context.mode, ContextMode::Sealed);
    let settings = short.settings.seal.as_ref().unwrap();
    assert_eq!(settings.keys.iter().map(|k| k.kid).collect::<Vec<_>>(), [4, 3]);
    assert!(!format!("{short:?}").contains(&key[..8]));
    let long = good(&format!("{seal}token_lifetime = \"1m\"\n[context]\nmode = \"sealed\"\n{rest}"));
    assert_eq!(long.topology.context.mode, ContextMode::Sealed);
    assert_eq!(long.settings.seal.unwrap().token_lifetime, Duration::from_secs(60));
    assert_eq!(good(&base()).topology.context.mode, ContextMode::Plain);
    for (text, expected) in [
        (format!("context = \"sealed\"\n{rest}"), "a sealed context needs a key"),
        (format!("context = \"signed\"\n{seal}{rest}"), "must be"),
        (format!("{rest}[seal]\nkey = \"1 ab\"\n"), "line 1 must be a number from 1 and 64 hexadecimal"),
        (format!("{rest}[seal]\n"), "give `key`, `key_file` or `key_env`"),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn pools_inherit() {
    let text = "[pool]\nsize = 40\nmin = 2\nlifetime = \"30m\"\n\
        [[shards]]\nname = \"s2\"\nurl = \"postgres://app@db2/crm\"\npool = { size = 7, queue_timeout = \"250ms\" }\n";
    let topology = good(&(text.to_owned() + &base())).topology;
    let pools: Vec<_> = topology.shards.iter().map(|s| s.pool.clone()).collect();
    assert_eq!((pools[0].size, pools[0].min, pools[1].size, pools[1].min), (7, 2, 40, 2));
    assert_eq!(pools[0].queue_timeout, Duration::from_millis(250));
    assert_eq!(pools[1].queue_timeout, Duration::from_secs(30));
    assert_eq!(pools[0].lifetime, Duration::from_secs(1800));
}

#[test]
fn buckets() {
    let shards = "[[shards]]\nname = \"s2\"\nurl = \"postgres://app@db2/crm\"\ncordoned = true\n\
        [[shards]]\nname = \"s3\"\nurl = \"postgres://app@db3/crm\"\n";
    // s2 is cordoned: s3 and s1, in their order, get half each.
    let topology = good(&(shards.to_owned() + &base())).topology;
    assert_eq!(topology.buckets.len(), 4096);
    assert_eq!((topology.buckets[0], topology.buckets[2047]), (1, 1));
    assert_eq!((topology.buckets[2048], topology.buckets[4095]), (2, 2));
    let map =
        "[[buckets]]\nshard = \"s1\"\nfrom = 10\nto = 4095\n[[buckets]]\nshard = \"s2\"\nfrom = 0\nto = 9\n";
    let topology = good(&(shards.to_owned() + map + &base())).topology;
    assert_eq!((topology.buckets[0], topology.buckets[9]), (0, 0));
    assert_eq!((topology.buckets[10], topology.buckets[4095]), (2, 2));
}

#[test]
fn tenants() {
    let text = "[router]\nunknown_tenants = \"create\"\n\
        [[tenants]]\nid = \"x\"\nshard = \"s1\"\npool_mode = \"session\"\ncontext = { role = \"x_{user}\" }\n";
    let topology = good(&(text.to_owned() + &base())).topology;
    let tenant = &topology.tenants[&TenantId::new("x").unwrap()];
    let placement = tenant.placement.clone().unwrap();
    assert_eq!((placement.shard, placement.epoch), (ShardName::new("s1").unwrap(), 1));
    assert_eq!(tenant.pool_mode, Some(PoolMode::Session));
    let context = tenant.context.as_ref().unwrap();
    assert_eq!(context.role.as_deref(), Some("x_{user}"));
    assert!(context.variables.is_empty(), "a tenant's own context replaces the default as a whole");
    assert_eq!(topology.unknown_tenants, UnknownTenants::Create);
}

#[test]
fn issuers() {
    for url in ["https://x.com/k", "http://localhost:8080/k", "http://127.8.9.1/k", "http://[::1]:1/k"] {
        let text = format!("[[jwt]]\nname = \"i\"\njwks_url = \"{url}\"\n{}", base());
        let topology = good(&text).topology;
        let issuer = &topology.jwt[0];
        assert_eq!((issuer.tenant_claim.as_str(), issuer.leeway), ("tenant_id", Duration::from_secs(30)));
        let JwtKeys::Url { url: read, refresh, ca } = &issuer.keys else { panic!("{issuer:?}") };
        assert_eq!((read.as_str(), *refresh, ca), (url, Duration::from_secs(300), &None));
    }
}

#[test]
fn with_a_catalog_the_rest_may_be_left_out() {
    let loaded = good(
        "[catalog]\nurl_env = \"URL\"\npoll = \"1s\"\n"
            .replace("_env = \"URL", " = \"postgres://c/d")
            .as_str(),
    );
    let catalog = loaded.settings.catalog.unwrap();
    assert_eq!(catalog.url.expose_secret(), "postgres://c/d");
    assert_eq!((catalog.poll, catalog.state_file), (Duration::from_secs(1), None));
    assert!(loaded.topology.shards.is_empty() && loaded.topology.buckets.is_empty());
    assert_eq!(loaded.warnings, []);
}

#[test]
fn warnings() {
    let warnings =
        |text: &str| -> Vec<String> { good(text).warnings.iter().map(ToString::to_string).collect() };
    let plain = warnings("[[shards]]\nname = \"s1\"\nurl = \"postgres://a@b/c\"\n");
    assert_eq!(
        plain,
        [
            "router.toml:1: context: nothing is set for a tenant, so that row-level security cannot tell them apart",
            "router.toml:1: users: there are none, so that nobody can log in",
        ]
    );
    let text = base().replace("tenants = \"*\"", "tenants = [\"acme\", \"globex\"]");
    assert_eq!(
        warnings(&text),
        [
            "router.toml:11: users[0].tenants[1]: tenant \"globex\" is not in [[tenants]], so that it is refused"
        ]
    );
    assert_eq!(warnings(&format!("[router]\nunknown_tenants = \"create\"\n{text}")), [""; 0]);
    let own = warnings(&format!("[[tenants]]\nid = \"x\"\n[tenants.context]\n{}", base()));
    assert_eq!(own.len(), 1);
    assert!(own[0].starts_with("router.toml:3: tenants[0].context: nothing is set"), "{own:?}");
    let same = "[[shards]]\nname = \"s2\"\nurl = \"postgres://other@db1:5432/crm\"\n";
    assert!(warnings(&(same.to_owned() + &base()))[0].contains("the same database as shard `s2`"));
}

#[test]
fn many_tenants_load_soon() {
    let mut text = base();
    for i in 0..20_000 {
        text.push_str(&format!("[[tenants]]\nid = \"t{i}\"\nshard = \"s1\"\n"));
    }
    let start = std::time::Instant::now();
    assert_eq!(good(&text).topology.tenants.len(), 20_001);
    // Generous: it is to find what is quadratic, which takes minutes.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn peers_leave_out_the_router_itself() {
    let text = "[router]\nid = 2\n[[peers]]\nid = 1\naddress = \"[::1]:6432\"\nsslmode = \"require\"\n\
        [[peers]]\nid = 2\naddress = \"r2:6432\"\n[[peers]]\nid = 3\naddress = \"r3.internal:7\"\n";
    let settings = good(&(text.to_owned() + &base())).settings;
    let peers: Vec<_> = settings.peers.iter().map(|p| (p.id, p.host.as_str(), p.port, p.tls.mode)).collect();
    use crate::topology::SslMode::{Prefer, Require};
    assert_eq!((settings.id, peers), (2, vec![(1, "::1", 6432, Require), (3, "r3.internal", 7, Prefer)]));
}
