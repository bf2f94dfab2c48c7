//! `selvage sysext list`.

use std::io::{self, Write};

use serde::Serialize;

use crate::appliance::update::machine::Machine;
use crate::appliance::update::sysext::{Kept, StoreError};
use crate::appliance::update::version::Version;

/// What is the matter with an extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Merged,
    NotMerged,
    OtherVersion,
}

/// An extension as the list shows it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    kept: Kept,
    state: State,
}

impl Row {
    /// Whether it should be in `/usr` and is not.
    pub(super) fn is_missing(&self) -> bool {
        self.state == State::NotMerged
    }
}

/// All that is on this disk.
pub(super) fn rows(machine: &Machine) -> Result<Vec<Row>, StoreError> {
    let (store, running) = (machine.sysexts(), machine.running());
    let merged = store.merged();
    let row = |kept: Kept| {
        let fits = kept
            .version
            .as_ref()
            .is_none_or(|version| version == running);
        let state = match (fits, merged.contains(&kept.name)) {
            (false, _) => State::OtherVersion,
            (true, true) => State::Merged,
            (true, false) => State::NotMerged,
        };
        Row { kept, state }
    };
    Ok(store.list()?.into_iter().map(row).collect())
}

/// Prints the list for people.
pub(super) fn print(rows: &[Row], output: &mut impl Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(output, "no system extensions");
    }
    writeln!(output, "{:<16} {:<18} STATE", "NAME", "VERSION")?;
    for Row { kept, state } in rows {
        let version = kept.version.as_ref().map_or("by hand", Version::as_str);
        let state = match state {
            State::Merged => "merged",
            State::NotMerged => "not merged: journalctl -u systemd-sysext says why",
            State::OtherVersion => "waits for its version",
        };
        writeln!(output, "{:<16} {version:<18} {state}", kept.name)?;
    }
    Ok(())
}
