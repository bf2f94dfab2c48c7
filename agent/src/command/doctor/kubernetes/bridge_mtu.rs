//! The pods' bridge: the CNI plugin makes it with the MTU of that day, and it keeps that when the overlay's changes.

use crate::command::doctor::host::{Own, inventory};
use crate::command::doctor::{Context, Finding, Outcome, Severity};

pub(super) const NAME: &str = "bridge-mtu";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    let mtu = own.network.mtu;
    let bridge = own.bridge(&inventory);
    // Docker's own is the business of docker-subnet.
    let bridge = bridge
        .filter(|bridge| bridge.kind.as_deref() == Some("bridge") && bridge.name != "docker0");
    let Some(bridge) = bridge.filter(|bridge| bridge.mtu > mtu) else {
        return Ok(Vec::new());
    };
    let name = &bridge.name;
    Ok(vec![Finding::new(
        NAME,
        Severity::Error,
        name,
        format!(
            "the MTU of the pods' bridge {name} is {}, above the overlay's {mtu}",
            bridge.mtu
        ),
        "the overlay's MTU was changed after the bridge was made: packets of pods that are too large for the overlay are dropped or fragmented",
        vec![
            format!("ip link set {name} mtu {mtu}"),
            "then start the pods of this node again: their interfaces keep the old MTU".to_owned(),
        ],
    )])
}
