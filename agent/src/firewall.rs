//! The packet filter: what lets the overlay's packets through this host, and what gives them this host's address where
//! they leave the overlay.
//!
//! All rules live in one nftables table of our own, which is replaced as a whole and never shared, so nobody's rules can
//! be disturbed by ours. Whoever flushes it wakes the [`Watcher`], and [`nftables::Nftables::ensure`] puts it back.

pub mod nftables;
mod watch;

pub use watch::Watcher;
