//! How long the watcher waits before it asks again. What happens to all nodes at once, such as a restart of the API
//! server, must not bring all of them back at once.

use std::time::Duration;

use crate::base::retry::{Backoff, jittered, next_random};
use crate::cluster::lease::store::RECONNECT;
use crate::cluster::lease::store::spread::before_list;

/// A watch that ends sooner than this counts as a failure.
const SHORTEST: Duration = Duration::from_secs(1);

/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pauses of one node.
pub(super) struct Pace {
    backoff: Backoff,
    seed: u64,
}

impl Pace {
    /// Two nodes should not have the same seed.
    pub(super) fn new(mut seed: u64) -> Self {
        Self {
            backoff: RECONNECT.seeded(next_random(&mut seed)),
            seed,
        }
    }

    /// The pause after a watch that lasted that long, in a cluster of so many nodes. A server that stops ends the
    /// watches of all nodes at once, and too early.
    pub(super) fn after_watch(
        &mut self,
        lasted: Duration,
        is_early: bool,
        nodes: usize,
    ) -> Duration {
        let pause = match lasted < SHORTEST {
            true => self.backoff.next_delay(),
            false => {
                self.backoff.reset();
                Duration::ZERO
            }
        };
        match is_early {
            true => pause.max(self.spread(nodes)),
            false => pause,
        }
    }

    /// The pause before all nodes are listed again, because what is known is too old to watch from.
    pub(super) fn after_compaction(&mut self, nodes: usize) -> Duration {
        self.spread(nodes).max(self.backoff.next_delay())
    }

    /// The pause after a request that failed, or was refused until after `asked`. Whoever is told to come back in a
    /// second was told so together with many others, so as much again is drawn by lot.
    pub(super) fn after_failure(&mut self, asked: Option<Duration>, nodes: usize) -> Duration {
        let asked = asked.unwrap_or_default().min(LONGEST_PAUSE);
        let apart = jittered(asked, 1.0, &mut self.seed);
        let spread = self.spread(nodes);
        asked + apart.max(spread).max(self.backoff.next_delay())
    }

    /// A watch ended by something else than its own end.
    pub(super) fn broken(&mut self, lasted: Duration) {
        if lasted >= SHORTEST {
            self.backoff.reset();
        }
    }

    fn spread(&mut self, nodes: usize) -> Duration {
        before_list(nodes, &mut self.seed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use tokio::task::LocalSet;
    use tokio::time::{Instant, sleep};

    use super::*;

    const NODES: u64 = 5000;
    const SECOND: Duration = Duration::from_secs(1);

    /// An API server that stops at once, for all watchers, and comes back.
    struct Server {
        back: Instant,
        /// How many it answers in a second, as API priority and fairness does; whoever comes besides is told to come
        /// back in a second.
        capacity: usize,
        answered: VecDeque<Instant>,
        /// All requests since it is back.
        asked: Vec<Duration>,
        /// Those that were answered.
        served: Vec<Duration>,
    }

    enum Reply {
        Nobody,
        Later,
        Watch,
    }

    impl Server {
        fn ask(&mut self) -> Reply {
            let now = Instant::now();
            let Some(since) = now.checked_duration_since(self.back) else {
                return Reply::Nobody;
            };
            self.asked.push(since);
            while self.answered.front().is_some_and(|at| *at + SECOND <= now) {
                self.answered.pop_front();
            }
            if self.answered.len() >= self.capacity {
                return Reply::Later;
            }
            self.answered.push_back(now);
            self.served.push(since);
            Reply::Watch
        }
    }

    /// The most that come in any second, whole or not.
    fn most_in_a_second(times: &[Duration]) -> usize {
        let mut times = times.to_vec();
        times.sort_unstable();
        let within = |first: usize| times.partition_point(|at| *at < times[first] + SECOND) - first;
        (0..times.len()).map(within).max().unwrap_or(0)
    }

    /// All nodes lose their watch at once.
    async fn restart(outage: Duration, capacity: usize) -> Server {
        let server = Rc::new(RefCell::new(Server {
            back: Instant::now() + outage,
            capacity,
            answered: VecDeque::new(),
            asked: Vec::new(),
            served: Vec::new(),
        }));
        let nodes = usize::try_from(NODES).unwrap();
        let tasks = LocalSet::new();
        for seed in 0..NODES {
            let server = Rc::clone(&server);
            tasks.spawn_local(async move {
                let mut pace = Pace::new(seed);
                sleep(pace.after_watch(Duration::from_secs(100), true, nodes)).await;
                loop {
                    let reply = server.borrow_mut().ask();
                    let asked = match reply {
                        Reply::Nobody => None,
                        Reply::Later => Some(SECOND),
                        Reply::Watch => return,
                    };
                    sleep(pace.after_failure(asked, nodes)).await;
                }
            });
        }
        tasks.await;
        Rc::into_inner(server).unwrap().into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn five_thousand_nodes_do_not_come_back_within_one_second() {
        for outage in [0, 1, 3, 10, 60] {
            let server = restart(Duration::from_secs(outage), usize::MAX).await;
            assert_eq!(server.served.len(), 5000);
            let most = most_in_a_second(&server.served);
            assert!(most < 2200, "{most} in a second, after {outage} s");
            let last = server.served.iter().max().unwrap();
            assert!(*last < SECOND * 7, "the last came after {last:?}");
        }
    }

    /// Those that are refused do not come back together either, and so the server gets them all in.
    #[tokio::test(start_paused = true)]
    async fn nodes_that_a_busy_server_refuses_do_not_march_in_step() {
        for outage in [1, 60] {
            let server = restart(Duration::from_secs(outage), 300).await;
            assert_eq!(server.served.len(), 5000);
            let most = most_in_a_second(&server.asked);
            assert!(most < 2500, "{most} in a second, after {outage} s");
            assert!(server.asked.len() < 5000 * 6, "{}", server.asked.len());
            let last = server.served.iter().max().unwrap();
            assert!(*last < SECOND * 45, "the last came after {last:?}");
        }
    }

    #[test]
    fn a_node_of_a_small_cluster_does_not_wait() {
        let mut pace = Pace::new(1);
        let watched = Duration::from_secs(250);
        assert_eq!(pace.after_watch(watched, false, 5000), Duration::ZERO);
        assert!(pace.after_watch(watched, true, 3) < Duration::from_millis(3));
        assert!(pace.after_failure(None, 3) <= Duration::from_millis(100));
        // Watches that end at once are failures.
        let pauses = [(); 10].map(|()| pace.after_watch(Duration::ZERO, false, 3));
        assert!(pauses[9] >= SECOND * 2, "{pauses:?}");
    }
}
