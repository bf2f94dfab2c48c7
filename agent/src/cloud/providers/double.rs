//! Servers on the loopback that speak a provider's API, for tests.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response};
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::base::http::{Respond, converse, options};
use crate::cloud::access::Access;
use crate::cloud::pass::{Accepted, Pass, Problem, run};
use crate::cloud::plan::Wanted;
use crate::cloud::table::{Mark, Route, RouteTable, Target};
use crate::cloud::transport::Transport;
use crate::plan::backend::CloudConfig;

/// A request as it came.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Question {
    /// A header's value; empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// A parameter of the query; empty if there is none.
    pub(super) fn parameter(&self, name: &str) -> String {
        let pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        let found = pairs.into_iter().find(|(key, _)| *key == name);
        let value = found.map_or("", |(_, value)| value);
        let decoded = percent_encoding::percent_decode_str(value);
        decoded.decode_utf8().unwrap().into_owned()
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl ToString) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_string(),
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// A provider's servers.
pub(super) trait Cloud: Send + 'static {
    fn answer(&mut self, question: &Question) -> Reply;
}

/// One that runs until it is dropped.
pub(super) struct Double<C> {
    pub(super) url: String,
    cloud: Arc<Mutex<C>>,
    task: JoinHandle<()>,
}

impl<C> Drop for Double<C> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<C: Cloud> Double<C> {
    pub(super) async fn start(cloud: C) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cloud = Arc::new(Mutex::new(cloud));
        let served = Arc::clone(&cloud);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let cloud = Arc::clone(&served);
                let respond: Respond = Box::new(move |request| {
                    let cloud = Arc::clone(&cloud);
                    Box::pin(async move { Ok(respond(&cloud, request).await) })
                });
                tokio::spawn(converse(options(), Box::new(stream), respond, pending()));
            }
        });
        Self { url, cloud, task }
    }

    /// Its state.
    pub(super) fn cloud(&self) -> MutexGuard<'_, C> {
        self.cloud.lock().unwrap()
    }

    /// What reaches nothing but it.
    pub(super) fn access(&self, config: CloudConfig) -> Access {
        Access {
            transport: Transport::new(Some(self.url.clone()), Some(self.url.clone())),
            config,
            address: [10, 0, 0, 7].into(),
            credentials_file: None,
            variable: |_| None,
        }
    }
}

async fn respond<C: Cloud>(
    cloud: &Mutex<C>,
    request: Request<hyper::body::Incoming>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let question = Question {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    };
    let reply = cloud.lock().unwrap().answer(&question);
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(Full::from(reply.body)).unwrap()
}

/// The own subnet of the tests, in a network whose nodes have `/24`.
pub(super) fn wanted() -> Wanted {
    Wanted {
        own: [net("10.5.1.0/24")].into(),
        network: Some((net("10.5.0.0/16"), 24)),
        leased: [net("10.5.2.0/24")].into(),
    }
}

pub(super) fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// One pass, as the worker makes it, that knows of none before.
pub(super) async fn once(routes: &mut dyn RouteTable, wanted: &Wanted) -> Pass {
    run(routes, wanted, &mut Accepted::default()).await
}

/// Passes until nothing is left to do; panics if that takes more than so many.
pub(super) async fn settle(routes: &mut dyn RouteTable, wanted: &Wanted, most: usize) {
    let mut last = Pass::default();
    for _ in 0..most {
        last = once(routes, wanted).await;
        if last.is_settled() {
            return;
        }
    }
    panic!("not settled after {most} passes: {last:?}");
}

/// The command that takes the only route over that is in the way.
pub(super) async fn in_the_way(routes: &mut dyn RouteTable, wanted: &Wanted) -> String {
    match &once(routes, wanted).await.problems[..] {
        [Problem::Held { command, .. }] => command.clone(),
        problems => panic!("{problems:?}"),
    }
}

/// The routes as `destination target mark`, sorted.
pub(super) fn shown(routes: &[Route]) -> Vec<String> {
    let mut texts: Vec<String> = routes
        .iter()
        .map(|route| {
            let target = match &route.target {
                Target::Own => "own".to_owned(),
                Target::Other(hop) => hop.clone(),
                Target::Dead(hop) => format!("dead {hop}"),
            };
            let mark = match route.mark {
                Mark::Ours => "ours",
                Mark::Foreign => "foreign",
                Mark::None => "unmarked",
            };
            format!("{} {target} {mark}", route.destination)
        })
        .collect();
    texts.sort();
    texts
}
