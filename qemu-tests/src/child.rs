//! Child processes that never outlive the harness.
//!
//! A dropped [`Child`] is killed and reaped. Should the harness die without unwinding (SIGKILL, abort), the kernel kills
//! the child: `PR_SET_PDEATHSIG`. That signal follows the *thread* that forked (prctl(2)), hence children are started
//! on the main thread only, which the current-thread runtime of `main` sees to.

use std::{
    os::unix::process::CommandExt as _,
    process::{ExitStatus, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

/// A running process that dies with this value.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
}

/// Makes the process die when the harness does.
pub(crate) fn die_with_parent(command: &mut std::process::Command) -> &mut std::process::Command {
    let parent = Pid::this();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: prctl and getppid are plain system calls
    // and nothing here allocates.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the call above took effect.
            if getppid() == parent {
                Ok(())
            } else {
                Err(nix::Error::ESRCH.into())
            }
        })
    }
}

impl Child {
    /// Starts `command`, without standard input; `name` is what messages call it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn spawn(
        name: impl Into<String>,
        mut command: std::process::Command,
    ) -> Result<Self> {
        let name = name.into();
        let process = die_with_parent(&mut command)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| {
                format!(
                    "failed to start {name} ({})",
                    command.get_program().display()
                )
            })?;
        Ok(Self { name, process })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.process
            .try_wait()
            .with_context(|| format!("failed to wait for {}", self.name))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when the process is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_dropped_child_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let child = Child::spawn("sleep", command).unwrap();
        let path = format!("/proc/{}", child.id());
        assert!(std::path::Path::new(&path).exists());
        drop(child);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Child::spawn("probe", Command::new("/no/such/program")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to start probe (/no/such/program)"
        );
    }
}
