//! The programs of flannel that we stand in for: flanneld's command line, mk-docker-opts.sh, the CNI plugin.
//!
//! May import: `base` to `host`. Must not: add a feature that flannel has not; that goes where it belongs.

pub mod cni;
pub mod docker_opts;
pub mod flanneld;
