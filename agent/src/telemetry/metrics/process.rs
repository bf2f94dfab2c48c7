//! The kernel's statistics of this process, under the standard names of Prometheus client libraries.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::text::Text;

/// A process's resource usage; unknown values are `None` and left out of the metrics.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Process {
    /// Processor time, in user space and in the kernel.
    pub(super) cpu: Option<Duration>,
    /// Memory in use, in bytes.
    pub(super) resident: Option<u64>,
    /// Virtual memory size, in bytes.
    pub(super) virtual_size: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// Reads the statistics of this process: proc_pid_stat(5), proc_pid_fd(5), getrlimit(2).
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let of_system = |variable| {
            let value = sysconf(variable).ok().flatten();
            value.and_then(|value| u64::try_from(value).ok())
        };
        let page = of_system(SysconfVar::PAGE_SIZE);
        Self {
            cpu: clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
                .ok()
                .map(Duration::from),
            resident: field(&stat, 24).zip(page).map(|(pages, page)| pages * page),
            virtual_size: field(&stat, 23),
            threads: field(&stat, 20),
            // Minus the descriptor used to read the directory.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .and_then(|entries| u64::try_from(entries.count()).ok())
                .map(|count| count.saturating_sub(1)),
            max_fds: of_system(SysconfVar::OPEN_MAX),
        }
    }

    pub(super) fn write(&self, started: u64, text: &mut Text) {
        if let Some(cpu) = self.cpu {
            text.counter(
                "process_cpu_seconds_total",
                "CPU time used, user and system.",
                cpu.as_secs_f64(),
            );
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory.",
                self.resident,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory.",
                self.virtual_size,
            ),
            ("process_threads", "Threads.", self.threads),
            ("process_open_fds", "Open file descriptors.", self.open_fds),
            (
                "process_max_fds",
                "Maximum number of open file descriptors.",
                self.max_fds,
            ),
            (
                "process_start_time_seconds",
                "Start time of the agent, in seconds since the Unix epoch.",
                Some(started),
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                text.gauge(name, help, value);
            }
        }
    }
}

/// A field of `/proc/PID/stat` by its number in the manual, from 3 on. The second, the name, may contain any
/// characters.
fn field(stat: &str, number: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat =
            "7 (a b) 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 10 5 0 0 20 0 3 0 999 12345678 456 18446";
        assert_eq!(field(stat, 20), Some(3));
        assert_eq!(field(stat, 23), Some(12_345_678));
        assert_eq!(field(stat, 24), Some(456));
        assert_eq!(field(stat, 3), None);
        assert_eq!(field(stat, 99), None);
        assert_eq!(field("", 20), None);
    }

    #[test]
    fn this_process_is_known() {
        let process = Process::read();
        assert!(process.cpu.is_some_and(|cpu| !cpu.is_zero()));
        assert!(
            process
                .resident
                .is_some_and(|bytes| (1 << 20..1 << 32).contains(&bytes))
        );
        assert!(process.virtual_size > process.resident);
        assert!(process.threads.is_some_and(|threads| threads >= 1));
        let open = process.open_fds.unwrap();
        assert!(open >= 3 && Some(open) < process.max_fds, "{process:?}");
    }
}
