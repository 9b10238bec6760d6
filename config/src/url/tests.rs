use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::*;

fn shard(url: &str) -> Result<Shard, UrlError> {
    shard_from_url(&ShardName::new("s1").unwrap(), url)
}

fn password(shard: &Shard) -> Option<&str> {
    match &shard.login.secret {
        ServerSecret::Password(p) => Some(p.expose_secret()),
        _ => None,
    }
}

#[test]
fn all_parts() {
    let s = shard(
        "postgresql://app:p%40ss%2F%25@db1.example.com:6543/crm%20db?sslmode=verify-full&sslrootcert=/etc/ca.pem&sslcert=c.pem&sslkey=k%26.pem",
    )
    .unwrap();
    assert_eq!((s.host.as_str(), s.port, s.database.as_str()), ("db1.example.com", 6543, "crm db"));
    assert_eq!((s.login.user.as_str(), password(&s)), ("app", Some("p@ss/%")));
    assert_eq!(s.tls.mode, SslMode::VerifyFull);
    assert_eq!(s.tls.root_cert, Some("/etc/ca.pem".into()));
    assert_eq!(s.tls.cert, Some("c.pem".into()));
    assert_eq!(s.tls.key, Some("k&.pem".into()));
}

#[test]
fn defaults() {
    for url in
        ["postgres://app@db1", "postgres://app@db1/", "postgres://app:@db1:/?", "postgres://db1?user=app"]
    {
        let s = shard(url).unwrap();
        assert_eq!((s.host.as_str(), s.port, s.database.as_str()), ("db1", 5432, "app"), "{url}");
        assert_eq!(s.tls, ServerTls::default());
        assert!(password(&s).is_none());
        assert!(!s.cordoned);
    }
}

#[test]
fn addresses() {
    let host = |url: &str| shard(url).map(|s| (s.host, s.port));
    assert_eq!(host("postgres://u@[::1]:7/d"), Ok(("::1".to_owned(), 7)));
    assert_eq!(host("postgres://u@[fe80::2]/d"), Ok(("fe80::2".to_owned(), 5432)));
    assert_eq!(host("postgres://u@10.0.0.1/d"), Ok(("10.0.0.1".to_owned(), 5432)));
    for bad in ["[::1", "[::1]x", "[zz]", "[127.0.0.1]", "a b", "a@b", "::1"] {
        let got = host(&format!("postgres://u@{bad}/d"));
        assert!(matches!(got, Err(UrlError::Host | UrlError::Port)), "{bad}: {got:?}");
    }
    assert_eq!(host("postgres://u@a,/d"), Err(UrlError::Host));
    assert_eq!(host("postgres://u@,b/d"), Err(UrlError::Host));
    assert_eq!(host("postgres://u@/d?host=a,b"), Err(UrlError::Hosts));
}

#[test]
fn unix_sockets() {
    for url in [
        "postgres://u@/d?host=/run/postgresql&port=5433&sslmode=require",
        "postgres://u@%2Frun%2Fpostgresql:5433/d",
        "postgres:///d?host=/run/postgresql&port=5433&user=u",
    ] {
        let s = shard(url).unwrap();
        assert_eq!((s.host.as_str(), s.port, s.database.as_str()), ("/run/postgresql", 5433, "d"), "{url}");
        assert_eq!(s.tls.mode, SslMode::Disable, "{url}");
    }
}

#[test]
fn what_is_refused() {
    use UrlError::*;
    for (url, error) in [
        ("", Scheme),
        ("mysql://u@h/d", Scheme),
        ("host=h user=u", Scheme),
        ("postgres://h/d", NoUser),
        ("postgres://u@/d", NoHost),
        ("postgres://u@h:0/d", Port),
        ("postgres://u@h:65536/d", Port),
        ("postgres://u@h:+1/d", Port),
        ("postgres://u:p@ss@h/d", Host),
        ("postgres://u:p%zz@h/d", Escape("password")),
        ("postgres://u%@h/d", Escape("user")),
        ("postgres://u@h/%ff", Escape("database")),
        ("postgres://u@h/d%00", Control("database")),
        ("postgres://u:a%0ab@h/d", Control("password")),
        ("postgres://u@h/d?sslmode=verify", SslMode),
        ("postgres://u@h/d?application_name=x", Parameter),
        ("postgres://u@h/d?sslmode", Parameter),
        ("postgres://u@h/d?host=/run", Twice("host")),
        ("postgres://u@h/d?user=v", Twice("user")),
        ("postgres://u@h/d?dbname=e", Twice("database")),
        ("postgres://u:p@h/d?password=q", Twice("password")),
        ("postgres://u@h:1/d?port=1", Twice("port")),
        ("postgres://u@h/d?sslmode=allow&sslmode=require", Twice("sslmode")),
        ("postgres://u@h/d?sslcert=c", CertWithoutKey),
        ("postgres://u@h/d?sslrootcert=system&sslmode=require", SystemRoots),
    ] {
        assert_eq!(shard(url).unwrap_err(), error, "{url}");
    }
    let s = shard("postgres://u@h/d?sslrootcert=system&sslmode=verify-full").unwrap();
    assert_eq!(s.tls.root_cert, None);
}

#[test]
fn no_error_holds_the_password() {
    for url in [
        "postgres://u:hunter@hunter@h/d",
        "postgres://u:hunter/hunter@h/d",
        "postgres://u:hunter?hunter@h/d",
        "postgres://u:hunter?hunter=hunter@h/d",
        "postgres://u:hunter%@h/d",
        "postgres:/u:hunter@h/d",
    ] {
        let error = shard(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter"), "{url}: {error}");
    }
}

proptest! {
    #[test]
    fn anything_is_read_or_refused(rest in ".{0,80}") {
        let _ = shard(&rest);
        let _ = shard(&format!("postgres://{rest}"));
    }

    #[test]
    fn what_is_escaped_comes_back(user in "[^\\p{Cc}]{1,20}", pass in "[^\\p{Cc}]{1,20}", db in "[^\\p{Cc}]{1,20}") {
        let escape = |s: &str| s.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
        let s = shard(&format!("postgres://{}:{}@h/{}", escape(&user), escape(&pass), escape(&db))).unwrap();
        prop_assert_eq!(&s.login.user, &user);
        prop_assert_eq!(password(&s), Some(pass.as_str()));
        prop_assert_eq!(&s.database, &db);
    }
}

#[test]
fn several_hosts_as_in_libpq() {
    let shard = shard_from_url(&ShardName::new("s").unwrap(), "postgres://u@a:1,b,[::1]:3/d").unwrap();
    let hosts: Vec<_> = shard.endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a:1", "b:5432", "[::1]:3"]);
}
