//! The programs of flannel that we stand in for: flanneld's command line, mk-docker-opts.sh, the CNI plugin,
//! and what kube-flannel's init containers do: copy that plugin and its config to a host.
//!
//! May import: `base` to `host`. Must not: add a feature that flannel has not; that goes where it belongs.

pub mod cni;
pub mod docker_opts;
pub mod flanneld;
pub mod install;
