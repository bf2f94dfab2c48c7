//! Judges the disk of a machine whose power was cut, without booting it.
//!
//! What is judged depends on how far the disk got. The partition table, the ESP, an entry that boots and its slot are
//! there from the start: the image as it was installed. The root partition counts from when it is in the table;
//! before, the next boot is the first one again. What of ours is in it counts from when the marker of a complete
//! provisioning is there.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::{File, OpenOptions},
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    esp::{self, Esp},
    gpt::{self, Partition},
    root,
    slot::{self, Hash},
};
use crate::write_log::{
    WriteLog,
    cut::{Cut, Piece},
    replay,
};

/// Which promise a disk breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Neither partition table is whole, or a partition is missing.
    PartitionTable,
    /// The ESP's file system is damaged.
    Esp,
    /// An entry is not whole, but another one boots.
    BootEntry,
    /// The entry that boots next is not whole or has no slot, or there is none.
    NextBoot,
    /// The root file system cannot be mounted before its super block is mended.
    RootSuperBlock,
    /// The root file system is damaged.
    RootFileSystem,
    /// A file of ours is half written.
    State,
    /// An SSH host key is half written.
    HostKey,
}

impl Kind {
    /// Whether the machine has to mend it, which then is to be booted: that is where the proof is. The initrd repairs
    /// a super block, sshd's start makes a key anew, and an entry that nothing starts is cleared by the next update
    /// at the latest.
    pub(super) fn is_mended(self) -> bool {
        matches!(self, Self::RootSuperBlock | Self::HostKey | Self::BootEntry)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PartitionTable => "partition table",
            Self::Esp => "ESP",
            Self::BootEntry => "boot entry",
            Self::NextBoot => "next boot",
            Self::RootSuperBlock => "root super block",
            Self::RootFileSystem => "root file system",
            Self::State => "state",
            Self::HostKey => "host key",
        })
    }
}

/// Something that is wrong with a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// Which promise it breaks.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
}

impl Finding {
    pub(super) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)
    }
}

/// The same value, the same bytes; see [`Cut::state_of`].
type State = (usize, Vec<Piece>);

/// Judges one cut after the other. What no cut changed is not judged twice.
pub(super) struct Judge<'a> {
    log: &'a WriteLog,
    /// Where partitions are copied to.
    scratch: PathBuf,
    /// The root hash of each UKI that was built, by its SHA-256.
    known: BTreeMap<Hash, Hash>,
    /// Bytes of the disk.
    size: u64,
    esps: HashMap<(Range<u64>, State), Esp>,
    slots: HashMap<(Hash, State, State), Option<String>>,
    roots: HashMap<(Range<u64>, State), Vec<Finding>>,
}

impl<'a> Judge<'a> {
    /// A judge of disks of `size` bytes.
    pub(super) fn new(
        log: &'a WriteLog,
        scratch: &Path,
        known: BTreeMap<Hash, Hash>,
        size: u64,
    ) -> Self {
        Self {
            log,
            scratch: scratch.to_owned(),
            known,
            size,
            esps: HashMap::new(),
            slots: HashMap::new(),
            roots: HashMap::new(),
        }
    }

    /// What is wrong with `disk`, which is in the state of `cut`.
    ///
    /// # Errors
    /// When a program is missing, or the scratch directory is full.
    pub(super) fn judge(&mut self, disk: &File, cut: &Cut) -> Result<Vec<Finding>> {
        let partitions = match gpt::partitions(disk, self.size) {
            Ok(found) => found,
            Err(error) => {
                let what = format!("{error:#}");
                return Ok(vec![Finding::new(Kind::PartitionTable, what)]);
            }
        };
        let find = |name| partitions.iter().find(|partition| partition.name == name);
        let Some(esp) = find("selvage-esp") else {
            return Ok(vec![Finding::new(Kind::PartitionTable, "there is no ESP")]);
        };
        let esp = self.esp(disk, cut, &esp.bytes)?;
        let mut findings = esp.findings.clone();
        findings.extend(self.next_boot(disk, cut, &partitions, &esp));
        if let Some(root) = find("selvage-root") {
            findings.extend(self.root(disk, cut, &root.bytes)?);
        }
        Ok(findings)
    }

    fn esp(&mut self, disk: &File, cut: &Cut, range: &Range<u64>) -> Result<Esp> {
        let key = (range.clone(), cut.state_of(self.log, range));
        if let Some(known) = self.esps.get(&key) {
            return Ok(known.clone());
        }
        let copy = self.extract(disk, range, "esp")?;
        let found = esp::look(&copy, &self.known)?;
        self.esps.insert(key, found.clone());
        Ok(found)
    }

    fn root(&mut self, disk: &File, cut: &Cut, range: &Range<u64>) -> Result<Vec<Finding>> {
        let key = (range.clone(), cut.state_of(self.log, range));
        if let Some(known) = self.roots.get(&key) {
            return Ok(known.clone());
        }
        let copy = self.extract(disk, range, "root")?;
        let found = root::judge(&copy)?;
        self.roots.insert(key, found.clone());
        Ok(found)
    }

    /// Copies a partition into a file, since looking at it changes it.
    fn extract(&self, disk: &File, range: &Range<u64>, name: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        file.and_then(|file| {
            file.set_len(range.end - range.start)?;
            replay::copy(disk, range, &file, 0)
        })
        .with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// What keeps the machine from coming up.
    fn next_boot(
        &mut self,
        disk: &File,
        cut: &Cut,
        partitions: &[Partition],
        esp: &Esp,
    ) -> Option<Finding> {
        let finding = |what| Some(Finding::new(Kind::NextBoot, what));
        let Some(next) = esp::chosen(&esp.entries) else {
            return finding("there is no entry that boots".to_owned());
        };
        let name = &next.name;
        let Some(hash) = next.whole else {
            return finding(format!("{name} is started next, and is not whole"));
        };
        let slot = match slot::find(partitions, &hash) {
            Ok(found) => found,
            Err(error) => return finding(format!("{name} is started next: {error:#}")),
        };
        let (data, hashes) = (&slot.0.bytes, &slot.1.bytes);
        let key = (
            hash,
            cut.state_of(self.log, data),
            cut.state_of(self.log, hashes),
        );
        let verdict = self.slots.entry(key).or_insert_with(|| {
            let verified = slot::verify(disk, data, hashes, &hash);
            verified.err().map(|error| format!("{error:#}"))
        });
        let verdict = verdict.clone()?;
        finding(format!(
            "{name} is started next, and its slot is not whole: {verdict}"
        ))
    }
}
