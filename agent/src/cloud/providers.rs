//! One file for each provider.

pub(super) mod aws;
pub(super) mod gce;
