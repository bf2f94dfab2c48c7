//! Which boot of this machine this is, and since when.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// The kernel's ID of this boot, which each start of a kernel draws anew; a restart of systemd alone keeps it
/// (`systemctl soft-reboot`). Empty if it cannot be read.
pub(crate) fn id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// When the kernel started, by the wall clock as it stands now; `None` if a clock cannot be read.
pub(crate) fn start() -> Option<SystemTime> {
    let up = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    SystemTime::now().checked_sub(Duration::from(up))
}
