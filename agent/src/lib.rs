//! The overlay network agent of the Selvage appliance image.
//!
//! The agent *decides*, then *programs*. Deciding is pure: a back end turns the own lease, the accepted peers and the
//! underlay into a [`state::State`], the complete set of kernel objects that should exist. Programming is one executor:
//! it observes the kernel, diffs the observation against the wanted state, and applies the difference in pipelined
//! netlink batches. The same path serves the start, every event, the restart after a crash and the periodic resync.
//!
//! What other nodes publish is untrusted input: it passes the peer table before any back end sees it.

pub mod agent;
pub mod atomic_file;
pub mod backend;
pub mod claim;
pub mod cleanup;
pub mod cli;
mod clock;
pub mod cni;
pub mod control;
mod docker_bridge;
pub mod docker_opts;
pub mod doctor;
pub mod env_file;
pub mod firewall;
pub mod flanneld;
pub mod go_json;
pub mod health;
pub mod hooks;
mod http;
pub mod ignition;
pub mod lease;
pub mod leave;
pub mod lock;
pub mod logging;
pub mod machine_id;
pub mod manual;
mod metrics;
pub mod net;
pub mod netlink;
pub mod network_command;
pub mod network_config;
pub mod network_name;
pub mod options;
pub mod peers;
pub mod peers_command;
pub mod privileges;
pub mod reconcile;
pub mod remote;
pub mod retry;
pub mod serve;
pub mod service;
pub mod settings;
pub mod state;
pub mod status;
pub mod subnet_file;
pub mod sysroot;
mod terminal;
pub mod udp;
pub mod underlay;
pub mod wireguard_key;
