//! Updates of the image: which version runs, which one there is, how it comes into the free slot, and whether it works.
//!
//! A release goes through these hands: [`index`] says what a channel has, after [`keys`] found it signed; [`choose`]
//! takes one of its releases; [`download`] brings its files, and [`staging`] unpacks them; [`secure_boot`] asks whether
//! the firmware would start the version; [`sysupdate`] writes them into the slot that the running version is not in; at
//! the next boot systemd-boot tries it. [`machine`] does all that in turn. Then [`boot_check`] finds out whether the
//! version works.

pub mod boot_check;
pub mod choose;
pub mod download;
pub mod index;
pub mod keys;
pub mod machine;
mod metrics;
pub mod running;
#[cfg(test)]
pub(crate) mod samples;
pub mod secure_boot;
pub mod server;
pub mod slots;
pub mod staging;
pub mod state;
pub mod sysext;
pub mod sysupdate;
pub mod turn;
pub mod version;
pub mod windows;
