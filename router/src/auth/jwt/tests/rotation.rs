//! Keys that change in a file or at an address.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::source::Pace;
use super::*;
use crate::tls::tests::{Ca, Dir, Pair, leaf};

/// Goes on at once, where real ones wait for seconds.
const QUICK: Pace = Pace { again: Duration::ZERO, first: Duration::ZERO, timeout: Duration::from_secs(5) };

fn verifier(pace: Pace) -> JwtVerifier {
    JwtVerifier { sources: Sources::new(pace) }
}

fn document(keys: &[(&Signer, &str)]) -> Vec<u8> {
    let keys: Vec<Value> = keys.iter().map(|(signer, kid)| signer.jwk(kid)).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

fn token(signer: &Signer, kid: &str) -> String {
    signer.token(Some(kid), &good(json!({})))
}

async fn outcome(verifier: &JwtVerifier, token: &str, issuer: &Arc<JwtIssuer>) -> &'static str {
    let result = verifier.verify(token, std::slice::from_ref(issuer), &[]).await;
    result.map_or_else(|e| e.label(), |_| "good")
}

#[tokio::test]
async fn a_file() {
    let dir = Dir::new();
    let path = dir.path("jwks.json");
    let (old, new) = (Signer::es(), Signer::rs());
    let trusted = Arc::new(issuer(JwtKeys::File(path.clone())));
    let verifier = JwtVerifier::new();
    let check = async |signer: &Signer, kid: &str| outcome(&verifier, &token(signer, kid), &trusted).await;

    assert_eq!(check(&old, "old").await, "keys_unavailable");
    fs::write(&path, document(&[(&old, "old")])).unwrap();
    assert_eq!(check(&old, "old").await, "good");
    assert_eq!(check(&new, "new").await, "unknown_key");

    // Renamed over it, as careful people do.
    let next = dir.path("next.json");
    fs::write(&next, document(&[(&old, "old"), (&new, "new")])).unwrap();
    fs::rename(&next, &path).unwrap();
    assert_eq!(check(&new, "new").await, "good");
    assert_eq!(check(&old, "old").await, "good");

    // Written into: half of it says nothing, and nothing is lost.
    let whole = document(&[(&new, "new")]);
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(check(&old, "old").await, "good");
    fs::write(&path, &whole).unwrap();
    assert_eq!(check(&old, "old").await, "unknown_key");
    assert_eq!(check(&new, "new").await, "good");

    fs::remove_file(&path).unwrap();
    assert_eq!(check(&new, "new").await, "good");
    fs::write(&path, r#"{"keys":[]}"#).unwrap();
    assert_eq!(check(&new, "new").await, "unknown_key");
}

#[tokio::test]
async fn files_that_are_none() {
    let dir = Dir::new();
    let fifo = dir.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let big = dir.path("big");
    fs::write(&big, vec![b' '; 3 << 20]).unwrap();
    for path in [Path::new("/dev/zero"), &fifo, &big, Path::new("/tmp"), Path::new("/nonexistent/jwks")] {
        let trusted = Arc::new(issuer(JwtKeys::File(path.to_owned())));
        let label = outcome(&JwtVerifier::new(), &token(&Signer::hs(), "k"), &trusted).await;
        assert_eq!(label, "keys_unavailable", "{}", path.display());
    }
}

/// A server of key sets, with what it answers next and how often it was asked.
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<(StatusCode, Vec<u8>)>>,
    asked: Arc<AtomicUsize>,
    delay: Arc<Mutex<Duration>>,
}

impl Server {
    async fn start(tls: Option<TlsAcceptor>, first: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(Mutex::new((StatusCode::OK, first))),
            asked: Arc::default(),
            delay: Arc::default(),
        };
        let (answer, asked, delay) = (server.answer.clone(), server.asked.clone(), server.delay.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, asked, delay) = (answer.clone(), asked.clone(), delay.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    assert_eq!(request.uri().path(), "/jwks.json");
                    asked.fetch_add(1, Ordering::SeqCst);
                    let (status, body) = answer.lock().clone();
                    let pause = *delay.lock();
                    async move {
                        tokio::time::sleep(pause).await;
                        let mut response = Response::new(Full::new(Bytes::from(body)));
                        *response.status_mut() = status;
                        Ok::<_, Infallible>(response)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                match &tls {
                    None => drop(tokio::spawn(http.serve_connection(TokioIo::new(stream), service))),
                    Some(tls) => {
                        let accept = tls.accept(stream);
                        tokio::spawn(async move {
                            if let Ok(stream) = accept.await {
                                let _ = http.serve_connection(TokioIo::new(stream), service).await;
                            }
                        });
                    }
                }
            }
        });
        server
    }

    fn issuer(&self, refresh: Duration) -> Arc<JwtIssuer> {
        let url = format!("http://{}/jwks.json", self.address);
        Arc::new(issuer(JwtKeys::Url { url, refresh, ca: None }))
    }

    fn serve(&self, status: StatusCode, body: impl Into<Vec<u8>>) {
        *self.answer.lock() = (status, body.into());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_address_is_asked_again_for_an_unknown_key() {
    let (old, new) = (Signer::es(), Signer::ed());
    let server = Server::start(None, document(&[(&old, "old")])).await;
    let trusted = server.issuer(LONG);
    let verifier = verifier(QUICK);
    for _ in 0..3 {
        assert_eq!(outcome(&verifier, &token(&old, "old"), &trusted).await, "good");
    }
    assert_eq!(server.asked(), 1);
    server.serve(StatusCode::OK, document(&[(&new, "new")]));
    assert_eq!(outcome(&verifier, &token(&new, "new"), &trusted).await, "good");
    assert_eq!(server.asked(), 2);
    assert_eq!(outcome(&verifier, &token(&old, "old"), &trusted).await, "unknown_key");
    // A bad signature by a key that is known is no reason to ask.
    let asked = server.asked();
    assert_eq!(outcome(&verifier, &token(&Signer::ed(), "new"), &trusted).await, "signature");
    assert_eq!(server.asked(), asked);
}

#[tokio::test]
async fn strangers_cannot_make_us_ask_often() {
    let signer = Signer::es();
    let server = Server::start(None, document(&[(&signer, "k")])).await;
    let trusted = server.issuer(LONG);
    let verifier = JwtVerifier::new();
    for i in 0..50 {
        assert_eq!(outcome(&verifier, &token(&signer, &format!("x{i}")), &trusted).await, "unknown_key");
    }
    assert_eq!(server.asked(), 1);
    assert_eq!(outcome(&verifier, &token(&signer, "k"), &trusted).await, "good");
}

#[tokio::test]
async fn many_who_wait_share_one_fetch() {
    let signer = Signer::es();
    let server = Server::start(None, document(&[(&signer, "k")])).await;
    *server.delay.lock() = Duration::from_millis(200);
    let trusted = server.issuer(LONG);
    let verifier = Arc::new(JwtVerifier::new());
    let token = token(&signer, "k");
    // On runtimes of their own, as the workers are.
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (verifier, trusted, token) = (verifier.clone(), trusted.clone(), token.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(outcome(&verifier, &token, &trusted))
            })
        })
        .collect();
    let labels = tokio::task::spawn_blocking(move || {
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(labels.await.unwrap(), ["good"; 8]);
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_nothing_with_it() {
    let signer = Signer::es();
    let server = Server::start(None, document(&[(&signer, "k")])).await;
    *server.delay.lock() = Duration::from_millis(150);
    let trusted = server.issuer(LONG);
    let verifier = JwtVerifier::new();
    let token = token(&signer, "k");
    let gone = tokio::time::timeout(Duration::from_millis(20), outcome(&verifier, &token, &trusted)).await;
    assert!(gone.is_err());
    assert_eq!(outcome(&verifier, &token, &trusted).await, "good");
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn old_keys_are_refreshed_without_waiting() {
    let (old, new) = (Signer::es(), Signer::es());
    let server = Server::start(None, document(&[(&old, "old")])).await;
    let trusted = server.issuer(Duration::ZERO);
    let verifier = verifier(QUICK);
    assert_eq!(outcome(&verifier, &token(&old, "old"), &trusted).await, "good");
    server.serve(StatusCode::OK, document(&[(&new, "new")]));
    *server.delay.lock() = Duration::from_millis(300);
    let began = Instant::now();
    assert_eq!(outcome(&verifier, &token(&old, "old"), &trusted).await, "good");
    assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    // The key that was taken back is gone once the fetch is over.
    let end = Instant::now() + Duration::from_secs(10);
    while outcome(&verifier, &token(&old, "old"), &trusted).await == "good" {
        assert!(Instant::now() < end, "the old key is still trusted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_failure_changes_nothing() {
    let signer = Signer::es();
    let server = Server::start(None, document(&[(&signer, "k")])).await;
    let trusted = server.issuer(LONG);
    let verifier = verifier(QUICK);
    assert_eq!(outcome(&verifier, &token(&signer, "k"), &trusted).await, "good");
    let empty = br#"{"keys":[]}"#.to_vec();
    for (status, body) in [
        (StatusCode::INTERNAL_SERVER_ERROR, empty.clone()),
        (StatusCode::NOT_FOUND, empty.clone()),
        (StatusCode::FOUND, empty.clone()),
        (StatusCode::OK, b"<html>".to_vec()),
        (StatusCode::OK, b"{}".to_vec()),
        (StatusCode::OK, vec![b' '; (1 << 20) + 1]),
    ] {
        let asked = server.asked();
        server.serve(status, body);
        assert_eq!(outcome(&verifier, &token(&signer, "new"), &trusted).await, "unknown_key");
        assert_eq!(server.asked(), asked + 1);
        assert_eq!(outcome(&verifier, &token(&signer, "k"), &trusted).await, "good", "{status}");
    }
    // An empty set is an answer: all keys have been taken back.
    server.serve(StatusCode::OK, empty);
    assert_eq!(outcome(&verifier, &token(&signer, "new"), &trusted).await, "unknown_key");
    assert_eq!(outcome(&verifier, &token(&signer, "k"), &trusted).await, "unknown_key");
}

#[tokio::test]
async fn an_address_that_does_not_answer() {
    let signer = Signer::es();
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Arc::new(issuer(JwtKeys::Url {
        url: format!("http://{}/jwks.json", unused.local_addr().unwrap()),
        refresh: LONG,
        ca: None,
    }));
    let pace = Pace { timeout: Duration::from_millis(100), ..Pace::default() };
    let began = Instant::now();
    assert_eq!(outcome(&verifier(pace), &token(&signer, "k"), &silent).await, "keys_unavailable");
    assert!(began.elapsed() < Duration::from_secs(3));
    let nowhere = |url: &str| Arc::new(issuer(JwtKeys::Url { url: url.to_owned(), refresh: LONG, ca: None }));
    for url in ["http://127.0.0.1:1/", "http://idp.example.com/", "nonsense", "https://user:pw@127.0.0.1/"] {
        assert_eq!(
            outcome(&JwtVerifier::new(), &token(&signer, "k"), &nowhere(url)).await,
            "keys_unavailable"
        );
    }
}

#[tokio::test]
async fn over_tls_by_an_authority_of_our_choice() {
    let dir = Dir::new();
    let (ours, other) = (Ca::new("ours"), Ca::new("other"));
    let pair = Pair::signed(&dir, "idp", &ours, &leaf("idp", &["localhost"]));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(pair.chain(), pair.private_key())
        .unwrap();
    let signer = Signer::rs();
    let server = Server::start(Some(TlsAcceptor::from(Arc::new(config))), document(&[(&signer, "k")])).await;
    let port = server.address.port();
    let trusted = |host: &str, ca: &Ca| {
        let ca = Some(dir.write(&format!("{host}.crt"), &ca.pem));
        Arc::new(issuer(JwtKeys::Url { url: format!("https://{host}:{port}/jwks.json"), refresh: LONG, ca }))
    };
    let check = async |issuer| outcome(&JwtVerifier::new(), &token(&signer, "k"), &issuer).await;
    assert_eq!(check(trusted("localhost", &ours)).await, "good");
    assert_eq!(check(trusted("localhost", &other)).await, "keys_unavailable");
    assert_eq!(check(trusted("127.0.0.1", &ours)).await, "keys_unavailable");
}
