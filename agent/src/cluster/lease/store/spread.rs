//! Random delays that keep the nodes of a cluster from acting in step.
//!
//! What a node does by itself is spread already: renewals by a fifth of their interval, retries by their
//! [back-off](crate::base::retry::Backoff). What a single event triggers on all nodes is spread here, over a time that
//! grows with the cluster, so that the servers' load is constant and a small cluster does not wait. The first list and
//! the first lease of a starting node are not delayed: a fast start matters more than the few nodes that start at the
//! same instant.

use std::time::Duration;

use crate::base::retry::next_random;

/// The delay per node for listing all leases again, whether to reopen a watch or to take a lost lease again, which
/// includes it. A server answers some hundred lists of 10,000 leases per second.
pub(in crate::cluster::lease) const LIST: Duration = Duration::from_millis(1);

/// The longest delay, however large the cluster claims to be: other nodes write the leases that are counted.
const LONGEST: Duration = Duration::from_secs(10);

/// A random delay up to `per_node` times the number of nodes.
pub(in crate::cluster::lease) fn spread(
    nodes: usize,
    per_node: Duration,
    seed: &mut u64,
) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let whole = per_node.saturating_mul(nodes).min(LONGEST);
    // 32 random bits as a fraction of 1: f64 holds them exactly.
    let random = u32::try_from(next_random(seed) >> 32).unwrap_or(0);
    whole.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_nodes_are_spread_evenly_and_three_hardly_wait() {
        let mut seed = 1;
        let mut seconds = [0_u32; 10];
        for _ in 0..10_000 {
            let pause = spread(10_000, LIST, &mut seed);
            seconds[usize::try_from(pause.as_secs()).unwrap()] += 1;
        }
        assert!(
            seconds.iter().all(|nodes| (850..1150).contains(nodes)),
            "{seconds:?}"
        );
        assert!((0..100).all(|_| spread(3, LIST, &mut seed) < LIST * 3));
        assert_eq!(spread(0, LIST, &mut seed), Duration::ZERO);
    }

    #[test]
    fn nobody_waits_longer_than_the_longest() {
        let mut seed = 1;
        assert!((0..100).all(|_| spread(usize::MAX, LIST, &mut seed) <= LONGEST));
    }
}
