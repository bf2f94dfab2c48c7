//! Updates of the image: which version runs, which is tried, and whether it works.

pub mod boot_check;
mod metrics;
pub mod running;
pub mod state;
