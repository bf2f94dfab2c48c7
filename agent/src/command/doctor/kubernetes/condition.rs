//! The condition `NetworkUnavailable` of this host's node: while it is `True`, the scheduler puts no pods here.

use super::{not_checked, store};
use crate::command::doctor::{Context, Finding, Outcome, Severity};
use crate::telemetry::status::State;

pub(super) const NAME: &str = "kube-condition";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let store = store(context)?;
    let is_up = context.status()?.health.state == State::Ready;
    let node = store.seen_node().await.map_err(not_checked)?;
    let name = node.name;
    // While the overlay is down it is as it should be, and the check `agent` says why.
    let Some(reason) = node.unavailable.filter(|_| is_up) else {
        return Ok(Vec::new());
    };
    let is_written = context.settings.kubernetes.set_network_unavailable;
    let remedy = match is_written {
        true => "wait half a minute: the agent corrects it; if it comes back, see who writes it: kubectl get node NODE -o yaml --show-managed-fields".replace("NODE ", &format!("{name} ")),
        false => "let the agent write it: --set-node-network-unavailable=true".to_owned(),
    };
    Ok(vec![Finding::new(
        NAME,
        Severity::Error,
        &name,
        format!(
            "the overlay is up, but the node {name} has the condition NetworkUnavailable, reason {reason}"
        ),
        "the scheduler puts no pods on this node while that is so; cloud providers set it until there is a network",
        vec![remedy],
    )])
}
