//! Checks of the Kubernetes cluster whose pod network this is. They are made where the agent's lease store is Kubernetes.

use super::{Check, Context, NotChecked};
use crate::cluster::lease::StoreError;
use crate::cluster::lease::kube::{KubeStore, Surroundings, Survey};

mod bridge_mtu;
mod cni_config;
mod condition;
mod nodes;
mod rights;

pub(in crate::command) use self::nodes::judge as judge_nodes;

/// The checks, in the order of the report.
pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: rights::NAME,
            looks_for: "rights that the agent needs and has not",
            run: |context| Box::pin(rights::check(context)),
        },
        Check {
            name: nodes::NAME,
            looks_for: "nodes without a podCIDR, with one outside the network, or without an agent",
            run: |context| Box::pin(nodes::check(context)),
        },
        Check {
            name: condition::NAME,
            looks_for: "a condition NetworkUnavailable that does not agree with the overlay",
            run: |context| Box::pin(condition::check(context)),
        },
        Check {
            name: cni_config::NAME,
            looks_for: "a CNI configuration that is missing, or that another one comes before",
            run: |context| Box::pin(std::future::ready(cni_config::check(context))),
        },
        Check {
            name: bridge_mtu::NAME,
            looks_for: "a pods' bridge whose MTU is above the overlay's",
            run: |context| Box::pin(bridge_mtu::check(context)),
        },
    ]
}

/// A store that asks what the agent's would; it holds nothing.
fn store(context: &Context<'_>) -> Result<KubeStore, NotChecked> {
    KubeStore::new(&context.settings.kubernetes, Surroundings::of_process())
        .map_err(|error| NotChecked(error.to_string()))
}

/// What asks the cluster, whichever node this is.
fn survey(context: &Context<'_>) -> Survey {
    Survey::new(&context.settings.kubernetes, Surroundings::of_process())
}

fn not_checked(error: StoreError) -> NotChecked {
    NotChecked(error.to_string())
}

/// Some names of many, for a sentence.
pub(in crate::command) fn sample(names: &[&str]) -> String {
    match names {
        [one, two, three, rest @ ..] if !rest.is_empty() => {
            format!("{one}, {two}, {three} and {} more", rest.len())
        }
        names => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::sample;

    #[test]
    fn of_many_names_few_are_told() {
        assert_eq!(sample(&["a"]), "a");
        assert_eq!(sample(&["a", "b", "c"]), "a, b, c");
        assert_eq!(sample(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
