//! Checks the `[network]` table of a cluster description before it is rendered.

use ipnet::IpNet;
use serde_json::Value;
use thiserror::Error;

use crate::cluster::network_config::{NetworkConfig, NetworkConfigError};
use crate::plan::backend::{BackendConfig, BackendConfigError};

/// Why the network config is invalid.
#[derive(Debug, Error)]
pub enum NetworkFault {
    /// Without a network config no node can lease a subnet.
    #[error(
        "the [network] table is missing; it needs at least Network = \"10.5.0.0/16\" (any free range)"
    )]
    Missing,
    /// The agents would refuse it.
    #[error(transparent)]
    Refused(#[from] NetworkConfigError),
    /// The agents would refuse the backend's part.
    #[error(transparent)]
    Backend(#[from] BackendConfigError),
}

/// Checks the network config as the agents will, and returns the overlay networks.
pub(super) fn overlay(network: &Value) -> Result<Vec<IpNet>, NetworkFault> {
    if network.is_null() {
        return Err(NetworkFault::Missing);
    }
    let config = NetworkConfig::parse(&network.to_string())?;
    BackendConfig::parse(&config)?;
    Ok(config.networks().collect())
}
