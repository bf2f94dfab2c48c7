//! What this host's kernel should hold: pure functions of the own lease, the peers and the underlay.
//!
//! May import: `base`, `settings`, `cluster`. Must not: do I/O, read a clock, or know how a change is made.

pub mod backend;
pub mod state;
pub mod underlay;
pub mod wireguard_key;
