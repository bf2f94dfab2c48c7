//! What this node is known by to its peers, kept in the state directory.

pub(crate) mod vxlan;
pub(crate) mod wireguard;
