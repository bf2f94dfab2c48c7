//! What the console shows above its login prompt after a fall-back.

use std::fs;
use std::io;
use std::path::Path;

use crate::appliance::update::state::State;

/// agetty(8) prints the files in this directory.
const FILE: &str = "run/issue.d/50-selvage-update.issue";

/// How much of the reason fits there, in characters.
const MOST_REASON: usize = 300;

/// Writes or removes the note.
pub(super) fn write(root: &Path, state: &State) {
    let path = root.join(FILE);
    let written = match text(state) {
        Some(text) => path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text)),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
    };
    if let Err(error) = written {
        tracing::warn!("failed to write {}: {error}", path.display());
    }
}

/// The last failure, until a later version has passed.
fn text(state: &State) -> Option<String> {
    let failed = state.failed.back()?;
    if state
        .blessed
        .as_ref()
        .is_some_and(|blessed| blessed.at > failed.at)
    {
        return None;
    }
    // A backslash would be an escape sequence.
    let line: String = failed.reason.replace(['\\', '\n', '\r'], " ");
    let reason: String = line.chars().take(MOST_REASON).collect();
    let version = &failed.version;
    Some(format!(
        "Update {version} failed, and this machine has fallen back: {reason}\n\
         It is not tried again by itself. More: selvage update status\n\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::state::{Failed, FailureCode};

    #[test]
    fn the_console_names_the_last_failure_until_a_later_version_works() {
        let root = tempfile::tempdir().unwrap();
        let shown = || fs::read_to_string(root.path().join(FILE)).ok();
        let mut state = State::default();
        write(root.path(), &state);
        assert_eq!(shown(), None);
        state.bless("1", 1);
        state.fail(Failed {
            version: "2".to_owned(),
            at: 2,
            boots: 3,
            code: FailureCode::Docker,
            reason: "Docker\\n does\nnot answer".to_owned(),
        });
        write(root.path(), &state);
        let text = shown().unwrap();
        assert!(
            text.starts_with(
                "Update 2 failed, and this machine has fallen back: Docker n does not answer\n"
            ),
            "{text}"
        );
        state.bless("3", 3);
        write(root.path(), &state);
        assert_eq!(shown(), None);
    }
}
