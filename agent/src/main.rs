//! `selvage`: the overlay network agent.

fn main() {}
