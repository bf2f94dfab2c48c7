//! Nodes of a Kubernetes cluster: the lease store against an API server on loopback.
//!
//! The server is the tests' own, so that it can be slow, forget, refuse and go back in time. What it does is what
//! kube-apiserver 1.36 does for these requests. With `KUBE_APISERVER=/path/to/kube-apiserver` each test has a real one
//! behind it, and an etcd (`ETCD=/path/to/etcd`, 3.5.21 or later for 1.36); what those cannot be made to do, such as going
//! back in time, is left out then, and says so.
//!
//! | module | what it is about |
//! |---|---|
//! | `follow` | what a node learns of the others |
//! | `past` | the same, from a server that only the tests' own can be |
//! | `publish` | what it writes about itself |
//! | `refused` | what keeps it waiting |
//! | `herald` | the node's condition, and events |
//! | `access` | tokens, certificates, pods |
//! | `rights` | the rights that a node needs |
//! | `survey` | what the doctor asks |
//! | `migrate` | `selvage migrate`, before clusters with flannel's manifests of several times and makers |
//! | `start` | thousands of nodes that start together |
//! | `waiting` | what keeps a whole host waiting, as its operator sees it; needs root |
//! | `hosts` | whole hosts with the real agent and kernel, in network namespaces: these need root |
//! | `services` | Services beside our rules, with pods by the real CNI plugins; need root, too |
//! | `mixed` | nodes that run flanneld beside ours: with `FLANNELD=/path/to/flanneld`; need root, too |
//! | `policies` | network policies beside our rules, likewise |

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]
#![expect(
    dead_code,
    reason = "what the tests share with others can do more than is needed here"
)]

mod access;
#[path = "../etcd/authority.rs"]
mod authority;
#[path = "../etcd/server.rs"]
mod etcd;
mod fleet;
mod follow;
mod herald;
#[path = "../overlay/host.rs"]
mod host;
mod hosts;
mod migrate;
mod mirror;
mod mixed;
#[path = "../overlay/namespace.rs"]
mod namespace;
mod node;
mod objects;
mod past;
mod pods;
mod policies;
mod proxy;
mod publish;
mod queue;
mod rbac;
mod real;
mod refused;
mod rights;
mod server;
mod services;
mod start;
mod stream;
mod survey;
#[path = "../overlay/wait.rs"]
mod wait;
mod waiting;
