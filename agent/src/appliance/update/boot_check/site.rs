//! The site's own checks: programs in `/etc/selvage/boot-checks.d/`.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;

use crate::appliance::programs::{self, End, Ended, Launch};
use crate::appliance::update::state::FailedCheck;

/// Where they are.
const DIRECTORY: &str = "etc/selvage/boot-checks.d";

/// The name by which the directory itself passes, if it can be read, or fails.
pub(super) const ITSELF: &str = ".";

/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `EX_TEMPFAIL` of sysexits.h: the check cannot tell, or the cause is outside of this machine.
const OUTSIDE: i32 = 75;

/// The results.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// The names of those that passed.
    pub(super) passed: Vec<String>,
    /// Those that failed.
    pub(super) failed: Vec<FailedCheck>,
}

impl Results {
    fn add(&mut self, name: String, result: Result<(), (String, bool)>) {
        match result {
            Ok(()) => self.passed.push(name),
            Err((why, outside)) => self.failed.push(FailedCheck { name, why, outside }),
        }
    }
}

/// Runs all of them side by side. That they cannot be listed is a failure, too: they may be all that a site has.
pub(super) async fn run(root: &Path) -> Results {
    run_by(root, &Launch::new(PATIENCE)).await
}

async fn run_by(root: &Path, launch: &Launch) -> Results {
    let mut all = Results::default();
    let checks = match programs::list(&root.join(DIRECTORY)) {
        Ok(checks) => checks,
        Err(error) => {
            let why = format!("the site's checks cannot be read: {error}");
            all.add(ITSELF.to_owned(), Err((why, false)));
            return all;
        }
    };
    all.add(ITSELF.to_owned(), Ok(()));
    let results = join_all(checks.iter().map(|path| run_one(path, launch))).await;
    for (path, result) in checks.iter().zip(results) {
        let name = path.file_name().unwrap_or_default();
        all.add(name.to_string_lossy().into_owned(), result);
    }
    all
}

/// An error is the reason, and whether its cause is outside.
async fn run_one(path: &Path, launch: &Launch) -> Result<(), (String, bool)> {
    let Ended { end, said } = launch
        .run(path, |_| ())
        .await
        .map_err(|error| (format!("systemd-run cannot run it: {error}"), false))?;
    match end {
        End::Status(status) if status.success() => Ok(()),
        End::Status(status) => {
            let separator = if said.is_empty() { "" } else { ": " };
            let why = format!("{status}{separator}{said}");
            Err((why, status.code() == Some(OUTSIDE)))
        }
        End::Hung(ran) => Err((Ended::hung(ran, &said), false)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::appliance::update::samples::program;

    /// A root with checks, and what stands in for systemd.
    fn site(checks: &[(&str, &str)]) -> (tempfile::TempDir, Launch) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(DIRECTORY);
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in checks {
            program(&directory.join(name), text);
        }
        let launcher = root.path().join("launcher");
        let text = "for one; do case $one in --property=RuntimeMaxSec=*) limit=${one##*=};; \
                    --*) ;; *) exec timeout \"$limit\" \"$one\";; esac; done";
        program(&launcher, text);
        let launch = Launch {
            launcher,
            ..Launch::new(Duration::from_secs(60))
        };
        (root, launch)
    }

    fn failed(results: &Results) -> Vec<(&str, &str, bool)> {
        let failed = results.failed.iter();
        failed
            .map(|check| (&*check.name, &*check.why, check.outside))
            .collect()
    }

    #[tokio::test]
    async fn checks_pass_or_fail_by_their_status_and_say_why() {
        let (root, launch) = site(&[
            ("10-good", "echo well"),
            ("20-bad", "echo checking; echo no route >&2; exit 3"),
            ("30-elsewhere", "exit 75"),
        ]);
        let results = run_by(root.path(), &launch).await;
        assert_eq!(results.passed, [ITSELF, "10-good"]);
        assert_eq!(
            failed(&results),
            [
                ("20-bad", "exit status: 3: checking no route", false),
                ("30-elsewhere", "exit status: 75", true)
            ]
        );
    }

    #[tokio::test]
    async fn one_that_hangs_says_how_long_it_ran_and_what_it_printed_last() {
        let (root, mut launch) = site(&[
            ("10-hangs", "echo asking the disk; exec sleep 600"),
            ("20-mute", "exec sleep 600"),
        ]);
        // Enough for a shell to start and print on a busy host.
        launch.limit = Duration::from_secs(8);
        let results = run_by(root.path(), &launch).await;
        let why = "it had not ended after 8 s, and printed";
        assert_eq!(
            failed(&results),
            [
                ("10-hangs", &*format!("{why} last: asking the disk"), false),
                ("20-mute", &*format!("{why} nothing"), false)
            ]
        );
    }

    #[tokio::test]
    async fn checks_that_cannot_be_read_are_a_failure() {
        let (root, launch) = site(&[]);
        let directory = root.path().join(DIRECTORY);
        let passed = run_by(root.path(), &launch).await;
        assert_eq!(
            (passed.passed, passed.failed.len()),
            (vec![ITSELF.to_owned()], 0)
        );
        fs::remove_dir(&directory).unwrap();
        assert!(
            run_by(root.path(), &launch).await.failed.is_empty(),
            "none is none"
        );

        fs::write(&directory, "").unwrap();
        let results = run_by(root.path(), &launch).await;
        let (_, why, _) = failed(&results)[0];
        assert!(why.contains("cannot be read: Not a directory"), "{why}");
        fs::remove_file(&directory).unwrap();
        for (to, expected) in [
            ("/nowhere", "it is a link that leads nowhere"),
            ("boot-checks.d", "symbolic links"),
        ] {
            symlink(to, &directory).unwrap();
            let results = run_by(root.path(), &launch).await;
            let (name, why, outside) = failed(&results)[0];
            assert_eq!((name, outside), (ITSELF, false));
            assert!(why.contains(expected), "{why}");
            fs::remove_file(&directory).unwrap();
        }
        fs::create_dir(&directory).unwrap();
        symlink("/nowhere", directory.join("10-gone")).unwrap();
        let results = run_by(root.path(), &launch).await;
        assert_eq!(failed(&results)[0].0, "10-gone");
    }
}
