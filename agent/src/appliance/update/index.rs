//! The release index: what a channel has, as its publisher signed it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::appliance::update::sysext::{self, Name};
use crate::appliance::update::version::Version;
use crate::base::time;
use crate::settings::update::Severity;

/// The largest index that is read, in bytes; one of a hundred releases has 150 KB.
pub const MOST_BYTES: u64 = 4 << 20;

/// The largest part of a release, packed or not. A slot has an eighth of it.
const MOST_PART_BYTES: u64 = 4 << 30;

/// The format that this version understands.
const FORMAT: u32 = 1;

/// The index cannot be used.
#[derive(Debug, Error)]
pub enum IndexError {
    /// Not JSON, or not what is expected in it.
    #[error("the index is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A later format.
    #[error(
        "the index has format {0}, which this version does not understand: install a later version by hand"
    )]
    Format(u32),
    /// Another channel's index in the place of the one asked for.
    #[error("the index is of the channel {found:?}, not {asked:?}")]
    Channel {
        /// The channel that it names.
        found: String,
        /// The channel in the settings.
        asked: String,
    },
    /// An older index than one that was accepted before.
    #[error(
        "the index has serial {serial}, but {highest} was accepted before: the server is behind, or somebody replays \
         an old index (roll-back attack)"
    )]
    OldSerial {
        /// Its serial.
        serial: u64,
        /// The highest serial so far.
        highest: u64,
    },
}

/// A part of a release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The file system of `/usr`.
    Usr,
    /// Its hash tree.
    UsrVerity,
    /// The signature of the tree's root.
    UsrVeritySig,
    /// Kernel, initrd and command line.
    Uki,
    /// A system extension that fits this version alone.
    Sysext,
}

impl Part {
    /// How names of its files end.
    fn suffix(self) -> &'static str {
        match self {
            Self::Usr => ".usr.raw.zst",
            Self::UsrVerity => ".usr-verity.raw.zst",
            Self::UsrVeritySig => ".usr-verity-sig.raw.zst",
            Self::Uki => ".efi.zst",
            // Packed inside already.
            Self::Sysext => sysext::SUFFIX,
        }
    }
}

/// A file of a release.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// What it is.
    pub part: Part,
    /// Where it is, from the index on: `selvage_VERSION/NAME`.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// Its size when it is unpacked.
    pub unpacked_size: u64,
    /// The SHA-256 of what it unpacks to.
    pub unpacked_sha256: [u8; 32],
}

impl File {
    /// The name of the packed file.
    pub fn name(&self) -> &str {
        self.path
            .rsplit_once('/')
            .map_or(&*self.path, |(_, name)| name)
    }

    /// The name of the unpacked file.
    pub fn unpacked_name(&self) -> &str {
        self.name().strip_suffix(".zst").unwrap_or(self.name())
    }
}

/// One version that can be installed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Release {
    /// Which.
    pub version: Version,
    /// When it was published.
    pub date: SystemTime,
    /// How much it matters.
    pub severity: Severity,
    /// Over which time the machines of a fleet start it.
    pub roll_out: Duration,
    /// The oldest version that can be updated to it.
    pub from: Option<Version>,
    /// What is new.
    pub notes: String,
    /// Its files; the UKI is the last.
    pub files: Vec<File>,
    /// Its system extensions.
    pub sysexts: BTreeMap<Name, File>,
}

/// A checked index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Index {
    /// Which channel's it is.
    pub channel: String,
    /// Grows with each index of a channel.
    pub serial: u64,
    /// When it was signed.
    pub issued: SystemTime,
    /// What can be installed, newest first.
    pub releases: Vec<Release>,
    /// Entries that this version cannot use, and why.
    pub skipped: Vec<String>,
}

#[derive(Deserialize)]
struct RawIndex<'a> {
    channel: String,
    serial: u64,
    issued: String,
    #[serde(borrow)]
    releases: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawRelease {
    version: Version,
    date: String,
    severity: Severity,
    #[serde(default)]
    roll_out_seconds: u64,
    #[serde(default)]
    from: Option<Version>,
    #[serde(default)]
    notes: String,
    files: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    part: String,
    name: String,
    size: u64,
    sha256: String,
    unpacked_size: u64,
    unpacked_sha256: String,
}

/// Just the format, which says whether the rest can be understood.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Index {
    /// What messages call it.
    pub fn name(&self) -> String {
        let issued = time::rfc3339(self.issued);
        format!("index {} of {issued}", self.serial)
    }

    /// Parses an index whose signature was checked. `asked` is the channel in the settings, `highest` the highest serial
    /// that was accepted.
    ///
    /// A release that this version cannot use does not spoil the others.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn parse(bytes: &[u8], asked: &str, highest: u64) -> Result<Self, IndexError> {
        let Format { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(IndexError::Format(format));
        }
        let raw: RawIndex<'_> = serde_json::from_slice(bytes)?;
        if raw.channel != asked {
            return Err(IndexError::Channel {
                found: raw.channel.chars().take(64).collect(),
                asked: asked.to_owned(),
            });
        }
        if raw.serial < highest {
            return Err(IndexError::OldSerial {
                serial: raw.serial,
                highest,
            });
        }
        let issued = date(&raw.issued).map_err(|text| {
            IndexError::Json(serde::de::Error::custom(format!("issued: {text}")))
        })?;
        let mut index = Self {
            channel: raw.channel,
            serial: raw.serial,
            issued,
            releases: Vec::new(),
            skipped: Vec::new(),
        };
        for (number, release) in raw.releases.into_iter().enumerate() {
            let release = serde_json::from_str::<RawRelease>(release.get())
                .map_err(|error| error.to_string())
                .and_then(Release::check);
            match release {
                Ok(release) => index.releases.push(release),
                Err(why) => index.skipped.push(format!("release {}: {why}", number + 1)),
            }
        }
        index.releases.sort_by(|a, b| b.version.cmp(&a.version));
        Ok(index)
    }

    /// A release by its version.
    pub fn release(&self, version: &Version) -> Option<&Release> {
        self.releases
            .iter()
            .find(|release| release.version == *version)
    }
}

impl Release {
    fn check(raw: RawRelease) -> Result<Self, String> {
        let (mut files, mut sysexts) = (BTreeMap::new(), BTreeMap::new());
        for file in raw.files {
            // Later versions may have parts that this one does not install.
            if let Some(file) = File::check(file, &raw.version)? {
                let part = file.part;
                if part == Part::Sysext {
                    if let Some((_, name)) = sysext::parse_file_name(file.name())
                        && let Some(twice) = sysexts.insert(name, file)
                    {
                        return Err(format!("two files {}", twice.path));
                    }
                } else if files.insert(part, file).is_some() {
                    return Err(format!("two files of the part {part:?}"));
                }
            }
        }
        for part in [Part::Usr, Part::UsrVerity, Part::Uki] {
            if !files.contains_key(&part) {
                return Err(format!("no file of the part {part:?}"));
            }
        }
        Ok(Self {
            version: raw.version,
            date: date(&raw.date).map_err(|text| format!("date: {text}"))?,
            severity: raw.severity,
            roll_out: Duration::from_secs(raw.roll_out_seconds),
            from: raw.from,
            notes: raw.notes,
            files: files.into_values().collect(),
            sysexts,
        })
    }

    /// The bytes of all its files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The bytes of all its files when they are unpacked.
    pub fn unpacked_size(&self) -> u64 {
        self.files.iter().map(|file| file.unpacked_size).sum()
    }

    /// The name of its directory at the server, and of its files and boot entry up to what comes after the version.
    pub fn stem(&self) -> String {
        stem(&self.version)
    }
}

/// What the names of a version's files begin with.
fn stem(version: &Version) -> String {
    format!("selvage_{version}")
}

impl File {
    fn check(raw: RawFile, version: &Version) -> Result<Option<Self>, String> {
        let part: Result<Part, serde_json::Error> =
            serde_json::from_value(serde_json::Value::String(raw.part));
        let Ok(part) = part else { return Ok(None) };
        let stem = stem(version);
        // The name becomes a path here and there: nothing but the form that was agreed on.
        let name = raw.name.strip_prefix(&format!("{stem}/")).filter(|name| {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
            let middle = name
                .strip_prefix(&*stem)
                .and_then(|rest| rest.strip_suffix(part.suffix()));
            name.len() <= 128
                && name.bytes().all(good)
                && match (part, middle) {
                    (Part::Uki, Some(middle)) => middle.is_empty(),
                    (Part::Sysext, Some(middle)) => {
                        let name = middle.strip_prefix('_').map(str::parse::<Name>);
                        name.is_some_and(|name| name.is_ok())
                    }
                    (_, Some(middle)) => middle.strip_prefix('_').is_some_and(is_uuid),
                    (_, None) => false,
                }
        });
        if name.is_none() {
            let shown: String = raw.name.chars().take(160).collect();
            return Err(format!(
                "{shown:?} is not the name of a file of the part {part:?}: expected {stem}/{stem}_{}{}",
                if part == Part::Sysext { "NAME" } else { "UUID" },
                part.suffix()
            ));
        }
        let sizes = 1..=MOST_PART_BYTES;
        if !sizes.contains(&raw.size) || !sizes.contains(&raw.unpacked_size) {
            return Err(format!("{}: a size is not 1 byte to 4 GiB", raw.name));
        }
        let hash = |text: &str| parse_hash(text).ok_or(format!("{}: not a SHA-256", raw.name));
        Ok(Some(Self {
            part,
            size: raw.size,
            sha256: hash(&raw.sha256)?,
            unpacked_size: raw.unpacked_size,
            unpacked_sha256: hash(&raw.unpacked_sha256)?,
            path: raw.name,
        }))
    }
}

fn is_uuid(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|b| b.is_ascii_hexdigit());
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.split('-').all(hex)
}

/// A SHA-256 in hexadecimal digits.
pub(crate) fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes().as_chunks::<2>();
    let (pairs, []) = digits else { return None };
    let bytes: Option<Vec<u8>> = pairs
        .iter()
        .map(|pair| {
            let digit = |b: u8| char::from(b).to_digit(16);
            u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
        })
        .collect();
    bytes?.try_into().ok()
}

/// A hash in lower-case digits.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn date(text: &str) -> Result<SystemTime, String> {
    let shown: String = text.chars().take(40).collect();
    time::parse_rfc3339(text).ok_or(format!("{shown:?} is no time such as 2026-11-29T10:00:00Z"))
}

#[cfg(test)]
mod tests;
