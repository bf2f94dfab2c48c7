//! Finds and runs the programs that change the rules of iptables.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::host::netlink::{KernelError, Refused};

/// Deadline of a call that the agent waits for. Usually milliseconds; longer while another program holds the lock.
const DEADLINE: Duration = Duration::from_secs(10);

/// Directories searched after `$PATH`, because a service's PATH may lack the sbin directories.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Why the firewall could not be read or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// A required program is not installed.
    #[error(
        "failed to find {program} in PATH or in {}: install {package}, set firewall.mode to the other mode, or turn off firewall.masquerade and firewall.forward",
        DIRECTORIES.join(", ")
    )]
    NoProgram {
        /// Its name.
        program: String,
        /// The name of its package in most distributions.
        package: &'static str,
    },
    /// Failed to start a program or to talk to it.
    #[error("failed to run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program exceeded its deadline.
    #[error("{} timed out after {} s", program.display(), deadline.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
        /// The deadline.
        deadline: Duration,
    },
    /// The whole pass exceeded its deadline.
    #[error(
        "failed to apply the firewall rules within {} s: iptables hangs, or another program holds its lock",
        deadline.as_secs()
    )]
    Late {
        /// The deadline.
        deadline: Duration,
    },
    /// A program failed.
    #[error("{program} failed to {action}: {message}")]
    Refused {
        /// Its name.
        program: String,
        /// What it should have done.
        action: &'static str,
        /// Its error output.
        message: String,
    },
    /// The kernel has no nf_tables.
    #[error(
        "this kernel has no nftables: load its module nf_tables, set firewall.mode to iptables, or turn off firewall.masquerade and firewall.forward"
    )]
    NoNftables,
    /// The netlink exchange with nf_tables failed.
    #[error("failed to {action}")]
    Netlink {
        /// What it was for.
        action: &'static str,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// nf_tables refused a transaction, and nothing has changed.
    #[error("the kernel refused to {action}")]
    Kernel {
        /// What was asked for.
        action: &'static str,
        /// Why.
        #[source]
        source: Refused,
    },
}

/// The path of the program `name`, if there is one.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(DIRECTORIES.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    fs::metadata(program)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Runs `program` with `arguments` and `input`. It is killed at the deadline, or when the future is dropped.
pub(crate) async fn run(
    program: PathBuf,
    arguments: &[&str],
    input: &str,
) -> Result<Output, Error> {
    run_within(DEADLINE, program, arguments, input).await
}

/// The same with another deadline.
pub(super) async fn run_within(
    deadline: Duration,
    program: PathBuf,
    arguments: &[&str],
    input: &str,
) -> Result<Output, Error> {
    let run = async {
        let mut child = Command::new(&program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // The program closed its input early; its output says why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        child.wait_with_output().await
    };
    match timeout(deadline, run).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(source)) => Err(Error::Run { program, source }),
        Err(_) => Err(Error::Timeout { program, deadline }),
    }
}

/// What program `name` printed, or the error if it failed to `action`.
pub(crate) fn printed(
    name: impl Into<String>,
    action: &'static str,
    output: &Output,
) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("# Warning"))
        .take(3)
        .collect();
    let mut message = lines.join(" | ");
    if message.is_empty() {
        message = output.status.to_string();
    }
    Err(Error::Refused {
        program: name.into(),
        action,
        message,
    })
}
