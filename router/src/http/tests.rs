use std::time::Instant;

use switchyard_config::settings::RouterSettings;
use switchyard_config::topology::Topology;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Running {
    shared: Arc<Shared>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

async fn start() -> Running {
    let shared = Arc::new(Shared::new(RouterSettings::default(), 1, None).unwrap());
    let mut tasks = JoinSet::new();
    let address = serve(&shared, ([127, 0, 0, 1], 0).into(), &mut tasks).await.unwrap();
    Running { shared, address, _tasks: tasks }
}

impl Running {
    /// A topology with a shard that nobody asks anything of.
    fn load(&self) {
        let toml = "[[shards]]\nname = \"s0\"\nurl = \"postgres://app@127.0.0.1:1/crm?sslmode=disable\"\n";
        let loaded =
            switchyard_config::file::parse(toml, std::path::Path::new("test.toml"), &|_| None).unwrap();
        self.shared.replace_topology(Arc::new(loaded.topology)).unwrap();
    }

    /// Status, head and body.
    async fn ask(&self, request: &str) -> (u16, String, String) {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.ask(&line("GET", path)).await;
        (status, body)
    }
}

fn line(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn ready_with_a_shard_and_until_draining() {
    let router = start().await;
    assert_eq!(router.get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(router.get("/readyz").await, (503, "not ready: no shards\n".to_owned()));
    router.load();
    assert_eq!(router.get("/readyz").await, (200, "ok\n".to_owned()));
    let (status, body) = router.get("/readyz?verbose").await;
    assert_eq!(status, 200);
    assert!(body.contains("topology version="), "{body}");
    assert!(body.contains("shard s0 size=20 active=0 idle=0 connecting=0 waiting=0"), "{body}");
    router.shared.enter(Stage::Draining);
    assert_eq!(router.get("/readyz").await, (503, "not ready: draining\n".to_owned()));
    assert_eq!(router.get("/readyz?verbose=1").await.0, 503);
    assert_eq!(router.get("/livez").await.0, 200);
    router.shared.replace_topology(Arc::new(Topology::empty())).unwrap();
    assert_eq!(router.get("/livez").await.0, 200);
}

#[tokio::test]
async fn pages_and_their_parts() {
    let router = start().await;
    let (status, head, all) = router.ask(&line("GET", "/metrics")).await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(all.contains("switchyard_build_info{") && all.contains("tenant=\"_other\""), "{all}");
    let (_, of_router) = router.get("/metrics/router").await;
    assert!(of_router.contains("switchyard_build_info{") && !of_router.contains("tenant=\""), "{of_router}");
    let (_, of_tenants) = router.get("/metrics/tenants?x=y").await;
    assert!(
        !of_tenants.contains("switchyard_build_info{") && of_tenants.contains("tenant=\""),
        "{of_tenants}"
    );
}

#[tokio::test]
async fn methods_and_paths() {
    let router = start().await;
    for path in ["/", "/metrics/", "/metrics/x", "/readyz/", "/LIVEZ", "/../livez"] {
        assert_eq!(router.get(path).await.0, 404, "{path}");
    }
    for path in ["/metrics", "/metrics/tenants", "/livez"] {
        let (status, head, body) = router.ask(&line("HEAD", path)).await;
        assert_eq!((status, body.as_str()), (200, ""), "{path}");
        assert!(head.contains("content-length: ") && !head.contains("content-length: 0"), "{head}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let (status, head, _) = router.ask(&line(method, path)).await;
            assert_eq!(status, 405, "{method} {path}");
            assert!(head.contains("allow: get, head"), "{head}");
        }
    }
}

#[tokio::test]
async fn a_connection_is_kept_and_a_body_is_not_read() {
    let router = start().await;
    let mut socket = TcpStream::connect(router.address).await.unwrap();
    for _ in 0..3 {
        socket.write_all(b"GET /livez HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            assert_ne!(socket.read_buf(&mut answer).await.unwrap(), 0);
        }
    }
    let post = "POST /livez HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000000000\r\n\r\nx";
    assert_eq!(router.ask(post).await.0, 405);
}

#[tokio::test]
async fn heads_are_bounded() {
    let router = start().await;
    let long = format!("GET /livez HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "x".repeat(HEAD_BYTES));
    assert_eq!(router.ask(&long).await.0, 431);
    let many = format!("GET /livez HTTP/1.1\r\nhost: h\r\n{}\r\n", "x: y\r\n".repeat(HEADERS));
    assert_eq!(router.ask(&many).await.0, 431);
    assert_eq!(router.ask("\u{16}\u{3}\u{1} not http\r\n\r\n").await.0, 400);
}

#[tokio::test]
async fn who_says_nothing_loses_the_connection_and_blocks_nobody_for_long() {
    let router = start().await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for n in 0..CONNECTIONS + 5 {
        let mut socket = TcpStream::connect(router.address).await.unwrap();
        if n % 2 == 0 {
            socket.write_all(b"GET /livez HTT").await.unwrap();
        }
        silent.push(socket);
    }
    // The others are waited for, as all places are taken.
    assert_eq!(router.get("/livez").await.0, 200);
    assert!(began.elapsed() < HEAD_TIMEOUT * 3, "{:?}", began.elapsed());
    let mut answer = Vec::new();
    let _ = silent[0].read_to_end(&mut answer).await;
}
