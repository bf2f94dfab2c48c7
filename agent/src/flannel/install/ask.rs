//! What an installed CNI plugin says of itself.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::Value;

/// A plugin answers at once; whatever does not is none.
const LIMIT: Duration = Duration::from_secs(5);

/// What a pipe holds, in bytes; a program that prints more waits for a reader, until it is killed.
const LONGEST: u64 = 1 << 16;

/// The words that end every version of ours, and no other's.
const OURS: &str = "(selvage,";

/// What a plugin called `flannel` says when it is run by hand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct About {
    /// Its version: `v1.9.1-flannel3`.
    pub(super) version: String,
    pub(super) is_ours: bool,
}

/// What a program has printed.
struct Printed {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Asks a plugin who it is; `None` if it cannot be run here or is another program.
pub(super) fn about(program: &Path) -> Option<About> {
    parse(&String::from_utf8_lossy(&run(program, None)?.stderr))
}

/// Asks a plugin which versions of the CNI specification it knows; `None` if it does not say.
pub(super) fn versions(program: &Path) -> Option<Vec<String>> {
    let output = run(program, Some("VERSION"))?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    let versions = answer.get("supportedVersions")?.as_array()?;
    let text = |version: &Value| version.as_str().map(ToOwned::to_owned);
    Some(versions.iter().filter_map(text).collect())
}

/// The first line that plugins made with CNI's `skel` print, and ours.
fn parse(text: &str) -> Option<About> {
    let words = text
        .trim_start()
        .strip_prefix("CNI Plugin flannel version ")?;
    let line = words.lines().next()?;
    Some(About {
        version: line.split(' ').next()?.to_owned(),
        is_ours: line.contains(OURS),
    })
}

fn run(program: &Path, command: Option<&str>) -> Option<Printed> {
    let mut child = Command::new(program)
        .env_clear()
        .envs(command.map(|command| ("CNI_COMMAND", command)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let start = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if start.elapsed() > LIMIT {
            // It may have ended meanwhile.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        sleep(Duration::from_millis(5));
    }
    Some(Printed {
        stdout: rest(child.stdout?)?,
        stderr: rest(child.stderr?)?,
    })
}

/// What is in a pipe now. What the program has started may hold it open for ever.
fn rest(pipe: impl Read + AsFd) -> Option<Vec<u8>> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
    let mut bytes = Vec::new();
    // An error says that it is empty; what came before is there.
    let _ = pipe.take(LONGEST).read_to_end(&mut bytes);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("flannel");
        let text = "#!/bin/sh\nsleep 30 &\necho 'CNI Plugin flannel version 1.2 (x)' >&2\n";
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let start = Instant::now();
        let found = about(&program).unwrap();
        assert_eq!((found.version.as_str(), found.is_ours), ("1.2", false));
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn only_flannels_plugin_and_ours_are_known() {
        let about = |version: &str, is_ours| {
            let version = version.to_owned();
            Some(About { version, is_ours })
        };
        // As flannel-io/cni-plugin v1.9.1-flannel3 prints it, and its forerunner in containernetworking/plugins.
        for (text, expected) in [
            (
                "CNI Plugin flannel version v1.9.1-flannel3 (linux/amd64) commit 5c3b2b4\n\
                 CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n",
                about("v1.9.1-flannel3", false),
            ),
            ("CNI flannel plugin v0.9.1\n", None),
            (
                "CNI Plugin flannel version 0.1.0 (selvage, linux/amd64)\n",
                about("0.1.0", true),
            ),
            ("CNI Plugin bridge version 1.1.1\n", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn program_that_does_not_end_or_does_not_run_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(about(directory.path()), None);
        assert_eq!(about(Path::new("/dev/null")), None);
        assert_eq!(versions(Path::new("/bin/true")), None);
    }
}
