//! The tasks that do a store's lasting work, and the events that they send.

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

use super::StoreEvent;

/// How many events wait for their consumer before the watch pauses; the server then holds back what follows.
const EVENTS: usize = 64;

/// One watcher, a keeper where a lease is held, and what is done beside them. All end when this is dropped.
#[derive(Debug, Default)]
pub(in crate::cluster::lease) struct Tasks {
    events: Option<Receiver<StoreEvent>>,
    tasks: JoinSet<()>,
}

impl Tasks {
    /// Ends all tasks. Events that were not read are void.
    pub(in crate::cluster::lease) fn stop(&mut self) {
        self.tasks = JoinSet::new();
        self.events = None;
    }

    /// Ends all tasks, and returns where those that are started next send their events.
    pub(in crate::cluster::lease) fn restart(&mut self) -> Sender<StoreEvent> {
        self.stop();
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.events = Some(receiver);
        sender
    }

    /// Whether somebody sends events.
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

    /// Waits for the next event; `None` if nobody sends any. Cancel-safe: the receiver stays in its place meanwhile.
    pub(in crate::cluster::lease) async fn next_event(&mut self) -> Option<StoreEvent> {
        let event = self.events.as_mut()?.recv().await;
        if event.is_none() {
            self.events = None;
        }
        event
    }
}
