//! The site's own checks: programs in `/etc/selvage/boot-checks.d/`.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::appliance::programs;
use crate::appliance::update::state::FailedCheck;

/// Where they are.
const DIRECTORY: &str = "etc/selvage/boot-checks.d";

/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let checks = programs::list(&root.join(DIRECTORY)).unwrap_or_default();
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

/// An error is the reason, and whether its cause is outside.
async fn run_one(path: &Path) -> Result<(), (String, bool)> {
    let inside = |why: String| (why, false);
    let mut child = programs::command("systemd-run", path, PATIENCE, None)
        .spawn()
        .map_err(|error| inside(format!("systemd-run cannot be started: {error}")))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::join!(child.wait(), tail(stdout), tail(stderr)) };
    let Ok((status, stdout, stderr)) = timeout(PATIENCE + programs::GRACE, ended).await else {
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

    #[tokio::test]
    async fn of_long_output_the_end_is_kept_on_one_line() {
        let output = format!("{}\n\x1b[1mthe error\n", "x".repeat(100_000));
        let kept = tail(Some(output.as_bytes())).await;
        assert_eq!(kept.len(), MOST_OUTPUT);
        let line = words(&kept);
        assert!(line.ends_with("xx [1mthe error"), "{line}");
    }
}
