//! How a running node hears the [challenges](challenge) to it and answers them, also while it waits to list all leases:
//! a clone that starts must not take it for dead.

use std::future::pending;
use std::sync::Arc;

use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{SILENCE, SILENCE_JITTER, Stop, Watcher, next_message};
use crate::base::retry::{jittered, random_seed};
use crate::cluster::lease::etcd::challenge;
use crate::cluster::lease::etcd::rpc::{Failure, KeyValue, Message, Watch, after};
use crate::cluster::lease::store::{DEADLINE, RECONNECT};

/// The ID of the challenge watch on its stream; the server numbers the others from 0.
pub(super) const QUESTIONS: i64 = 100;

impl Watcher {
    /// Answers challenges over a stream of their own; for ever.
    pub(super) async fn answer_challenges(&mut self) {
        let mut pauses = RECONNECT.seeded(random_seed());
        loop {
            if let Err(Stop::Failed(error)) = self.follow_challenges().await {
                debug!("failed to watch the challenges to this node: {error}");
            }
            sleep(pauses.next_delay()).await;
        }
    }

    /// Answers challenges until the stream ends.
    async fn follow_challenges(&mut self) -> Result<(), Stop> {
        // From now on; earlier ones are read.
        let Some(watch) = self.question_watch(0) else {
            return pending().await;
        };
        let store = Arc::clone(&self.store);
        let mut reconnections = store.servers.reconnections();
        let connection = store.servers.connection().await?;
        let failed = |failure| Stop::Failed(store.servers.broken(&connection, failure));
        let opened = timeout(DEADLINE, async {
            let mut stream = connection.client.watch(watch).await?;
            let first = stream.message().await?;
            Ok::<_, Failure>((stream, first))
        });
        let mut stream = match opened.await {
            Ok(Ok((_, Some(first)))) if first.canceled => {
                self.not_asked(&first);
                return Ok(());
            }
            Ok(Ok((stream, Some(_)))) => stream,
            Ok(Ok((_, None))) | Err(_) => return Err(failed(None)),
            Ok(Err(failure)) => return Err(failed(Some(failure))),
        };
        self.answer_earlier().await;
        loop {
            let silence = jittered(SILENCE, SILENCE_JITTER, &mut self.seed);
            let message = tokio::select! {
                message = next_message(stream.as_mut(), silence) => message.map_err(failed)?,
                Ok(()) = reconnections.changed() => return Ok(()),
            };
            let Some(message) = message.filter(|message| !message.canceled) else {
                return Ok(());
            };
            for question in message.events {
                self.answer(question.kv);
            }
        }
    }

    /// The watch of the challenges to this node, if it answers any.
    pub(super) fn question_watch(&self, from: i64) -> Option<Watch> {
        let questions = self.questions.as_deref()?;
        Some(Watch {
            id: QUESTIONS,
            key: questions.into(),
            end: after(questions).into(),
            from,
            progress: false,
            deletions: false,
        })
    }

    /// Answers challenges that were sent while there was no watch: the asking node waits for seconds.
    pub(super) async fn answer_earlier(&mut self) {
        let Some(questions) = &self.questions else {
            return;
        };
        let earlier = challenge::earlier(&self.store, questions).await;
        for question in earlier {
            self.answer(question);
        }
    }

    /// Answers in a task of its own: if etcd is slow, lease events must not wait for it.
    pub(super) fn answer(&mut self, question: KeyValue) {
        /// More concurrent challenges than this are not honest questions.
        const MOST: usize = 8;
        while self.answers.try_join_next().is_some() {}
        if self.answers.len() < MOST {
            let store = Arc::clone(&self.store);
            self.answers
                .spawn(async move { challenge::answer(&store, &question).await });
        }
    }

    /// Reports once that other nodes cannot ask whether this node is alive.
    pub(super) fn not_asked(&mut self, response: &Message) {
        let Some(questions) = self.questions.take() else {
            return;
        };
        warn!(
            "etcd refused to watch {questions}: {}. A clone of this node that starts could take over its lease; give the etcd role readwrite there",
            response.reason
        );
    }
}
