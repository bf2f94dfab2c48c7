use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Health, Scrapes, Server};
use crate::telemetry::metrics::Sample;
use crate::telemetry::status::{Cause, Code, samples};

/// Timeout of a test.
const LIMIT: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    health: Health,
    scrapes: Scrapes,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

async fn start() -> Running {
    let server = Server::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = server.address().unwrap();
    let (health, scrapes) = Health::new();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(server.serve(health.clone(), async {
        let _ = stopped.await;
    }));
    Running {
        address,
        health,
        scrapes,
        stop,
        served,
    }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a text and returns the whole response until the connection closes.
    async fn exchange(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }

    async fn get(&self, path: &str) -> (u16, String) {
        split(&self.exchange(&request("GET", path)).await)
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .expect("the connection to end")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: node\r\n\r\n")
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no header in {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test]
async fn healthz_answers_as_flanneld_does() {
    let server = start().await;
    let expected = (200, "flanneld is running".to_owned());
    assert_eq!(server.get("/healthz").await, expected);
    assert_eq!(server.get("/healthz?verbose=1").await, expected);
}

#[tokio::test]
async fn readyz_follows_the_state_and_gives_reasons() {
    let server = start().await;
    let not_ready = "flanneld is not ready yet".to_owned();
    assert_eq!(server.get("/readyz").await, (503, not_ready));

    server.health.set_ready(Vec::new());
    let ready = "flanneld is ready".to_owned();
    assert_eq!(server.get("/readyz").await, (200, ready));

    server.health.set_ready(vec![
        Cause::new(Code::StoreUnreachable, "etcd is away:\nrefused"),
        Cause::new(Code::LeaseLost, "no lease"),
    ]);
    let reasons = "flanneld is not ready yet\netcd is away: refused [store-unreachable]\nno lease [lease-lost]".to_owned();
    assert_eq!(server.get("/readyz").await, (503, reasons));
}

#[tokio::test]
async fn metrics_are_in_the_text_format() {
    let server = start().await;
    server.health.set_ready(Vec::new());
    let answer = server.exchange(&request("GET", "/metrics")).await;
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{answer}"
    );
    let (status, body) = split(&answer);
    assert_eq!(status, 200);
    assert!(body.contains("\nselvage_ready 1\n"), "{body}");
}

#[tokio::test]
async fn the_loop_is_asked_for_metrics_and_not_too_often() {
    let mut server = start().await;
    let jumps = |count| {
        let mut status = samples::healthy();
        status.clock.jumps = count;
        Sample::joining(status)
    };
    server.health.set_sample(jumps(1));
    let shows =
        |body: &str, count: u64| body.contains(&format!("selvage_clock_jumps_total {count}\n"));
    // A fresh sample is served as it is.
    let (_, body) = server.get("/metrics").await;
    assert!(shows(&body, 1), "{body}");
    assert!(server.scrapes.try_recv().is_err());

    tokio::time::sleep(super::SAMPLE_AGE).await;
    let mut scrapes = std::mem::replace(&mut server.scrapes, tokio::sync::mpsc::channel(1).1);
    let answering = tokio::spawn(async move {
        scrapes.recv().await.unwrap().send(jumps(2)).unwrap();
        scrapes
    });
    let (first, second) = tokio::join!(server.get("/metrics"), server.get("/metrics"));
    assert!(shows(&first.1, 2) && shows(&second.1, 2), "{first:?}");
    // One question served both.
    let mut scrapes = answering.await.unwrap();
    assert!(scrapes.try_recv().is_err());

    // A busy loop does not delay scrapes for long.
    tokio::time::sleep(super::SAMPLE_AGE).await;
    let begin = Instant::now();
    let (_, body) = server.get("/metrics").await;
    assert!(shows(&body, 2), "{body}");
    assert!(begin.elapsed() < super::TIMEOUT + Duration::from_secs(2));
}

#[tokio::test]
async fn head_has_the_header_alone_and_other_methods_and_paths_are_refused() {
    let server = start().await;
    let head = server.exchange(&request("HEAD", "/healthz")).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-length: 19\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");

    let post = "POST /readyz HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\n\r\nhello";
    let answer = server.exchange(post).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");

    for path in ["/", "/healthz/", "/HEALTHZ", "//healthz"] {
        assert_eq!(server.get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn one_connection_gets_one_answer() {
    let server = start().await;
    let twice = request("GET", "/healthz").repeat(2);
    let answer = server.exchange(&twice).await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test]
async fn garbage_and_endless_headers_end_the_connection() {
    let server = start().await;
    let answer = server.exchange("\u{16}\u{3}\u{1}garbage\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let mut stream = server.connect().await;
    // The server may close before everything is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    assert_eq!(server.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn slow_headers_are_cut_off_and_do_not_hold_up_others() {
    let server = start().await;
    let begin = Instant::now();
    let mut slow = server.connect().await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut silent = server.connect().await;
    assert_eq!(server.get("/healthz").await.0, 200);
    assert!(begin.elapsed() < Duration::from_secs(4));
    let slow = read_all(&mut slow).await;
    assert!(
        slow.is_empty() || slow.starts_with("HTTP/1.1 408 "),
        "{slow}"
    );
    assert_eq!(read_all(&mut silent).await, "");
    let elapsed = begin.elapsed();
    assert!(
        (Duration::from_secs(4)..Duration::from_secs(9)).contains(&elapsed),
        "cut off after {elapsed:?}"
    );
}

/// Opens an idle connection from its own source address; the server closes it after some seconds.
async fn silent(server: &Running, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let from = (Ipv4Addr::new(127, 0, 0, host), 0);
    socket.bind(from.into()).unwrap();
    socket.connect(server.address).await.unwrap()
}

/// Whether an idle connection is still open.
async fn is_served(stream: &mut TcpStream) -> bool {
    let request = request("GET", "/healthz");
    stream.write_all(request.as_bytes()).await.is_ok()
        && read_all(stream).await.starts_with("HTTP/1.1 200 ")
}

#[tokio::test]
async fn slow_client_takes_the_place_of_nobody_but_itself() {
    let server = start().await;
    // The first one to time out.
    let mut witness = silent(&server, 9).await;
    let mut idle = Vec::new();
    for _ in 0..crate::base::http::MAX_CONNECTIONS {
        idle.push(server.connect().await);
    }
    // The same address is still served, at once, and its latest connection stays open.
    assert_eq!(server.get("/healthz").await.0, 200);
    assert!(is_served(&mut witness).await, "another one ended");
    assert_eq!(read_all(&mut idle[0]).await, "");
    assert!(is_served(idle.last_mut().unwrap()).await);
}

#[tokio::test]
async fn many_slow_clients_do_not_starve_another_one() {
    let server = start().await;
    let mut witness = silent(&server, 9).await;
    let mut idle = Vec::new();
    // More connections than are served at a time, none from an address over its share.
    for host in 2..=6 {
        for _ in 0..crate::base::http::MAX_PER_ADDRESS {
            idle.push(silent(&server, host).await);
        }
    }
    assert_eq!(server.get("/healthz").await.0, 200);
    assert!(is_served(&mut witness).await, "another one ended");
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_frees_the_port() {
    let server = start().await;
    let mut idle = server.connect().await;
    assert_eq!(server.get("/healthz").await.0, 200);
    let address = server.address;
    server.stop.send(()).unwrap();
    // Sooner than the one second allowed for pending responses.
    timeout(Duration::from_millis(800), server.served)
        .await
        .expect("the server to stop")
        .unwrap();
    assert_eq!(read_all(&mut idle).await, "");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn taken_address_is_named() {
    let server = start().await;
    let error = Server::bind(server.address).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&server.address.to_string()), "{message}");
}
