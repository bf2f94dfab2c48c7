//! A network namespace that lives as long as its value, and what runs in it.
//!
//! It has no name anywhere, so nothing is left of it whatever becomes of the harness.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::child;

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace with its loopback device up.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
}

/// What went through a device, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
}

impl Namespace {
    /// Makes a namespace.
    ///
    /// # Errors
    /// Without the rights of root.
    pub(super) fn new() -> Result<Self> {
        // unshare(2) moves the calling thread alone, so a thread of its own keeps the harness where it is.
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace")?;
            File::open(OWN).with_context(|| format!("failed to open {OWN}"))
        });
        let file = made
            .join()
            .map_err(|_| anyhow!("the thread of a new network namespace panicked"))??;
        let namespace = Self { file };
        namespace.ip("link set lo up")?;
        // A namespace begins with the machine's settings for IPv4. The larger of a device's and that of all counts.
        for name in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
        Ok(namespace)
    }

    /// A path that stands for it while this lives.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// A command that will run in it.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.as_raw_fd();
        // SAFETY: setns is an async-signal-safe system call. `Command` does not borrow the namespace; should that be gone by
        // then, the descriptor is closed or another file, and setns says so.
        unsafe {
            command.pre_exec(move || {
                setns(BorrowedFd::borrow_raw(file), CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command
    }

    /// Runs a command line, split at white space, and gives what it printed.
    ///
    /// # Errors
    /// When it fails; the message has its words.
    pub(super) fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        let output = child::die_with_parent(command.args(words).stdin(Stdio::null()))
            .output()
            .with_context(|| format!("failed to run `{line}`"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}`: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `ip ARGUMENTS`.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn ip(&self, arguments: &str) -> Result<String> {
        self.run(&format!("ip {arguments}"))
    }

    /// A cable: `device` here, `port` on the bridge `switch` of another namespace.
    ///
    /// # Errors
    /// When ip(8) fails.
    pub(super) fn plug_in(&self, device: &str, switch: &Self, port: &str) -> Result<()> {
        let there = switch.path();
        self.ip(&format!(
            "link add {device} type veth peer name {port} netns {there}"
        ))?;
        switch.ip(&format!("link set {port} master switch up"))?;
        self.ip(&format!("link set {device} up"))?;
        Ok(())
    }

    /// Sets a value below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{name}");
        self.inside(|| {
            fs::write(&path, value).with_context(|| format!("failed to write {value} to {path}"))
        })
    }

    /// What has gone through a device since it was made.
    ///
    /// # Errors
    /// When there is no such device.
    pub(super) fn bytes(&self, device: &str) -> Result<Bytes> {
        let path = "/proc/thread-self/net/dev";
        let text = self.inside(|| {
            fs::read_to_string(path).with_context(|| format!("failed to read {path}"))
        })?;
        bytes_of(&text, device).with_context(|| format!("no device {device} in {path}"))
    }

    /// Does something with a thread that is in the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let work = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .context("failed to enter a network namespace")?;
            work()
        };
        thread::scope(|scope| scope.spawn(work).join())
            .map_err(|_| anyhow!("a thread in a network namespace panicked"))?
    }
}

/// A device's counters in a `/proc/net/dev`: its name, eight of what it received, eight of what it sent; bytes come first.
fn bytes_of(text: &str, device: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == device).then_some(counters)
    })?;
    let mut counters = line.split_whitespace().map(str::parse);
    let received = counters.next()?.ok()?;
    let sent = counters.nth(7)?.ok()?;
    Some(Bytes { received, sent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_the_device() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    0    0    0     0          0         0        1       2    0    0    0     0       0          0
flannel.1: 5000000000 9 0 0 0 0 0 0 6000000000 8 0 0 0 0 0 0
";
        let bytes = |received, sent| Some(Bytes { received, sent });
        assert_eq!(bytes_of(text, "lo"), bytes(1, 1));
        assert_eq!(
            bytes_of(text, "flannel.1"),
            bytes(5_000_000_000, 6_000_000_000)
        );
        assert_eq!(bytes_of(text, "flannel"), None);
        assert_eq!(bytes_of("eth0: 1 2", "eth0"), None);
    }
}
