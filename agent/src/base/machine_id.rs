//! The identity of this machine: the owner ID that the agent writes into its lease, to recognize it later.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use crate::base::atomic_file;

/// Selvage's application ID: 128 random bits that make our ID differ from other programs' IDs for the same machine.
const APPLICATION: [u8; 16] = [
    0x4e, 0x1f, 0x0a, 0xd3, 0x92, 0x6b, 0x47, 0x5e, 0x8c, 0x31, 0x5d, 0x77, 0xe0, 0x29, 0xb4, 0x16,
];

/// The file in the state directory with the ID of a machine that has no machine-id.
pub(crate) const FILE: &str = "machine-id";

/// The machine has no usable identity.
#[derive(Debug, Error)]
pub enum Error {
    /// The saved ID cannot be read.
    #[error("failed to read the machine ID from {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The saved ID is damaged.
    #[error(
        "{} holds {found:?}: expected 32 hexadecimal digits; remove the file to generate a new ID, which gives up the lease of the old one",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The start of its contents.
        found: String,
    },
    /// A new ID cannot be saved.
    #[error("failed to save the machine ID in {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel provides no random numbers.
    #[error("failed to generate a random ID")]
    Random,
}

/// The ID of this machine, as 32 hexadecimal digits.
///
/// Derived from `etc/machine-id` below `root` like `sd_id128_get_machine_app_specific()`, because the machine-id itself
/// should not be exposed on a network (machine-id(5)). A machine without machine-id gets a random ID, saved in
/// `state_dir`; it keeps that ID even if a machine-id appears later.
///
/// # Errors
/// If the saved ID is unreadable or damaged, or a new one cannot be saved: after a restart the agent would not
/// recognize its own lease.
pub fn owner(root: &Path, state_dir: &Path) -> Result<String, Error> {
    if let Some(id) = known(root, state_dir)? {
        return Ok(id);
    }
    let path = state_dir.join(FILE);
    let mut id = [0; 16];
    SystemRandom::new()
        .fill(&mut id)
        .map_err(|_| Error::Random)?;
    let text = format(id);
    atomic_file::replace(&path, format!("{text}\n").as_bytes(), 0o644)
        .map_err(|source| Error::Write { path, source })?;
    Ok(text)
}

/// Where the firmware's UUID of a machine is, below a root. Only root may read it.
const HARDWARE: &str = "sys/class/dmi/id/product_uuid";

/// The ID of this machine in its fleet: as [`owner`], but another one for each copy of its disk.
///
/// Made of that ID and of the UUID that the firmware or hypervisor gives each machine (SMBIOS, System Information). Where
/// there is none, copies have the same ID.
///
/// # Errors
/// As [`owner`].
pub fn of_hardware(root: &Path, state_dir: &Path) -> Result<String, Error> {
    let owner = owner(root, state_dir)?;
    let Some(hardware) = hardware(root) else {
        return Ok(owner);
    };
    Ok(format(derived(owner.as_bytes(), &hardware)))
}

/// The UUID of this machine's hardware, unless it is all zeroes or ones: those say that there is none (DMTF DSP0134,
/// section 7.2.1).
fn hardware(root: &Path) -> Option<[u8; 16]> {
    let text = fs::read_to_string(root.join(HARDWARE)).ok()?;
    parse(&text.replace('-', "")).filter(|uuid| *uuid != [0xff; 16])
}

/// As [`owner`], but does not generate an ID for a machine without one.
///
/// # Errors
/// If the saved ID is unreadable or damaged.
pub(crate) fn known(root: &Path, state_dir: &Path) -> Result<Option<String>, Error> {
    let path = state_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match parse(&text) {
            Some(id) => return Ok(Some(format(id))),
            None => {
                let found = text.chars().take(64).collect();
                return Err(Error::Damaged { path, found });
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path, source }),
    }
    let machine = fs::read_to_string(root.join("etc/machine-id"));
    let machine = machine.ok().and_then(|text| parse(&text));
    Ok(machine.map(|machine| format(application_specific(machine))))
}

/// 128 bits from 32 hexadecimal digits and white space. All zeroes is not an ID, nor is `uninitialized`, which systemd
/// writes until the first boot is complete.
fn parse(text: &str) -> Option<[u8; 16]> {
    let text = text.trim();
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let id = u128::from_str_radix(text, 16).ok()?;
    (id != 0).then(|| id.to_be_bytes())
}

fn format(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

/// HMAC-SHA256 of the application ID keyed by the machine ID, cut to 128 bits and marked as a random UUID (version 4,
/// variant 1), as in systemd (*src/libsystemd/sd-id128/sd-id128.c*).
fn application_specific(machine: [u8; 16]) -> [u8; 16] {
    derived(&machine, &APPLICATION)
}

fn derived(key: &[u8], from: &[u8]) -> [u8; 16] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let tag = hmac::sign(&key, from);
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(machine_id: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        if let Some(text) = machine_id {
            fs::write(root.path().join("etc/machine-id"), text).unwrap();
        }
        root
    }

    #[test]
    fn derived_id_is_stable_and_does_not_show_the_machine_id() {
        let machine = "0123456789abcdef0123456789abcdef";
        let root = root(Some(&format!("{machine}\n")));
        let state = root.path().join("state");
        let id = owner(root.path(), &state).unwrap();
        assert_eq!(id, "3a690a1a1cdb4707a65a9f3bf41bee3c");
        assert_eq!(owner(root.path(), &state).unwrap(), id);
        assert!(!state.exists(), "a derived id needs no file");
    }

    #[test]
    fn machine_without_a_machine_id_keeps_a_random_one() {
        for text in [
            None,
            Some(""),
            Some("uninitialized\n"),
            Some("00000000000000000000000000000000\n"),
        ] {
            let root = root(text);
            let state = root.path().join("state");
            let id = owner(root.path(), &state).unwrap();
            assert_eq!(id.len(), 32);
            assert_eq!(owner(root.path(), &state).unwrap(), id);
            let machine_id = root.path().join("etc/machine-id");
            fs::write(machine_id, "0123456789abcdef0123456789abcdef").unwrap();
            assert_eq!(owner(root.path(), &state).unwrap(), id, "the id changed");
        }
    }

    #[test]
    fn a_copy_on_other_hardware_is_another_machine_of_the_fleet() {
        let machine = "0123456789abcdef0123456789abcdef";
        let id = |uuid: Option<&str>| {
            let root = root(Some(machine));
            if let Some(uuid) = uuid {
                let path = root.path().join(HARDWARE);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, uuid).unwrap();
            }
            of_hardware(root.path(), &root.path().join("state")).unwrap()
        };
        let uuid = "4c4c4544-0047-3010-8051-b4c04f4a3332\n";
        let original = id(Some(uuid));
        assert_eq!(id(Some(uuid)), original, "it stays the same");
        assert_eq!(id(Some(&uuid.to_uppercase())), original);
        assert_ne!(id(Some("4c4c4544-0047-3010-8051-b4c04f4a3333\n")), original);
        assert!(!original.contains("4c4c4544"));
        // Copies are not told apart without.
        let owner = "3a690a1a1cdb4707a65a9f3bf41bee3c";
        for none in [
            None,
            Some(""),
            Some("Not Settable\n"),
            Some("00000000-0000-0000-0000-000000000000\n"),
            Some("ffffffff-ffff-ffff-ffff-ffffffffffff\n"),
        ] {
            assert_eq!(id(none), owner, "{none:?}");
        }
        assert_ne!(original, owner);
    }

    #[test]
    fn damaged_file_is_an_error_that_names_it() {
        let root = root(None);
        fs::write(root.path().join(FILE), "0123").unwrap();
        let error = owner(root.path(), root.path()).unwrap_err().to_string();
        assert!(
            error.contains("\"0123\"") && error.contains("machine-id"),
            "{error}"
        );
    }
}
