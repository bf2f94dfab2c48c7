//! What others can ask of a running agent: status, health, metrics, and the control socket that carries them.
//!
//! May import: `base` to `host`. Must not: change anything, or print for people (`command` does).

pub(crate) mod clock;
pub mod control;
pub(crate) mod docker_bridge;
pub mod health;
pub(crate) mod metrics;
pub mod status;
