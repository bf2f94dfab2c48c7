//! The site's programs in a directory below `/etc/selvage/`: boot checks and drain hooks.
//!
//! Each is run by systemd in a unit of its own: with its own privileges, without the sandbox of the service that asks for
//! it, and none of its processes outlives it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// How much output is kept, in bytes: the end, where the error is.
const MOST_OUTPUT: usize = 600;

/// The most bytes of a line of output that are heard at once.
const LONGEST_LINE: u64 = 2048;

/// The programs in the directory, in the order of their names; none if there is no such directory. Hidden files and
/// editors' copies are skipped, as is what cannot be executed: a README, say. What cannot be looked at, such as a link that
/// leads nowhere, is listed: to run it fails, and that is told.
///
/// # Errors
/// The directory is there and cannot be read.
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // A link that leads nowhere is not found either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(directory) {
                Ok(_) => Err(io::Error::other("it is a link that leads nowhere")),
                Err(_) => Ok(Vec::new()),
            };
        }
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_program = |metadata: fs::Metadata| {
            metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
        };
        if !name.starts_with('.')
            && !name.ends_with('~')
            && fs::metadata(&path).map_or(true, is_program)
        {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// How programs are run.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    /// What runs a program with the arguments that follow its own: systemd-run(1).
    pub(super) launcher: PathBuf,
    /// How long a program may take; systemd stops it then. In whole seconds, at least one.
    pub(super) limit: Duration,
    /// How much longer to wait for systemd.
    pub(super) grace: Duration,
    /// A `NAME=VALUE` more in its environment.
    pub(super) variable: Option<String>,
}

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// By itself.
    Status(ExitStatus),
    /// It did not, for so long.
    Hung(Duration),
}

/// What became of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ended {
    /// How it ended.
    pub(super) end: End,
    /// The last that it printed, on one line of printable text; may be empty.
    pub(super) said: String,
}

impl Launch {
    /// As the image does it, with a limit.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            launcher: PathBuf::from("systemd-run"),
            limit,
            grace: Duration::from_secs(20),
            variable: None,
        }
    }

    /// Has systemd run a program, and waits for its end. `hear` hears each line that it prints.
    ///
    /// # Errors
    /// systemd cannot be asked to run it.
    pub(super) async fn run(&self, path: &Path, hear: impl Fn(&str) + Sync) -> io::Result<Ended> {
        // Before the program can have begun: on a busy host this may come to run again after it.
        let begun = Instant::now();
        let mut child = self.command(path).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // Not inside of what is given up when the time is over.
        let (out, err) = (Mutex::default(), Mutex::default());
        let ended = async {
            let (status, (), ()) = tokio::join!(
                child.wait(),
                follow(stdout, &out, &hear),
                follow(stderr, &err, &hear)
            );
            status
        };
        let ended = timeout(self.limit + self.grace, ended).await;
        let end = match ended {
            // A program that fails after its limit was stopped by systemd.
            Ok(status) => match status? {
                status if status.success() || begun.elapsed() < self.limit => End::Status(status),
                _ => End::Hung(self.limit),
            },
            Err(_) => End::Hung(begun.elapsed()),
        };
        let printed =
            |kept: Mutex<Vec<u8>>| kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        let said = words(&[printed(out), printed(err)].concat());
        Ok(Ended { end, said })
    }

    /// It ends with the program's status, and its output is the program's.
    fn command(&self, path: &Path) -> Command {
        let mut command = Command::new(&self.launcher);
        command
            .args([
                "--quiet",
                "--collect",
                "--wait",
                "--pipe",
                "--service-type=exec",
            ])
            .arg(format!("--property=RuntimeMaxSec={}", self.limit.as_secs()))
            .arg("--property=TimeoutStopSec=5")
            .args((self.variable.as_ref()).map(|variable| format!("--setenv={variable}")))
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

impl Ended {
    /// Why a program that hung is given up: how long it ran, and what it printed last.
    pub(super) fn hung(ran: Duration, said: &str) -> String {
        let secs = ran.as_secs();
        match said {
            "" => format!("it had not ended after {secs} s, and printed nothing"),
            said => format!("it had not ended after {secs} s, and printed last: {said}"),
        }
    }
}

/// Reads everything, line by line, and keeps the end.
async fn follow(
    stream: Option<impl AsyncRead + Unpin>,
    kept: &Mutex<Vec<u8>>,
    hear: &(impl Fn(&str) + Sync),
) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut rest = (&mut lines).take(LONGEST_LINE);
        match rest.read_until(b'\n', &mut line).await {
            Ok(1..) => hear(String::from_utf8_lossy(&line).trim_end()),
            Ok(0) | Err(_) => return,
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&line);
        let excess = kept.len().saturating_sub(MOST_OUTPUT);
        kept.drain(..excess);
    }
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
    fn programs_alone_are_listed() {
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
        let found = list(directory.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["10-first", "20-second"]);
        assert!(list(&directory.path().join("none")).unwrap().is_empty());
        list(&directory.path().join("README")).unwrap_err();
    }

    #[test]
    fn links_that_lead_nowhere_are_not_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let link = |name: &str, to: &str| {
            std::os::unix::fs::symlink(to, directory.path().join(name)).unwrap();
        };
        link("hooks", "/nowhere");
        let error = list(&directory.path().join("hooks")).unwrap_err();
        assert_eq!(error.to_string(), "it is a link that leads nowhere");
        fs::remove_file(directory.path().join("hooks")).unwrap();
        link("10-gone", "/nowhere/program");
        // So a site takes away a program of the image's.
        link("20-masked", "/dev/null");
        let found = list(directory.path()).unwrap();
        assert_eq!(found, [directory.path().join("10-gone")]);
    }

    #[tokio::test]
    async fn of_long_output_the_end_is_kept_on_one_line() {
        let output = format!("{}\n\x1b[1mthe error\n", "x".repeat(100_000));
        let (kept, heard) = (Mutex::default(), Mutex::new(0));
        let hear = |line: &str| *heard.lock().unwrap() += line.len();
        follow(Some(output.as_bytes()), &kept, &hear).await;
        let kept = kept.into_inner().unwrap();
        assert_eq!(kept.len(), MOST_OUTPUT);
        let line = words(&kept);
        assert!(line.ends_with("xx [1mthe error"), "{line}");
        assert_eq!(heard.into_inner().unwrap(), output.trim_end().len() - 1);
    }

    #[tokio::test]
    async fn what_outlasts_even_systemd_is_given_up_with_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let launcher = directory.path().join("launcher");
        let text = "#!/bin/sh\necho asking the disk; echo 'no answer yet' >&2; exec sleep 600\n";
        fs::write(&launcher, text).unwrap();
        fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
        let launch = Launch {
            launcher,
            grace: Duration::from_secs(1),
            ..Launch::new(Duration::from_secs(1))
        };
        let ended = launch.run(Path::new("/hook"), |_| ()).await.unwrap();
        let End::Hung(ran) = ended.end else {
            panic!("{ended:?}")
        };
        assert_eq!(
            Ended::hung(ran, &ended.said),
            "it had not ended after 2 s, and printed last: asking the disk no answer yet"
        );
    }
}
