//! What operators type: each command with its output, and the command line that they share.
//!
//! May import: everything. Must not: be imported by any other room.

pub mod boot_check;
pub mod cleanup;
pub mod cli;
pub mod cni;
pub mod doctor;
pub mod etc_diff;
pub mod fleet;
pub mod leave;
pub mod manual;
pub mod metadata;
pub mod migrate;
pub mod network;
pub mod options;
pub mod peers;
pub mod reset;
pub mod status;
pub mod sysext;
pub mod update;
