//! The history of the boot's figures, `boot-history.md` beside this crate's README: a table that gets a line when
//! somebody asks for it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    pairs::{self, Pair, Pairs},
    table_file,
};

/// What a line of the table is made of.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// Year, month and day.
    pub date: String,
    /// The image's version.
    pub version: &'a str,
    /// How the machines ran.
    pub machine: String,
    /// Their times.
    pub pairs: &'a Pairs,
    /// What moved them.
    pub change: &'a str,
}

impl Entry<'_> {
    /// The line's cells.
    fn cells(&self) -> [String; 6] {
        let times = self.pairs.each_ref().map(|pairs| {
            let Pair { ours, other } = Pair::median(pairs);
            format!("{ours:.1}, {other:.1}, {:.2}", pairs::ratio(pairs))
        });
        let [first, second] = times;
        let count = self.pairs[0].len();
        [
            self.date.clone(),
            self.version.to_owned(),
            format!("{}, {count} pairs", self.machine),
            first,
            second,
            self.change.to_owned(),
        ]
    }
}

/// The file in the repository that this was built in.
pub(super) fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("boot-history.md")
}

/// Adds a line to the table at the end of the file.
///
/// # Errors
/// When the file has no table at its end, or cannot be written.
pub(super) fn add(path: &Path, entry: &Entry<'_>) -> Result<()> {
    table_file::append(path, &entry.cells())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pairs() -> Pairs {
        let pair = |ours, other| Pair { ours, other };
        [
            vec![pair(30.0, 60.0), pair(32.0, 60.0), pair(31.0, 62.0)],
            vec![pair(22.0, 55.0), pair(22.0, 55.0), pair(23.0, 55.0)],
        ]
    }

    #[test]
    fn a_line_has_the_medians_and_stays_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.md");
        let head = fs::read_to_string(super::path()).unwrap();
        fs::write(&path, &head).unwrap();
        let entry = Entry {
            date: "2026-11-30".to_owned(),
            version: "0.1.0.765",
            machine: "TCG, 2 CPUs".to_owned(),
            pairs: &pairs(),
            change: "etcd earlier | sshd\nlater",
        };
        add(&path, &entry).unwrap();
        add(&path, &entry).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let added = text.strip_prefix(&head).unwrap();
        let line = "| 2026-11-30 | 0.1.0.765 | TCG, 2 CPUs, 3 pairs | 31.0, 60.0, 0.50 | 22.0, 55.0, 0.40 | \
                    etcd earlier / sshd later |\n";
        assert_eq!(added, line.repeat(2));
        // As many cells as the table's head.
        let cells = |line: &str| line.matches('|').count();
        assert_eq!(cells(line), cells(head.lines().last().unwrap()));
    }

    #[test]
    fn a_file_without_a_table_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.md");
        let entry = Entry {
            date: String::new(),
            version: "",
            machine: String::new(),
            pairs: &pairs(),
            change: "",
        };
        for text in ["", "words\n", "| no end |"] {
            fs::write(&path, text).unwrap();
            add(&path, &entry).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
