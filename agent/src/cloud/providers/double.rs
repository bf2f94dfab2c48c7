//! Providers' servers for tests, and what their tests have in common.

use hyper::Method;
use ipnet::Ipv4Net;

use crate::cloud::access::Access;
use crate::cloud::pass::{Accepted, Pass, Problem};
use crate::cloud::plan::Wanted;
use crate::cloud::table::{Mark, Route, RouteTable, Target};
use crate::cloud::tests::run;
use crate::cloud::tests::server::{self, Request};
pub(super) use crate::cloud::tests::server::{Double, Response as Reply};
use crate::cloud::transport::Transport;
use crate::plan::backend::CloudConfig;

/// A request as it came.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Question {
    /// A header's value; empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value)
    }

    /// A parameter of the query; empty if there is none.
    pub(super) fn parameter(&self, name: &str) -> String {
        let mut pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        let value = found.map_or("", |(_, value)| value);
        let decoded = percent_encoding::percent_decode_str(value);
        decoded.decode_utf8().unwrap().into_owned()
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A provider's servers.
pub(super) trait Cloud: Send + 'static {
    fn answer(&mut self, question: &Question) -> Reply;
}

impl<C: Cloud> server::Cloud for C {
    fn answer(&mut self, request: &Request) -> Reply {
        let (path, query) = match request.target.split_once('?') {
            Some((path, query)) => (path, query),
            None => (&*request.target, ""),
        };
        let question = Question {
            method: request.method.parse().unwrap(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: request.headers.clone(),
            body: request.body.clone(),
        };
        Cloud::answer(self, &question)
    }
}

/// Starts one.
pub(super) fn start<C: Cloud>(cloud: C) -> Double<C> {
    Double::start("127.0.0.1:0", cloud)
}

/// What reaches nothing but it.
pub(super) fn access<C: Cloud>(double: &Double<C>, config: CloudConfig) -> Access {
    Access {
        transport: Transport::new(Some(double.url()), Some(double.url())),
        config,
        address: [10, 0, 0, 7].into(),
        credentials_file: None,
        variable: |_| None,
    }
}

/// The own subnet of the tests, in a network whose nodes have `/24`.
pub(super) fn wanted() -> Wanted {
    Wanted {
        own: [net("10.5.1.0/24")].into(),
        network: Some((net("10.5.0.0/16"), 24)),
        leased: [net("10.5.2.0/24")].into(),
        ..Wanted::default()
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
        if last.is_done() {
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
