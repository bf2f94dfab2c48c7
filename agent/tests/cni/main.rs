//! The CNI plugin as a runtime calls it: the built binary under the name `flannel`.
//!
//! ```text
//!  test = runtime ──► bin/flannel ──► plugins/bridge    a script that records its calls (`contract`, `lifecycle` …)
//!                          │     └──► /usr/lib/cni/…    Debian's plugins, in network namespaces (`containers`)
//!                     subnet.env, data/
//! ```
//!
//! `install` and `containers` need root, and `containers` Debian's `containernetworking-plugins`, `iproute2` and
//! `iputils-ping`.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

mod containers;
mod contract;
mod gc;
mod host;
mod install;
mod lifecycle;
#[path = "../netns/netns.rs"]
mod netns;
mod reboot;
