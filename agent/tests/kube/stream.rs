//! Watches: each event is a line, and the stream goes on until its time is over.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::real::Ask;
use crate::server::{Body, Shared, status};

/// The state of one watch.
struct Watch {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// The last revision that was sent.
    sent: u64,
    ends: Instant,
    bookmark: Instant,
    /// What [`crate::server::Cluster::watches_end`] was at the start.
    generation: u64,
    wants_bookmarks: bool,
}

fn number(query: &BTreeMap<String, String>, name: &str) -> u64 {
    query[name].parse().expect("a number")
}

/// The answer to a watch from a revision that has been compacted; `None`: it is there.
pub(crate) fn gone(shared: &Shared, query: &BTreeMap<String, String>) -> Option<Response<Body>> {
    let sent = number(query, "resourceVersion");
    let compacted = shared.cluster().compacted;
    let words = format!("too old resource version: {sent} ({compacted})");
    (sent < compacted).then(|| status(410, &words))
}

/// Answers a watch. From a revision that is yet to come it says nothing until that has come, as a real server does.
pub(crate) fn watch(shared: Arc<Shared>, query: &BTreeMap<String, String>) -> Response<Body> {
    let sent = number(query, "resourceVersion");
    let (bookmarks, generation) = {
        let cluster = shared.cluster();
        (cluster.bookmarks, cluster.watches_end)
    };
    let now = Instant::now();
    let state = Watch {
        changed: shared.changed.subscribe(),
        shared,
        sent,
        ends: now + Duration::from_secs(number(query, "timeoutSeconds")),
        bookmark: now + bookmarks,
        generation,
        wants_bookmarks: query
            .get("allowWatchBookmarks")
            .is_some_and(|it| it == "true"),
    };
    let lines = futures_util::stream::unfold(state, |mut state| async move {
        let line = state.next().await?;
        let frame = Frame::data(Bytes::from(line + "\n"));
        Some((Ok::<_, Infallible>(frame), state))
    });
    let body = StreamBody::new(lines).map_err(|never| match never {});
    Response::builder()
        .header("content-type", "application/json")
        .body(body.boxed_unsync())
        .expect("a response")
}

/// An answer of the real server's on its way to who asked.
struct Forwarded {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    generation: u64,
    is_watch: bool,
    from: mpsc::Receiver<Bytes>,
    /// What has come of a line that is not whole.
    begun: Vec<u8>,
}

/// Hands a request on. A watch is handed back by lines, so that others can come between them.
pub(crate) async fn forward(
    shared: Arc<Shared>,
    ask: Ask,
) -> Result<Response<Body>, std::io::Error> {
    let is_watch = ask.path.contains("watch=true");
    let real = shared
        .real()
        .ok_or_else(|| std::io::Error::other("no real server"))?;
    let answer = real.forward(ask).await;
    let answer = answer.ok_or_else(|| std::io::Error::other("the real server does not answer"))?;
    let generation = shared.cluster().watches_end;
    let state = Forwarded {
        changed: shared.changed.subscribe(),
        shared,
        generation,
        is_watch,
        from: answer.body,
        begun: Vec::new(),
    };
    let parts = futures_util::stream::unfold(state, |mut state| async move {
        let part = state.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(part)), state))
    });
    let body = StreamBody::new(parts).map_err(|never| match never {});
    let response = Response::builder()
        .status(answer.status)
        .header("content-type", "application/json");
    Ok(response.body(body.boxed_unsync()).expect("a response"))
}

impl Forwarded {
    /// The next part; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.is_watch {
            return self.from.recv().await;
        }
        loop {
            {
                let mut cluster = self.shared.cluster();
                if cluster.watches_end != self.generation {
                    return None;
                }
                if let Some(rubbish) = cluster.faults.rubbish.take() {
                    return Some(Bytes::from(format!("{rubbish}\n")));
                }
            }
            tokio::select! {
                part = self.from.recv() => match part {
                    Some(part) => self.begun.extend_from_slice(&part),
                    None if self.begun.is_empty() => return None,
                    None => return Some(Bytes::from(std::mem::take(&mut self.begun))),
                },
                _ = self.changed.changed() => {}
            }
            if let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.begun.split_off(end + 1);
                return Some(Bytes::from(std::mem::replace(&mut self.begun, rest)));
            }
        }
    }
}

fn line(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

impl Watch {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.due()? {
                return Some(line);
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                () = sleep_until(self.ends) => return None,
                () = sleep_until(self.bookmark), if self.wants_bookmarks => {
                    let mut cluster = self.shared.cluster();
                    self.bookmark = Instant::now() + cluster.bookmarks;
                    // Of a revision that is not after the last one, a real server sends none.
                    if cluster.revision > self.sent {
                        self.sent = cluster.revision;
                        cluster.bookmarked = self.sent;
                        let revision = self.sent.to_string();
                        let object = json!({"kind": "Node", "metadata": {"resourceVersion": revision}});
                        return Some(line("BOOKMARK", &object));
                    }
                }
            }
        }
    }

    /// What can be sent at once, if anything; `None` at the end.
    fn due(&mut self) -> Option<Option<String>> {
        let mut cluster = self.shared.cluster();
        if cluster.watches_end != self.generation {
            return None;
        }
        if let Some(rubbish) = cluster.faults.rubbish.take() {
            return Some(Some(rubbish.to_owned()));
        }
        // In the order of the revisions, of which there may be thousands.
        let next = cluster
            .history
            .partition_point(|(at, _, _)| *at <= self.sent);
        let Some((at, kind, node)) = cluster.history.get(next) else {
            return Some(None);
        };
        self.sent = *at;
        Some(Some(line(kind.text(), node)))
    }
}
