//! Boots the Selvage image in QEMU.

fn main() {}
