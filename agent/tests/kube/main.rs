//! Nodes of a Kubernetes cluster: the lease store against an API server on loopback.
//!
//! The server is the tests' own, so that it can be slow, forget, refuse and go back in time. What it does is what
//! kube-apiserver 1.36 does for these requests.
//!
//! | module | what it is about |
//! |---|---|
//! | `follow` | what a node learns of the others |
//! | `publish` | what it writes about itself |
//! | `refused` | what keeps it waiting |
//! | `herald` | the node's condition, and events |
//! | `access` | tokens, certificates, pods |
//! | `hosts` | whole hosts with the real agent and kernel, in network namespaces: these need root |

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]
#![expect(
    dead_code,
    reason = "what the tests share with others can do more than is needed here"
)]

mod access;
#[path = "../etcd/authority.rs"]
mod authority;
mod follow;
mod herald;
#[path = "../overlay/host.rs"]
mod host;
mod hosts;
#[path = "../overlay/namespace.rs"]
mod namespace;
mod node;
mod objects;
mod publish;
mod refused;
mod server;
mod stream;
#[path = "../overlay/wait.rs"]
mod wait;
