//! The long-running tasks of a store, and their event queue.

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

use super::StoreEvent;

/// The most events queued for the consumer before the watch pauses; the server then holds back the rest.
const EVENTS: usize = 64;

/// A watcher, a keeper if a lease is held, and one-off work. All end when this is dropped.
#[derive(Debug, Default)]
pub(in crate::cluster::lease) struct Tasks {
    events: Option<Receiver<StoreEvent>>,
    tasks: JoinSet<()>,
}

impl Tasks {
    /// Ends all tasks and discards unread events.
    pub(in crate::cluster::lease) fn stop(&mut self) {
        self.tasks = JoinSet::new();
        self.events = None;
    }

    /// Ends all tasks, and returns the sender for the events of the next ones.
    pub(in crate::cluster::lease) fn restart(&mut self) -> Sender<StoreEvent> {
        self.stop();
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.events = Some(receiver);
        sender
    }

    /// Whether there are tasks that send events.
    pub(in crate::cluster::lease) fn are_watching(&self) -> bool {
        self.events.is_some()
    }

    pub(in crate::cluster::lease) fn spawn(
        &mut self,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(task);
    }

    /// Waits for the next event; `None` if there are no tasks. Cancel-safe: the receiver stays in place meanwhile.
    pub(in crate::cluster::lease) async fn next_event(&mut self) -> Option<StoreEvent> {
        let event = self.events.as_mut()?.recv().await;
        if event.is_none() {
            self.events = None;
        }
        event
    }
}
