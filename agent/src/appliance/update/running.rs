//! Which version of the image runs, and whether the boot loader counts this boot.

use std::fs;
use std::path::Path;

/// The boot loader's variable with the path of the entry that it started, after it has counted this try down. It exists
/// only if the entry has a counter (systemd-bless-boot.service(8)).
const COUNTED: &str =
    "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// How many tries a version has whose turn has come.
pub(crate) const TRIES: u32 = 3;

/// The version of the running image; `None` if this is no Selvage image.
pub fn version(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("usr/lib/os-release")).ok()?;
    let value = |name: &str| {
        let lines = text.lines().rev();
        let mut values = lines.filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        values.next().map(|value| value.trim_matches(['"', '\'']))
    };
    (value("IMAGE_ID") == Some("selvage"))
        .then(|| value("IMAGE_VERSION"))
        .flatten()
        .filter(|version| !version.is_empty())
        .map(ToOwned::to_owned)
}

/// The counter in the name of a boot entry: `selvage_1.2+2-1.efi` has 2 tries left and 1 done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter {
    /// How many tries are left.
    pub left: u32,
    /// How many were done.
    pub done: u32,
}

impl Counter {
    /// The counter of the running entry; `None` if it has none: it passed its boot check, or was installed without.
    pub fn of_this_boot(root: &Path) -> Option<Self> {
        let value = fs::read(root.join(COUNTED)).ok()?;
        // Four bytes of attributes, then UTF-16 with a NUL.
        let units = value.get(4..)?.chunks_exact(2);
        let units: Vec<u16> = units
            .filter_map(|unit| <[u8; 2]>::try_from(unit).ok().map(u16::from_le_bytes))
            .take_while(|unit| *unit != 0)
            .collect();
        Self::of_name(&String::from_utf16(&units).ok()?)
    }

    /// The counter in a file name, by the rules of the boot loader specification: `+LEFT` or `+LEFT-DONE` before the
    /// extension.
    pub fn of_name(name: &str) -> Option<Self> {
        let (stem, _extension) = name.rsplit_once('.')?;
        let (_, counter) = stem.rsplit_once('+')?;
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        Some(Self {
            left: number(left)?,
            done: number(done)?,
        })
    }

    /// Whether a reboot helps: it is another try, or the boot loader falls back.
    ///
    /// Once the tries are used up, the boot loader starts the entry again only if no other entry is any better. Then a
    /// reboot would lead here again, for ever.
    pub fn reboot_helps(self) -> bool {
        self.left > 0 || self.done <= TRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_images() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(version(root.path()), None);
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        for (text, expected) in [
            (
                "ID=debian\nIMAGE_ID=selvage\nIMAGE_VERSION=0.1.0.1500\n",
                Some("0.1.0.1500"),
            ),
            (
                "IMAGE_VERSION=\"1.2.3\"\nIMAGE_ID='selvage'\n",
                Some("1.2.3"),
            ),
            ("ID=debian\nVERSION_ID=13\n", None),
            ("IMAGE_ID=other\nIMAGE_VERSION=1\n", None),
            ("IMAGE_ID=selvage\nIMAGE_VERSION=\n", None),
        ] {
            fs::write(root.path().join("usr/lib/os-release"), text).unwrap();
            assert_eq!(version(root.path()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_counter_is_read_from_the_name() {
        let counter = |left, done| Some(Counter { left, done });
        for (name, expected) in [
            ("selvage_0.1.0.1500+3-0.efi", counter(3, 0)),
            ("\\EFI\\Linux\\selvage_0.1.0.1500+2-1.efi", counter(2, 1)),
            ("selvage_1.2+3.efi", counter(3, 0)),
            ("selvage_1.2.efi", None),
            ("selvage_1.2+x.efi", None),
            ("selvage_1.2+1-.efi", None),
            ("selvage_1.2++1-1.efi", counter(1, 1)),
            ("+99999999999999.efi", None),
            ("", None),
        ] {
            assert_eq!(Counter::of_name(name), expected, "{name}");
        }
    }

    #[test]
    fn the_boot_loaders_variable_is_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Counter::of_this_boot(root.path()), None);
        let path = root.path().join(COUNTED);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut value = vec![6, 0, 0, 0];
        let name = "\\EFI\\Linux\\selvage_2+1-2.efi\0";
        value.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
        fs::write(&path, value).unwrap();
        let counter = Counter::of_this_boot(root.path());
        assert_eq!(counter, Some(Counter { left: 1, done: 2 }));
        for rubbish in [&b""[..], b"\x06\0\0", b"\x06\0\0\0\x00\xd8"] {
            fs::write(&path, rubbish).unwrap();
            assert_eq!(Counter::of_this_boot(root.path()), None);
        }
    }

    #[test]
    fn reboots_end_when_the_tries_are_used_up_and_nothing_else_boots() {
        // What the boot loader makes of +3-0, try by try.
        for (left, done, helps) in [
            (2, 1, true),
            (1, 2, true),
            (0, 3, true),
            (0, 4, false),
            (0, 9, false),
        ] {
            assert_eq!(
                Counter { left, done }.reboot_helps(),
                helps,
                "+{left}-{done}"
            );
        }
    }
}
