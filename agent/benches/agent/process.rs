//! What the kernel tells of a process.

use std::collections::HashSet;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time, user and system, of all programs that this one has waited for.
pub(crate) fn cpu_of_children() -> Result<Duration> {
    cpu_fields("self", 13..15)
}

/// Processor time, user and system, of this program's threads of a name.
pub(crate) fn cpu_of_thread(name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir("/proc/self/task").context("this program's threads")? {
        let thread = thread?.path();
        // A thread may end meanwhile.
        let Ok(comm) = fs::read_to_string(thread.join("comm")) else {
            continue;
        };
        if comm.trim_end() == name {
            let id = thread.file_name().unwrap_or_default().to_string_lossy();
            sum += cpu_fields(&format!("self/task/{id}"), 11..13)?;
        }
    }
    Ok(sum)
}

/// Sums up times of `/proc/PID/stat`. After the process's name, `utime`, `stime`, `cutime` and `cstime` are the fields 11
/// to 14, counted from 0 (proc(5)).
fn cpu_fields(process: &str, fields: Range<usize>) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name may hold anything.
    let (_, rest) = text.rsplit_once(')').context("a process without a name")?;
    let mut ticks = 0;
    for field in rest
        .split_whitespace()
        .skip(fields.start)
        .take(fields.len())
    {
        ticks += field.parse::<u64>().with_context(|| path.clone())?;
    }
    // `USER_HZ` is 100 on every machine that flannel runs on.
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory in bytes.
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
    /// What of it is not pages of files.
    pub(crate) private: u64,
}

/// A process, by its number.
#[derive(Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// How many routes the largest table of the program's namespace has. Without rules the tables `main` and `local` are
    /// one trie, which is listed under both names (`fib_triestat_seq_show()`).
    pub(crate) fn prefixes(self) -> Result<usize> {
        let path = format!("/proc/{}/net/fib_triestat", self.0);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let counts = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Prefixes:"));
        let counts = counts.map(|count| count.trim().parse::<usize>());
        let counts = counts.collect::<Result<Vec<_>, _>>();
        let counts = counts.with_context(|| path.clone())?;
        Ok(counts.into_iter().max().unwrap_or(0))
    }

    /// How often the program's threads have waited for something so far.
    pub(crate) fn wake_ups(self) -> Result<u64> {
        let path = format!("/proc/{}/task", self.0);
        let mut sum = 0;
        for task in fs::read_dir(&path).with_context(|| path.clone())? {
            let text = fs::read_to_string(task?.path().join("status"))?;
            let mut lines = text.lines();
            let waits = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += waits
                .context("no count of switches")?
                .trim()
                .parse::<u64>()?;
        }
        Ok(sum)
    }

    /// Destinations of the routes over `flannel.1` in the program's namespace.
    pub(crate) fn routes(self) -> Result<HashSet<Ipv4Addr>> {
        let path = format!("/proc/{}/net/route", self.0);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let mut routes = HashSet::new();
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            if let (Some("flannel.1"), Some(hex)) = (fields.next(), fields.next()) {
                // The address as the machine's integer, of which the first byte is the first octet on any machine.
                let bits = u32::from_str_radix(hex, 16).with_context(|| path.clone())?;
                routes.insert(Ipv4Addr::from(bits.to_ne_bytes()));
            }
        }
        Ok(routes)
    }

    /// Processor time so far, user and system, of the program and the programs that it ran.
    pub(crate) fn cpu(self) -> Result<Duration> {
        cpu_fields(&self.0.to_string(), 11..15)
    }

    /// Resident memory.
    pub(crate) fn memory(self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.0);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let number: u64 = kibibytes
                .with_context(|| format!("{path} has no {name}"))?
                .parse()?;
            anyhow::Ok(number * 1024)
        };
        Ok(Memory {
            now: field("VmRSS:")?,
            peak: field("VmHWM:")?,
            private: field("RssAnon:")?,
        })
    }
}
