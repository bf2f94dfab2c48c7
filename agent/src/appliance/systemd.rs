//! What is asked of systemd, by `systemctl`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long systemd may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it may take for a job that is waited for. One that has systemd read all units again takes half a minute on a
/// machine that is emulated on a busy host, and whoever gives up sooner changes files under it.
const JOB_PATIENCE: Duration = Duration::from_secs(300);

/// The systemd of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Systemd {
    program: PathBuf,
}

impl Systemd {
    /// Of the machine whose root this is.
    pub(crate) fn of(root: &Path) -> Self {
        Self {
            program: root.join("usr/bin/systemctl"),
        }
    }

    /// Runs `systemctl`, whatever its status then is.
    ///
    /// # Errors
    /// It cannot be run, or has not ended after 20 seconds.
    pub(crate) async fn run(&self, arguments: &[&str]) -> io::Result<Output> {
        self.run_within(PATIENCE, arguments).await
    }

    async fn run_within(&self, patience: Duration, arguments: &[&str]) -> io::Result<Output> {
        let named = |why: String| {
            let program = self.program.display();
            let verb = arguments.first().unwrap_or(&"");
            io::Error::other(format!("{program} {verb}: {why}"))
        };
        let output = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        match timeout(patience, output).await {
            Ok(output) => output.map_err(|error| named(error.to_string())),
            Err(_) => Err(named(format!("no answer in {} s", patience.as_secs()))),
        }
    }

    /// What `systemctl` prints.
    ///
    /// # Errors
    /// As [`Self::run`], and another status than 0, with what it says.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> io::Result<String> {
        self.printed(PATIENCE, arguments).await
    }

    /// Has systemd carry out a job, and waits for its end.
    ///
    /// # Errors
    /// `systemctl` cannot be run, has not ended after five minutes, or says that the job failed.
    pub(crate) async fn finish(&self, job: &[&str]) -> io::Result<()> {
        self.printed(JOB_PATIENCE, job).await.map(drop)
    }

    async fn printed(&self, patience: Duration, arguments: &[&str]) -> io::Result<String> {
        let output = self.run_within(patience, arguments).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let verb = arguments.first().unwrap_or(&"");
        Err(io::Error::other(match said.trim() {
            "" => format!("systemctl {verb}: {}", output.status),
            said => format!("systemctl {verb}: {said}"),
        }))
    }

    /// Starts a unit, without waiting for it.
    ///
    /// # Errors
    /// systemd cannot be asked, or refuses.
    pub(crate) async fn start(&self, unit: &str) -> io::Result<()> {
        self.ask(&["start", "--no-block", unit]).await.map(drop)
    }

    /// Reboots the machine, without waiting for it.
    ///
    /// # Errors
    /// systemd cannot be asked, or refuses.
    pub(crate) async fn reboot(&self) -> io::Result<()> {
        self.ask(&["reboot", "--no-block"]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::samples::program;

    #[tokio::test]
    async fn what_systemd_refuses_is_said_and_what_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        let systemd = Systemd::of(root.path());
        let error = systemd.reboot().await.unwrap_err().to_string();
        assert!(
            error.contains("usr/bin/systemctl reboot: No such file"),
            "{error}"
        );
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        for (text, expected) in [
            (
                "echo Access denied >&2; exit 1",
                Err("systemctl start: Access denied".to_owned()),
            ),
            ("exit 4", Err("systemctl start: exit status: 4".to_owned())),
            ("[ \"$*\" = 'start --no-block a.service' ]", Ok(())),
        ] {
            program(&root.path().join("usr/bin/systemctl"), text);
            let started = systemd.start("a.service").await;
            assert_eq!(started.map_err(|error| error.to_string()), expected);
        }
    }

    /// The clock goes on while the program runs.
    #[tokio::test(start_paused = true)]
    async fn a_job_is_waited_for_longer_than_an_answer() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        program(&root.path().join("usr/bin/systemctl"), "exec sleep 60");
        let systemd = Systemd::of(root.path());
        let job = ["reload-or-restart", "a.service"];
        let asked = systemd.ask(&job).await.map(drop).unwrap_err();
        let finished = systemd.finish(&job).await.unwrap_err();
        assert!(asked.to_string().contains("no answer in 20 s"), "{asked}");
        assert!(
            finished.to_string().contains("no answer in 300 s"),
            "{finished}"
        );
    }
}
