//! What is wrong is all found, at its line, and no secret is shown.

use super::*;

/// Mistakes of many kinds, so that nothing stops at the first.
const MANY: &str = include_str!("many.toml");

#[test]
fn many_mistakes_at_once() {
    assert_eq!(read(MANY).unwrap_err().to_string(), include_str!("many.txt").trim_end());
}

#[test]
fn mistakes_of_syntax_have_lines_too() {
    let errors = read("[router]\nworkers = = 2\n\n[tls\nmode = \"allow\"\n").unwrap_err();
    let lines: Vec<_> = errors.0.iter().map(|e| e.line).collect();
    assert_eq!(lines, [Some(2), Some(4)], "{errors}");
    let twice = read("[router]\nworkers = 2\nworkers = 3\n").unwrap_err();
    assert_eq!(twice.to_string(), "router.toml:3: duplicate key");
}

#[test]
fn a_file_that_cannot_be_read() {
    let missing = load(Path::new("no/such/router.toml")).unwrap_err();
    assert_eq!(missing.to_string(), "no/such/router.toml: no such file");
    let dir = Dir::new("unreadable");
    let path = dir.0.join("latin1.toml");
    std::fs::write(&path, b"name = \"\xe9\"\n").unwrap();
    assert!(load(&path).unwrap_err().to_string().ends_with("latin1.toml: not UTF-8"));
}

/// `text` is added to [`base`]; the one message about it must hold `expected`.
fn one(text: &str, expected: &str) {
    let all = format!("{text}\n{}", base());
    match read(&all) {
        Ok(_) => panic!("accepted: {text}"),
        Err(e) => {
            assert_eq!(e.0.len(), 1, "{e}\nfor\n{text}");
            assert!(e.to_string().contains(expected), "{e}\nrather than\n{expected}\nfor\n{text}");
        }
    }
}

#[test]
fn settings() {
    for (text, expected) in [
        ("rooter = 1", ":1: rooter: unknown key; did you mean `router`?"),
        ("xyzzy = 1", "unknown key; known are `tls`, `router`"),
        ("router = 1", "router: must be a table, not an integer"),
        ("[[router]]", "router: must be a table, not an array"),
        ("[router]\nlisten = \"127.0.0.1:1\"", "router.listen: must be an array, not a string"),
        ("[router]\nlisten = []", "at least one address"),
        ("[router]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", "same address twice"),
        (
            "[router]\nlisten = [\"127.0.0.1:1\",\n\"localhost:1\"]",
            ":3: router.listen[1]: must be an address",
        ),
        ("[router]\nlisten = [\"unix:run:1\"]", "an absolute directory"),
        ("[router]\nworkers = 99999999999999999999999", "from 0 to 1024"),
        ("[router]\nworkers = 1.5", "an integer, not a float"),
        ("[router]\nunknown_tenants = \"ignore\"", "must be one of `refuse`, `create`"),
        ("[router]\nid = 16384", "router.id: must be from 1 to 16383"),
        ("[[peers]]\nid = 1\naddress = \"a:1\"", "peers: need `id` in [router]"),
        (
            "[router]\nid = 9\n[[peers]]\nid = 1\naddress = \"a:1\"\n[[peers]]\nid = 1\naddress = \"b:1\"",
            "there is another peer 1",
        ),
        ("[router]\nid = 9\n[[peers]]\nid = 1\naddress = \"a\"", "must be a host and a port"),
        ("[router]\nid = 9\n[[peers]]\naddress = \"a:1\"", "peers[0].id: is missing"),
        ("[tls]\nmode = \"require\"", "tls.mode: needs `cert` and `key`"),
        ("[tls]\nkey = \"Cargo.toml\"", "tls.key: needs `cert` too"),
        ("[tls]\ncert = \"Cargo.toml\"", "tls.cert: needs `key` too"),
        ("[tls]\ncert = \"Cargo.toml\"\nkey = \"src\"", "tls.key: src is a directory"),
        ("[tls]\nclient_ca = \"Cargo.toml\"", "tls.client_ca: needs `cert` too"),
        ("[login]\nmd5 = \"yes\"", "must be true or false, not a string"),
        ("[identity]\nsni_suffix = \"db.example.com\"", "must be such as .db.example.com"),
        ("[identity]\nuser_separators = [\"x\"]", "must be one character"),
        ("[identity]\nstartup_parameter = \"user\"", "a meaning of its own"),
        ("[identity]\ndatabase = \"tenant\"", "must hold {tenant} once"),
        ("[identity]\ndatabase = \"{tenant}{x}\"", "not {x}"),
        ("[limits]\nlogin_timeout = \"10ms\"", "must be from 100ms to 1h"),
        ("[limits]\ndrain_timeout = \"1w\"", "a number and a unit"),
        ("[limits]\ntoken_bytes = \"2MiB\"", "from 1024 to 1048576 bytes"),
        ("[limits]\nclients = 0", "from 1 to 10000000"),
        ("[catalog]", "catalog.url: is missing"),
        ("[catalog]\nurl = \"host=x\"", "catalog.url: must begin with postgres://"),
        ("[catalog]\nurl_env = \"NOPE\"", "catalog.url_env: the environment has no `NOPE`"),
        ("[catalog]\nurl = \"postgres://x\"\nstate_file = \"no/such/x\"", "no/such: no such directory"),
        ("[catalog]\nurl = \"postgres://x\"\nurl_file = \"y\"", "catalog.url: give one of `url`, `url_file`"),
    ] {
        one(text, expected);
    }
}

#[test]
fn shards_and_buckets() {
    let shard = |rest: &str| format!("[[shards]]\nname = \"s2\"\nurl = \"postgres://app@db2/crm\"\n{rest}\n");
    for (text, expected) in [
        ("[[shards]]\nname = \"s 2\"\nurl = \"postgres://a@b/c\"", ":2: shards[0].name: may contain letters"),
        ("[[shards]]\nname = \"s2\"", ":1: shards[0].url: is missing"),
        (
            "[[shards]]\nname = \"s2\"\nurl = \"postgres://a@b/c?sslmode=on\"",
            "shards[0].url: sslmode must be",
        ),
        (
            "[[shards]]\nname = \"s2\"\nurl = \"postgres://a@b/c?sslrootcert=x.pem\"",
            ".url: x.pem: no such file",
        ),
        (
            "[[shards]]\nname = \"s2\"\nurl = \"postgres://a:hunter2@b/c\"\npassword = \"hunter3\"",
            "url: holds a password, and another is given",
        ),
        (&shard("password = \"\""), "shards[0].password: the secret is empty"),
        (&shard("password_file = \"no/file\""), "shards[0].password_file: no/file: no such file"),
        (&shard("password = \"a\"\nscram_keys = \"b\""), "not both"),
        (&shard("scram_keys = \"hunter2\""), "shards[0].scram_keys: must read SCRAM-SHA-256-KEYS$"),
        (&shard(&format!("scram_keys = \"{SCRAM}\"")), "by which nobody can log in"),
        (&shard("pool = { min = 30 }"), "shards[0].pool.min: must not be more than `size`, which is 20"),
        (&shard("[[buckets]]\nshard = \"s2\"\nfrom = 0\nto = 9"), "buckets: 10 to 4095 belong to no shard"),
        (&shard("[[buckets]]\nshard = \"s2\"\nfrom = 9\nto = 0"), "must not be less than `from`"),
        (&shard("[[buckets]]\nshard = \"s2\"\nfrom = 0\nto = 4096"), "buckets[0].to: must be from 0 to 4095"),
        ("[buckets]\nshard = \"s1\"", "write [[buckets]], not [buckets]"),
        ("buckets = []", "buckets: 0 to 4095 belong to no shard"),
        (
            "[[buckets]]\nshard = \"s1\"\nfrom = 0\nto = 4095\n[[buckets]]\nshard = \"s1\"\nfrom = 7\nto = 7",
            ":5: buckets[1]: bucket 7 is given twice",
        ),
    ] {
        one(text, expected);
    }
    let cordoned = base().replace("db1/crm\"", "db1/crm\"\ncordoned = true");
    assert!(read(&cordoned).unwrap_err().to_string().contains("shards: every shard is cordoned"));
    assert!(read("").unwrap_err().to_string().contains("shards: is missing"));
}

#[test]
fn tenants_and_users() {
    let user = |rest: &str| format!("[[users]]\nname = \"u\"\n{rest}\n");
    let verified = |rest: &str| user(&format!("verifier = \"{SCRAM}\"\n{rest}"));
    for (text, expected) in [
        ("[[tenants]]\nid = \"acme\"", "there is another tenant \"acme\""),
        ("[[tenants]]\nid = \"a\\nb\"", "tenants[0].id: must not contain control characters"),
        ("[[tenants]]\nid = \"x\"\nshard = \"s3\"", "there is no shard \"s3\"; did you mean `s1`?"),
        ("[[tenants]]\nid = \"x\"\nstate = \"gone\"", "must be one of `active`, `read-only`, `suspended`"),
        ("[[tenants]]\nid = \"x\"\ncontext = { role = \"{x}\" }", "tenants[0].context.role: knows {tenant}"),
        (
            "[[tenants]]\nid = \"x\"\ncontext = { search_path = [\"a\", \"\"] }",
            "search_path[1]: must not be empty",
        ),
        (&verified(""), "users[0].tenants: is missing"),
        (&verified("tenants = []"), "at least one tenant"),
        (&verified("tenants = \"acme\""), "for one tenant there is `tenant`"),
        (&verified("tenants = [\"acme\", \"acme\"]"), "names tenant \"acme\" twice"),
        (&verified("tenant = \"acme\"\ntenants = \"*\""), "not both"),
        (&verified("tenant = \"acme\"\nserver_password = \"x\""), "needs `server_user` too"),
        (&verified("tenant = \"acme\"\nname2 = \"x\""), "users[0].name2: unknown key; did you mean `name`?"),
        (&user("tenant = \"acme\""), "users[0]: has no way to log in"),
        (&user("tenant = \"acme\"\nverifier = \"hunter2\""), "`switchyard auth hash`"),
        (
            &user("tenant = \"acme\"\nverifier = \"md53175bce1d3201d16594cebf9d7eb3f9d\""),
            "is md5, which is off",
        ),
        (&user("tenant = \"acme\"\ntrust = true"), "users[0].trust: is off"),
        (&user("tenant = \"acme\"\ncert = true"), "needs `client_ca` in [tls]"),
        (&user("tenant = \"acme\"\njwt = true"), "needs an issuer"),
        (
            &verified("tenants = \"*\"\n").replace("\"u\"", "\"app\""),
            "users[1].name: there is another user \"app\"",
        ),
    ] {
        one(text, expected);
    }
}

#[test]
fn issuers() {
    let jwt = |rest: &str| format!("[[jwt]]\nname = \"i\"\n{rest}\n");
    let key = |key: &str| jwt(&format!("keys = [{{ {key} }}]"));
    for (text, expected) in [
        (jwt(""), "jwt[0]: give exactly one of `keys`, `jwks_file`, `jwks_url`"),
        (jwt("keys = []"), "at least one key"),
        (jwt("jwks_file = \"no.json\""), "jwt[0].jwks_file: no.json: no such file"),
        (jwt("jwks_file = \"Cargo.toml\"\nrefresh = \"1m\""), "is for `jwks_url` only"),
        (jwt("jwks_url = \"http://10.0.0.1/k\""), "http:// is for loopback"),
        (jwt("jwks_url = \"http://localhost.evil.com/k\""), "http:// is for loopback"),
        (jwt("jwks_url = \"http://127.0.0.1@evil.com/k\""), "must not hold a user"),
        (jwt("jwks_url = \"https://u:hunter2@x.com/k\""), "must not hold a user"),
        (jwt("jwks_url = \"ftp://x.com/k\""), "must begin with https://"),
        (jwt("jwks_url = \"x.com/k\""), "must be a URL"),
        (key("algorithm = \"none\", secret_env = \"SECRET\""), "`HS256`, `RS256`, `ES256`, `EdDSA`"),
        (
            key("algorithm = \"HS256\", secret = \"hunter2\""),
            "jwt[0].keys[0].secret: must be at least 32 bytes",
        ),
        (key("algorithm = \"HS256\""), "jwt[0].keys[0].secret: is missing"),
        (key("algorithm = \"RS256\", secret_env = \"SECRET\""), "RS256 takes `public_key`, not `secret`"),
        (key("algorithm = \"ES256\", public_key = \"x\""), "must be a public key in PEM"),
        (key("algorithm = \"ES256\", public_key = \"-----BEGIN PRIVATE KEY-----\""), "holds a private key"),
        (
            jwt("jwks_url = \"https://x.com/k\"") + &jwt("jwks_url = \"https://x.com/k\""),
            "another issuer \"i\"",
        ),
    ] {
        one(&text, expected);
    }
}

#[test]
fn no_secret_is_shown() {
    let errors = read(MANY).unwrap_err();
    assert!(!format!("{errors} {errors:?}").contains("hunter"), "{errors}");
    // A quote forgotten after a secret: the parser must not quote the line.
    for text in ["x = 'hunter2", "x = \"hunter2\ny = 1", "x = hunter2", "hunter2", "x = \"\\hunter2\""] {
        let errors = read(text).unwrap_err();
        assert!(!format!("{errors} {errors:?}").contains("hunter2"), "{errors}");
    }
}
