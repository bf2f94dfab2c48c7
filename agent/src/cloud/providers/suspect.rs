//! Dead nodes' routes, where a provider's list does not show that a next hop is gone.
//!
//! On each pass a node asks of one route of another node, chosen at random, whether its next hop still exists: one request,
//! however many nodes there are, and all nodes together soon have asked of all routes.

use crate::base::retry::next_random;
use crate::cloud::table::{Mark, Route, Target};

/// The route to ask of, by its index, and its next hop.
pub(super) fn suspect(routes: &[Route], seed: &mut u64) -> Option<(usize, String)> {
    let others = routes.iter().enumerate();
    let others: Vec<(usize, &String)> = others
        .filter_map(|(at, route)| match (&route.target, route.mark) {
            (Target::Other(hop), Mark::Ours) => Some((at, hop)),
            _ => None,
        })
        .collect();
    let count = u64::try_from(others.len()).unwrap_or(u64::MAX);
    let chosen = next_random(seed).checked_rem(count)?;
    let (at, hop) = others.get(usize::try_from(chosen).ok()?)?;
    Some((*at, (*hop).clone()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cloud::providers::double::net;

    #[test]
    fn every_route_of_another_node_has_its_turn_and_no_other() {
        let route = |target, mark| Route {
            destination: net("10.5.1.0/24"),
            target,
            mark,
            handle: String::new(),
        };
        let other = |hop: &str| Target::Other(hop.to_owned());
        let routes = [
            route(other("a"), Mark::Ours),
            route(Target::Own, Mark::Ours),
            route(other("b"), Mark::None),
            route(other("c"), Mark::Foreign),
            route(Target::Dead("d".to_owned()), Mark::Ours),
            route(other("e"), Mark::Ours),
        ];
        let mut seed = 1;
        let chosen: BTreeSet<(usize, String)> = (0..50)
            .filter_map(|_| suspect(&routes, &mut seed))
            .collect();
        assert_eq!(chosen, [(0, "a".to_owned()), (5, "e".to_owned())].into());
        assert_eq!(suspect(&routes[1..5], &mut seed), None);
    }
}
