//! The plugin's program among the CNI plugins.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::ask::{self, About};
use super::{Error, missing_is_none};
use crate::base::atomic_file;

/// The program's name, which is its type in a config list.
pub(super) const NAME: &str = "flannel";

/// Any user may ask a plugin for its version; root runs it.
pub(super) const MODE: u32 = 0o755;

/// What stands in the program's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    Missing,
    /// This very program.
    Same,
    /// Ours, and how its version compares with this one's.
    Ours(String, Ordering),
    /// flannel's, or what cannot be asked.
    Other(Option<String>),
    /// A link to a file that is not there, or cannot be seen from inside a container, as those of our image.
    Link(PathBuf),
}

/// The program to install.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) version: String,
}

impl Program {
    /// This one, even if its file has been replaced since it was started.
    pub(super) fn own() -> Self {
        Self {
            path: "/proc/self/exe".into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Compares what stands at `path` with this program, and asks it for its version.
    pub(super) fn standing(&self, path: &Path) -> Result<Standing, Error> {
        let read = |source| Error::file("read", path, source);
        let Some(metadata) = missing_is_none(fs::metadata(path)).map_err(read)? else {
            let link = missing_is_none(fs::read_link(path)).map_err(read)?;
            return Ok(link.map_or(Standing::Missing, Standing::Link));
        };
        if metadata.is_dir() {
            return Err(read(io::ErrorKind::IsADirectory.into()));
        }
        if same_contents(&self.path, path).map_err(read)? {
            return Ok(Standing::Same);
        }
        Ok(match ask::about(path) {
            Some(About {
                version,
                is_ours: true,
            }) => {
                let order = compare(&version, &self.version);
                Standing::Ours(version, order)
            }
            other => Standing::Other(other.map(|about| about.version)),
        })
    }

    /// Puts this program there, in one step: who starts it meanwhile has the old one.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        File::open(&self.path)
            .and_then(|mut own| atomic_file::copy(path, &mut own, MODE))
            .map_err(|source| Error::file("write", path, source))
    }
}

fn same_contents(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let [mut one, mut other] = [one, other].map(|file| BufReader::with_capacity(1 << 16, file));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if left[..length] != right[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(left.len() == right.len());
        }
        one.consume(length);
        other.consume(length);
    }
}

/// Compares versions by their numbers; with equal numbers, `1.2.0-rc1` is before `1.2.0`.
fn compare(one: &str, other: &str) -> Ordering {
    let parts = |version: &str| {
        let version = version.trim_start_matches('v');
        let version = version.split('+').next().unwrap_or_default();
        let (numbers, early) = match version.split_once('-') {
            Some((numbers, early)) => (numbers, Some(early.to_owned())),
            None => (version, None),
        };
        let mut numbers: Vec<u64> = numbers
            .split('.')
            .map(|number| number.parse().unwrap_or(0))
            .collect();
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        (numbers, early)
    };
    let ((one, early), (other, other_early)) = (parts(one), parts(other));
    one.cmp(&other).then_with(|| match (early, other_early) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(early), Some(other)) => early.cmp(&other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (one, other, expected) in [
            ("0.1.0", "0.1.0", Ordering::Equal),
            ("0.10.0", "0.9.3", Ordering::Greater),
            ("0.9.3", "0.10.0", Ordering::Less),
            ("1.0", "1.0.0", Ordering::Equal),
            ("v1.2.0", "1.2.0+abc", Ordering::Equal),
            ("1.2.0-rc1", "1.2.0", Ordering::Less),
            ("1.2.0-rc1", "1.1.9", Ordering::Greater),
            ("1.2.0-rc2", "1.2.0-rc1", Ordering::Greater),
        ] {
            assert_eq!(compare(one, other), expected, "{one} and {other}");
        }
    }

    #[test]
    fn contents_are_compared_to_the_last_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut long = vec![7; 200_000];
        fs::write(path("a"), &long).unwrap();
        fs::write(path("b"), &long).unwrap();
        assert!(same_contents(&path("a"), &path("b")).unwrap());
        *long.last_mut().unwrap() = 8;
        fs::write(path("b"), &long).unwrap();
        assert!(!same_contents(&path("a"), &path("b")).unwrap());
        fs::write(path("b"), &long[1..]).unwrap();
        assert!(!same_contents(&path("a"), &path("b")).unwrap());
    }
}
