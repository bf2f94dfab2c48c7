//! What any program of this kind could use: files, names, addresses, times, logging.
//!
//! May import: nothing else of this crate. Must not: know of leases, peers, backends or settings.

pub mod atomic_file;
pub(crate) mod boot;
pub(crate) mod codes;
pub mod endpoint;
pub mod env_file;
pub mod go_json;
pub(crate) mod http;
pub mod lock;
pub mod logging;
pub mod machine_id;
pub mod net;
pub mod network_name;
pub mod retry;
pub mod service;
pub mod terminal;
pub mod time;
pub(crate) mod tls;
pub(crate) mod words;
pub mod yaml;
