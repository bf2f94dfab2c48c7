//! How a host looks after its lease, before a server that answers when and what the test wants.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use selvage::cluster::lease::remote::RemoteStore;
use selvage::cluster::lease::{LeaseStore, StoreEvent};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::stores::{attrs, settings, wait_for};
use crate::wait::PATIENCE;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

const FIRST: &str = "/v1/_/leases/10.5.1.0-24";
const SECOND: &str = "/v1/_/leases/10.5.2.0-24";

/// What was asked, as `PUT /path`.
type Asked = watch::Sender<Vec<String>>;

/// The server's side of a conversation.
struct Fake {
    url: String,
    /// Every request that came.
    asked: Asked,
    /// Those whose connection was closed since: the client knows the answer, or does not want it any more.
    over: Asked,
}

/// An answer: status, kind of error, body.
type Answer = (u16, &'static str, String);

fn ok(body: impl Into<String>) -> Answer {
    (200, "", body.into())
}

fn no_lease() -> Answer {
    (500, "no-lease", "it is somebody else's\n".to_owned())
}

/// A lease as a server of ours tells of it.
fn lease(subnet: &str, ttl: u32) -> Answer {
    ok(format!(
        r#"{{"Subnet":"{subnet}/24","Attrs":{{"PublicIP":"10.0.0.1","BackendType":"vxlan"}},"TTL":{ttl},"Created":7}}"#
    ))
}

/// All leases: none, so that a host which holds one asks after it.
fn nothing() -> Answer {
    ok(r#"{"events":null,"snapshot":[],"cursor":"1"}"#)
}

/// The change of another host's lease, or of one that was changed by somebody else.
fn change(subnet: &str) -> Answer {
    ok(format!(
        r#"{{"events":[{{"type":"added","lease":{{"Subnet":"{subnet}/24","Attrs":{{"PublicIP":"10.0.0.99"}}}}}}],"snapshot":null,"cursor":"1"}}"#
    ))
}

impl Fake {
    /// Serves what `answer` says to `PUT /path` and the query.
    async fn start<F>(
        answer: impl Fn(Arc<Self>, String, String) -> F + Clone + Send + Sync + 'static,
    ) -> Arc<Self>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            asked: Asked::default(),
            over: Asked::default(),
        });
        let accepting = Arc::clone(&fake);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (fake, answer) = (Arc::clone(&accepting), answer.clone());
                tokio::spawn(async move {
                    let own = Arc::new(Mutex::new(Vec::new()));
                    let service = service_fn(|request: Request<Incoming>| {
                        let line = format!("{} {}", request.method(), request.uri().path());
                        let query = request.uri().query().unwrap_or_default().to_owned();
                        own.lock().unwrap().push(line.clone());
                        fake.asked.send_modify(|asked| asked.push(line.clone()));
                        let answering = answer(Arc::clone(&fake), line, query);
                        async move {
                            let (status, reason, body) = answering.await;
                            let response = Response::builder()
                                .status(status)
                                .header("selvage-reason", reason)
                                .body(Full::new(Bytes::from(body)));
                            Ok::<_, Infallible>(response.unwrap())
                        }
                    });
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    fake.over
                        .send_modify(|over| over.append(&mut own.lock().unwrap()));
                });
            }
        });
        fake
    }

    fn client(&self) -> RemoteStore {
        let servers = [self.url.clone()];
        RemoteStore::new(&settings(&servers), "machine".to_owned()).unwrap()
    }

    fn count(&self, line: &str) -> usize {
        let asked = self.asked.borrow();
        asked.iter().filter(|asked| *asked == line).count()
    }
}

/// Waits until a request is among these.
async fn has(lines: &Asked, line: &str) {
    let mut lines = lines.subscribe();
    let waiting = lines.wait_for(|lines| lines.iter().any(|there| there == line));
    let found = timeout(PATIENCE, waiting).await;
    assert!(found.is_ok(), "waited in vain for {line}");
}

async fn acquire(store: &mut RemoteStore) -> String {
    let config = store.network_config().await.unwrap();
    let lease = store.acquire(&config, &attrs(1), None).await;
    lease.unwrap().key.name()
}

/// The network config changes while a host joins, and the server gives it another subnet. What was on its way for the former
/// lease is refused.
#[tokio::test]
async fn refusal_of_the_former_lease_leaves_the_present_one_alone() {
    let given = Arc::new(AtomicUsize::new(0));
    let fake = Fake::start(move |fake, line, query| {
        let given = Arc::clone(&given);
        async move {
            let (put, delete) = (format!("PUT {FIRST}"), format!("DELETE {FIRST}"));
            match line.as_str() {
                "GET /v1/_/config" => ok(CONFIG),
                "GET /v1/_/leases" if query.contains("next=") => std::future::pending().await,
                "GET /v1/_/leases" => nothing(),
                "POST /v1/_/leases" => match given.fetch_add(1, Ordering::Relaxed) {
                    0 => lease("10.5.1.0", 3600),
                    _ => lease("10.5.2.0", 3600),
                },
                // It is given back while it is to be extended.
                line if line == put => {
                    has(&fake.asked, &delete).await;
                    no_lease()
                }
                line if line == delete => {
                    has(&fake.over, &put).await;
                    ok("")
                }
                _ => lease("10.5.2.0", 3600),
            }
        }
    })
    .await;
    let mut store = fake.client();
    assert_eq!(acquire(&mut store).await, "10.5.1.0-24");
    has(&fake.asked, &format!("PUT {FIRST}")).await;
    assert_eq!(acquire(&mut store).await, "10.5.2.0-24");

    // It is looked after.
    let put = format!("PUT {SECOND}");
    tokio::select! {
        () = has(&fake.asked, &put) => {}
        reason = lost(&mut store) => panic!("{reason}"),
    }
    store.update(&attrs(2)).await.unwrap();
}

async fn lost(store: &mut RemoteStore) -> String {
    loop {
        if let StoreEvent::OwnLeaseLost { reason } = store.next_event().await {
            return reason;
        }
    }
}

/// Somebody keeps changing the lease, so the host looks after it ever more seldom; it is extended in time all the same.
#[tokio::test]
async fn lease_that_somebody_keeps_changing_is_extended_in_time() {
    const TTL: u32 = 4;
    let extended = Arc::new(Mutex::new(Instant::now()));
    let fake = Fake::start(move |_, line, query| {
        let extended = Arc::clone(&extended);
        async move {
            match line.as_str() {
                "GET /v1/_/config" => ok(CONFIG),
                "GET /v1/_/leases" if query.contains("next=") => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    change("10.5.1.0")
                }
                "GET /v1/_/leases" => nothing(),
                _ => {
                    let before = {
                        let mut extended = extended.lock().unwrap();
                        std::mem::replace(&mut *extended, Instant::now())
                    };
                    let late = before.elapsed() > Duration::from_secs(TTL.into());
                    match late && line.starts_with("PUT") {
                        true => no_lease(),
                        false => lease("10.5.1.0", TTL),
                    }
                }
            }
        }
    })
    .await;
    let mut store = fake.client();
    acquire(&mut store).await;
    // By then the pauses between two looks are longer than the lease.
    let often = async {
        let put = format!("PUT {FIRST}");
        let mut asked = fake.asked.subscribe();
        let waiting =
            asked.wait_for(|asked| asked.iter().filter(|line| **line == put).count() > 24);
        timeout(PATIENCE, waiting)
            .await
            .map(drop)
            .expect("25 times");
    };
    tokio::select! {
        () = often => {}
        reason = lost(&mut store) => panic!("{reason}"),
    }
}

/// A consumer that is far behind hears in the end that the lease is extended again, and not only hours later.
#[tokio::test]
async fn end_of_a_trouble_is_told_to_whoever_was_too_slow_to_hear_it() {
    let (refusing, flooding) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicBool::new(false)),
    );
    let switches = (Arc::clone(&refusing), Arc::clone(&flooding));
    let fake = Fake::start(move |_, line, query| {
        let (refusing, flooding) = switches.clone();
        async move {
            match line.as_str() {
                "GET /v1/_/config" => ok(CONFIG),
                "GET /v1/_/leases" if query.contains("next=") => {
                    while !flooding.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    change("10.5.9.0")
                }
                "GET /v1/_/leases" => nothing(),
                line if line.starts_with("PUT") && refusing.load(Ordering::Relaxed) => {
                    (500, "refused", "no\n".to_owned())
                }
                _ => lease("10.5.1.0", 86_400),
            }
        }
    })
    .await;
    let mut store = fake.client();
    acquire(&mut store).await;
    let (listed, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    wait_for(&mut store, "the trouble", |event| {
        match event {
            StoreEvent::Peers(_) => listed.store(true, Ordering::Relaxed),
            StoreEvent::RenewalFailed { .. } => failed.store(true, Ordering::Relaxed),
            _ => {}
        }
        let both = listed.load(Ordering::Relaxed) && failed.load(Ordering::Relaxed);
        both.then_some(())
    })
    .await;

    flooding.store(true, Ordering::Relaxed);
    // One brought the list, 64 brought what waits for the consumer, and one what has no room.
    let polled = async {
        let mut asked = fake.asked.subscribe();
        let waiting = asked.wait_for(|asked| {
            let polls = asked.iter().filter(|line| *line == "GET /v1/_/leases");
            polls.count() >= 66
        });
        timeout(PATIENCE, waiting)
            .await
            .map(drop)
            .expect("66 polls");
    };
    polled.await;
    let before = fake.count(&format!("PUT {FIRST}"));
    refusing.store(false, Ordering::Relaxed);
    let again = async {
        let put = format!("PUT {FIRST}");
        let mut over = fake.over.subscribe();
        let waiting =
            over.wait_for(|over| over.iter().filter(|line| **line == put).count() > before);
        timeout(PATIENCE, waiting)
            .await
            .map(drop)
            .expect("an attempt");
    };
    again.await;
    flooding.store(false, Ordering::Relaxed);
    wait_for(&mut store, "the end of the trouble", |event| {
        matches!(event, StoreEvent::Renewed { .. }).then_some(())
    })
    .await;
}
