//! A network namespace that lives as long as its value, and commands that run inside it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace without a name: nothing is left behind when a test dies.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes a namespace with its loopback device up, and without IPv6's wait for duplicate addresses.
    pub(crate) fn new() -> Self {
        // unshare(2) moves the calling thread alone, so a thread of its own keeps the test's where it is.
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own needs root");
            File::open("/proc/thread-self/ns/net").expect("the namespace's file")
        })
        .join()
        .expect("the namespace's thread");
        let namespace = Self { file };
        namespace.ip("link set lo up");
        // Link-local addresses are then there with the device, and nothing changes by itself later, which would blur what
        // the agent does. Routers cannot do without them (`ndisc_send_ns()`).
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        // A namespace begins with the machine's settings for IPv4, and distributions differ; the kernel has this one off. The
        // larger of a device's and that of all counts.
        namespace.sysctl("net.ipv4.conf.all.rp_filter", "0");
        namespace.sysctl("net.ipv4.conf.default.rp_filter", "0");
        namespace
    }

    /// A command that will run inside the namespace, and be killed when the test's thread dies.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = self.file.as_raw_fd();
        // SAFETY: both calls are async-signal-safe system calls; the descriptor outlives the fork.
        unsafe {
            command.pre_exec(move || {
                setns(BorrowedFd::borrow_raw(file), CloneFlags::CLONE_NEWNET)?;
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                Ok(())
            });
        }
        command
    }

    /// Runs a command line, split at white space, and returns what it printed.
    ///
    /// Panics with its output when it fails: most of a test's commands are its set-up.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "`{line}` failed: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs a command line, split at white space, whatever comes of it.
    pub(crate) fn try_run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line");
        self.command(program)
            .args(words)
            .output()
            .unwrap_or_else(|error| panic!("`{line}` did not start: {error}"))
    }

    /// `ip ARGUMENTS`.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.run(&format!("ip {arguments}"))
    }

    /// Writes a sysctl of the namespace.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        self.run(&format!("sysctl -qw {name}={value}"));
    }

    /// Joins this namespace and another by a veth pair with the given ends.
    pub(crate) fn connect(&self, end: &str, other: &Self, other_end: &str) {
        let pid_file = format!("/proc/self/fd/{}", other.file.as_fd().as_raw_fd());
        let output = {
            let mut command = self.command("ip");
            let arguments =
                format!("link add {end} type veth peer name {other_end} netns {pid_file}");
            command.args(arguments.split_whitespace());
            // `ip` opens the path itself, so the descriptor must survive the exec.
            let file = other.file.as_raw_fd();
            // SAFETY: fcntl(2) is async-signal-safe; the descriptor outlives the fork.
            unsafe {
                command.pre_exec(move || {
                    let fd = BorrowedFd::borrow_raw(file);
                    nix::fcntl::fcntl(
                        fd,
                        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
                    )?;
                    Ok(())
                });
            }
            command.output().expect("ip")
        };
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// For threads that move into the namespace themselves, by setns(2).
impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
