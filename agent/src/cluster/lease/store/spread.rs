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
/// includes it. A server answers some hundred lists of 10,000 leases per second; three servers have at most half of that
/// to do.
const LIST: Duration = Duration::from_millis(1);

/// In a larger cluster a list takes the servers longer, in proportion: 65,000 nodes that read 65,000 leases each are
/// more than 800 GB. Below that, [`LIST`] allows for the lists' length already; it is a limit of the servers, while how
/// long a node may be without its watch (`etcd::watch`) is one of the node.
const LONG_LIST: u32 = 5000;

/// The delay per node for a few small requests. A node that comes back sends some five, and again as many after another
/// delay if what it would go on from is gone: twelve in all. Three servers answer some 30,000 per second.
const REQUESTS: Duration = Duration::from_micros(400);

/// The longest delay, however large the cluster claims to be: other nodes write the leases that are counted. A whole
/// 10.0.0.0/8 of /24 subnets stays below it.
const LONGEST: Duration = Duration::from_secs(900);

/// The longest delay before a list.
pub(in crate::cluster::lease) fn longest_before_list(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let of_each = LIST.mul_f64(f64::from(nodes.max(LONG_LIST)) / f64::from(LONG_LIST));
    of_each.saturating_mul(nodes).min(LONGEST)
}

/// A random delay before all leases are listed.
pub(in crate::cluster::lease) fn before_list(nodes: usize, seed: &mut u64) -> Duration {
    random_part(longest_before_list(nodes), seed)
}

/// The longest delay before a few small requests.
pub(in crate::cluster::lease) fn longest_before_requests(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    REQUESTS.saturating_mul(nodes).min(LONGEST)
}

/// A random delay before a few small requests.
pub(in crate::cluster::lease) fn before_requests(nodes: usize, seed: &mut u64) -> Duration {
    random_part(longest_before_requests(nodes), seed)
}

/// A random part of a time.
fn random_part(whole: Duration, seed: &mut u64) -> Duration {
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
        let mut seconds = [0_u32; 20];
        for _ in 0..20_000 {
            let pause = before_list(10_000, &mut seed);
            seconds[usize::try_from(pause.as_secs()).unwrap()] += 1;
        }
        assert!(
            seconds.iter().all(|nodes| (850..1150).contains(nodes)),
            "{seconds:?}"
        );
        assert!((0..100).all(|_| before_list(3, &mut seed) < LIST * 3));
        assert!((0..100).all(|_| before_requests(3, &mut seed) < REQUESTS * 3));
        assert_eq!(before_list(0, &mut seed), Duration::ZERO);
    }

    /// Each of 5,000 nodes lists 5,000 leases, within five seconds; with more of both, as many per second.
    #[test]
    fn the_leases_read_in_a_second_do_not_grow_with_the_cluster() {
        for nodes in [5000, 10_000, 20_000, 40_000, 65_000] {
            let leases = u64::try_from(nodes * nodes).unwrap();
            let each_second = leases / longest_before_list(nodes).as_secs();
            assert!(
                (4_900_000..=5_100_000).contains(&each_second),
                "{nodes}: {each_second}"
            );
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_longest() {
        let mut seed = 1;
        assert!((0..100).all(|_| before_list(usize::MAX, &mut seed) <= LONGEST));
        assert!((0..100).all(|_| before_requests(usize::MAX, &mut seed) <= LONGEST));
    }
}
