//! Watches: each event is a line, and the stream goes on until its time is over.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

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

/// Answers a watch. From a revision that is yet to come it says nothing until that has come, as a real server does.
pub(crate) fn watch(shared: Arc<Shared>, query: &BTreeMap<String, String>) -> Response<Body> {
    let number = |name: &str| query[name].parse::<u64>().expect("a number");
    let sent = number("resourceVersion");
    let (compacted, bookmarks, generation) = {
        let cluster = shared.cluster();
        (cluster.compacted, cluster.bookmarks, cluster.watches_end)
    };
    if sent < compacted {
        return status(
            410,
            &format!("too old resource version: {sent} ({compacted})"),
        );
    }
    let now = Instant::now();
    let state = Watch {
        changed: shared.changed.subscribe(),
        shared,
        sent,
        ends: now + Duration::from_secs(number("timeoutSeconds")),
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
    Response::new(body.boxed_unsync())
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
        let next = cluster.history.iter().find(|(at, _, _)| *at > self.sent);
        let Some((at, kind, node)) = next else {
            return Some(None);
        };
        self.sent = *at;
        Some(Some(line(kind.text(), node)))
    }
}
