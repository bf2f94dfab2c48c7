//! This machine as an appliance: Ignition configs and their effect, the root file system that the initrd prepares, what of
//! `/etc` is this machine's, and its reset.
//!
//! May import: `base` to `host`. Must not: need a running agent.

pub mod etc;
pub mod ignition;
pub mod reset;
pub mod sysroot;
