//! Boots the Selvage image in QEMU: the demo, the tests that need a boot, and the boot measurements.

mod accel;
mod artifacts;
mod child;
mod console;
mod machine;
mod progress;
mod qemu;
mod qmp;
mod ssh;
mod switch;
mod wait;

fn main() {}
