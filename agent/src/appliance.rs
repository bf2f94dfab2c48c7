//! This machine as an appliance: Ignition configs and their effect, the root file system that the initrd prepares, and
//! updates of the image.
//!
//! May import: `base` to `host`. Must not: need a running agent.

pub mod ignition;
pub mod sysroot;
pub mod update;
