//! The site's own checks: programs in `/etc/selvage/boot-checks.d/`.
//!
//! Each is run by systemd, in a unit of its own: with its own privileges, and none of its processes outlives it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::appliance::update::state::FailedCheck;

/// Where they are.
const DIRECTORY: &str = "etc/selvage/boot-checks.d";

/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much longer to wait for systemd, which stops a check that takes too long.
const GRACE: Duration = Duration::from_secs(20);

/// `EX_TEMPFAIL` of sysexits.h: the check cannot tell, or the cause is outside of this machine.
const OUTSIDE: i32 = 75;

/// How much output is kept, in bytes: the end, where the error is.
const MOST_OUTPUT: usize = 600;

/// The results.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// The names of those that passed.
    pub(super) passed: Vec<String>,
    /// Those that failed.
    pub(super) failed: Vec<FailedCheck>,
}

/// Runs all of them side by side.
pub(super) async fn run(root: &Path) -> Results {
    let checks = checks(&root.join(DIRECTORY));
    let results = join_all(checks.iter().map(|path| run_one(path))).await;
    let mut all = Results::default();
    for (path, result) in checks.iter().zip(results) {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        match result {
            Ok(()) => all.passed.push(name),
            Err((why, outside)) => all.failed.push(FailedCheck { name, why, outside }),
        }
    }
    all
}

/// The programs in the directory, in the order of their names. Hidden files and editors' copies are skipped, as is what
/// cannot be executed: a README, say.
fn checks(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_program = |metadata: fs::Metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            };
            !name.starts_with('.')
                && !name.ends_with('~')
                && fs::metadata(path).is_ok_and(is_program)
        })
        .collect();
    paths.sort_unstable();
    paths
}

/// An error is the reason, and whether its cause is outside.
async fn run_one(path: &Path) -> Result<(), (String, bool)> {
    let inside = |why: String| (why, false);
    let mut child = Command::new("systemd-run")
        .args([
            "--quiet",
            "--collect",
            "--wait",
            "--pipe",
            "--service-type=exec",
        ])
        .arg(format!("--property=RuntimeMaxSec={}", PATIENCE.as_secs()))
        .arg("--property=TimeoutStopSec=5")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| inside(format!("systemd-run cannot be started: {error}")))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::join!(child.wait(), tail(stdout), tail(stderr)) };
    let Ok((status, stdout, stderr)) = timeout(PATIENCE + GRACE, ended).await else {
        return Err(inside(format!("no end after {} s", PATIENCE.as_secs())));
    };
    let status = status.map_err(|error| inside(format!("its end is not known: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let output = [stdout, stderr].concat();
    let output = words(&output);
    let separator = if output.is_empty() { "" } else { ": " };
    Err((
        format!("{status}{separator}{output}"),
        status.code() == Some(OUTSIDE),
    ))
}

/// Reads everything, and keeps the end.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let excess = kept.len().saturating_sub(MOST_OUTPUT);
        kept.drain(..excess);
    }
    kept
}

/// One line of printable text.
fn words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let text = text.replace(|character: char| character.is_control(), " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_alone_are_checks() {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [
            ("20-second", 0o755),
            ("10-first", 0o700),
            (".hidden", 0o755),
            ("10-first~", 0o755),
            ("README", 0o644),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(directory.path().join("30-directory")).unwrap();
        let found = checks(directory.path());
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["10-first", "20-second"]);
        assert!(checks(&directory.path().join("none")).is_empty());
    }

    #[tokio::test]
    async fn of_long_output_the_end_is_kept_on_one_line() {
        let output = format!("{}\n\x1b[1mthe error\n", "x".repeat(100_000));
        let kept = tail(Some(output.as_bytes())).await;
        assert_eq!(kept.len(), MOST_OUTPUT);
        let line = words(&kept);
        assert!(line.ends_with("xx [1mthe error"), "{line}");
    }
}
