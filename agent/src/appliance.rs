//! This machine as an appliance: the platform it runs on and what that says, Ignition configs and their effect, image
//! files, the root file system that the initrd prepares, Docker's store of networks, what of `/etc` is this machine's, its
//! reset, updates of the image, its place in a fleet, and its consoles.
//!
//! May import: `base` to `host`. Must not: need a running agent.

pub mod consoles;
pub mod docker_networks;
pub mod etc;
pub mod fleet;
mod gpt;
pub mod ignition;
pub mod image_file;
pub mod metadata;
pub mod platform;
mod programs;
pub mod reset;
pub mod sysroot;
pub(crate) mod systemd;
pub mod update;
