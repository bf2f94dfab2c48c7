//! The programs that change the ruleset for us: finding and running them.

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

/// How long one call may take that the agent waits for. It takes milliseconds, and longer when other programs hold the ruleset.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where programs are looked for after `$PATH`, which for a service may lack the directories for administrators.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The firewall cannot be read or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// A program that is needed is not there.
    #[error(
        "the program {program} is neither in PATH nor in {}: install {package}, or choose what does without it by firewall.mode, firewall.masquerade and firewall.forward",
        DIRECTORIES.join(", ")
    )]
    NoProgram {
        /// Its name.
        program: String,
        /// What most distributions call its package.
        package: &'static str,
    },
    /// A program cannot be started or spoken to.
    #[error("failed to run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program did not end in time.
    #[error("{} did not end within {} s", program.display(), deadline.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
        /// How long it could have taken.
        deadline: Duration,
    },
    /// All of it together did not end in time.
    #[error(
        "the rules were not in place within {} s: the programs that change them hang, or others hold the rules for long",
        deadline.as_secs()
    )]
    Late {
        /// How long it could have taken.
        deadline: Duration,
    },
    /// A program refused.
    #[error("{program} failed to {action}: {message}")]
    Refused {
        /// Its name.
        program: String,
        /// What it was asked for.
        action: &'static str,
        /// What it said.
        message: String,
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

/// Runs `program` with `arguments` and `input`. It is killed when it takes too long, or when the future is dropped.
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
                // It gave up before reading everything: what it printed says why.
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

/// What the program `name`, asked to `action`, said when it did not do so.
pub(crate) fn refused(name: impl Into<String>, action: &'static str, output: &Output) -> Error {
    // What follows the first lines is the script, with marks below the places that were not liked.
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
    Error::Refused {
        program: name.into(),
        action,
        message,
    }
}
