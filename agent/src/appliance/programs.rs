//! The site's programs in a directory below `/etc/selvage/`: boot checks and drain hooks.
//!
//! Each is run by systemd in a unit of its own: with its own privileges, without the sandbox of the service that asks for
//! it, and none of its processes outlives it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How much longer than its limit to wait for a program, which systemd stops then.
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// The programs in the directory, in the order of their names; none if there is no such directory. Hidden files and
/// editors' copies are skipped, as is what cannot be executed: a README, say.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
            && fs::metadata(&path).is_ok_and(is_program)
        {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// The command that has systemd run a program; it ends with the program's status, and its output is the program's.
/// `launcher` is systemd-run(1), `limit` how long the program may take, `environment` a `NAME=VALUE` more.
pub(super) fn command(
    launcher: impl AsRef<OsStr>,
    path: &Path,
    limit: Duration,
    environment: Option<String>,
) -> Command {
    let mut command = Command::new(launcher);
    command
        .args([
            "--quiet",
            "--collect",
            "--wait",
            "--pipe",
            "--service-type=exec",
        ])
        .arg(format!("--property=RuntimeMaxSec={}", limit.as_secs()))
        .arg("--property=TimeoutStopSec=5")
        .args(environment.map(|variable| format!("--setenv={variable}")))
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
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
}
