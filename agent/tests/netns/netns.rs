//! Network namespaces that live as long as their value.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with its loopback device up. It goes away with the last process and file in it.
pub(crate) struct NetNs {
    file: File,
}

/// The calling thread is in the namespace while this lives, and so is every process and socket that it makes.
pub(crate) struct Entered {
    outside: File,
    /// Namespaces belong to threads.
    not_send: PhantomData<*const ()>,
}

impl NetNs {
    /// Makes a namespace.
    ///
    /// # Panics
    ///
    /// Without CAP_SYS_ADMIN there is nothing to test with, and a test that silently does nothing is worse than none.
    pub(crate) fn new() -> Self {
        let outside = current();
        unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| {
            panic!("a network namespace needs root ({error}); run `make test-netns`")
        });
        let inside = Self { file: current() };
        setns(&outside, CloneFlags::CLONE_NEWNET).unwrap();
        inside.ip("link set lo up");
        inside
    }

    /// Enters the namespace with the calling thread until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered {
        let outside = current();
        setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
        Entered {
            outside,
            not_send: PhantomData,
        }
    }

    /// A path that stands for the namespace in `ip link set … netns PATH` while this lives.
    pub(crate) fn path(&self) -> String {
        let pid = std::process::id();
        format!("/proc/{pid}/fd/{}", self.file.as_raw_fd())
    }

    /// Runs a program in the namespace and returns what it printed.
    ///
    /// # Panics
    ///
    /// If the program fails.
    pub(crate) fn run(&self, program: &str, args: &str) -> String {
        let output = self.output(program, args);
        assert!(
            output.status.success(),
            "{program} {args}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program in the namespace, whatever comes of it.
    pub(crate) fn output(&self, program: &str, args: &str) -> Output {
        let _inside = self.enter();
        Command::new(program)
            .args(args.split_whitespace())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs ip(8).
    pub(crate) fn ip(&self, args: &str) -> String {
        self.run("ip", args)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        setns(&self.outside, CloneFlags::CLONE_NEWNET).unwrap();
    }
}

/// The calling thread's namespace.
fn current() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}
