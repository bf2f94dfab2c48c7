//! The MAC address of this node's VTEP.
//!
//! It must survive restarts, reboots and the loss of the device: with a new one, packets are dropped until every peer
//! has learned it. An existing device's address is preferred, because peers use it now, even if another flannel
//! implementation set it; then the one in the state directory; then a new random one. It is always set when the device
//! is created: systemd-udevd only replaces addresses that the kernel generated.
//!
//! An address generated because an older node has the device's is in the file before it is on the device. The file's
//! second line names the address to be replaced, so that a retry does not generate another.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::IdentityError;
use crate::base::atomic_file;
use crate::base::net::{InterfaceName, MacAddr};

/// Its name in errors.
const WHAT: &str = "the overlay's MAC address";

/// The prefix of the optional second line.
const INSTEAD_OF: &str = "instead of ";

/// The file in the state directory that stores a device's address.
pub(crate) fn file(state_dir: &Path, device: &InterfaceName) -> PathBuf {
    state_dir.join(format!("{device}.mac"))
}

/// The overlay devices that this host has had, with the files that store their MAC addresses.
pub(crate) fn stored_devices(state_dir: &Path) -> Vec<(InterfaceName, PathBuf)> {
    let device = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".mac")?;
        Some((name.parse().ok()?, path))
    };
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| device(entry.path())).collect()
}

/// The file's contents.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stored {
    mac: MacAddr,
    /// The address on the device to be replaced.
    instead_of: Option<MacAddr>,
}

/// Chooses the MAC address and stores it in `file`.
pub(crate) fn choose(existing: Option<MacAddr>, file: &Path) -> Result<MacAddr, IdentityError> {
    let stored = read(file)?;
    let existing = existing.filter(|mac| mac.is_unicast());
    if let Some(Stored {
        mac,
        instead_of: Some(replaced),
    }) = stored
        && existing == Some(replaced)
    {
        return Ok(mac);
    }
    let mac = match existing.or(stored.map(|stored| stored.mac)) {
        Some(mac) => mac,
        None => random()?,
    };
    let wanted = Stored {
        mac,
        instead_of: None,
    };
    if stored != Some(wanted) {
        store(wanted, file)?;
    }
    Ok(mac)
}

/// Generates a new MAC address, because an older node has the current one.
pub(crate) fn renew(existing: Option<MacAddr>, file: &Path) -> Result<MacAddr, IdentityError> {
    let mac = random()?;
    let instead_of = existing;
    store(Stored { mac, instead_of }, file)?;
    Ok(mac)
}

fn store(stored: Stored, file: &Path) -> Result<(), IdentityError> {
    let mut text = format!("{}\n", stored.mac);
    if let Some(replaced) = stored.instead_of {
        text += &format!("{INSTEAD_OF}{replaced}\n");
    }
    // World-readable: it is no secret, every peer knows it. A node that loses it in a power cut has a new one.
    atomic_file::replace_soon(file, text.as_bytes(), 0o644).map_err(super::write_error(WHAT, file))
}

/// Reads the file; a damaged one counts as missing.
fn read(file: &Path) -> Result<Option<Stored>, IdentityError> {
    let Some(text) = super::read(WHAT, file)? else {
        return Ok(None);
    };
    let (first, rest) = text.trim().split_once('\n').unwrap_or((text.trim(), ""));
    match first.trim().parse::<MacAddr>() {
        Ok(mac) if mac.is_unicast() => Ok(Some(Stored {
            mac,
            instead_of: rest
                .strip_prefix(INSTEAD_OF)
                .and_then(|replaced| replaced.trim().parse().ok()),
        })),
        _ => {
            warn!(file = %file.display(), "ignoring the damaged MAC address file");
            Ok(None)
        }
    }
}

/// A random locally administered unicast address (IEEE 802 §8.4: second lowest bit of the first octet).
fn random() -> Result<MacAddr, IdentityError> {
    let mut octets = super::random::<6>(WHAT)?;
    octets[0] = octets[0] & 0xfe | 0x02;
    Ok(MacAddr(octets))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_device_comes_first_then_the_file_then_chance() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state/flannel.1.mac");
        let fresh = choose(None, &file).unwrap();
        assert!(fresh.is_unicast());
        assert_eq!(fresh.0[0] & 2, 2, "{fresh} is not locally administered");
        assert_eq!(choose(None, &file).unwrap(), fresh, "survives restarts");
        let device: MacAddr = "c6:d2:32:6f:8f:44".parse().unwrap();
        assert_eq!(choose(Some(device), &file).unwrap(), device);
        assert_eq!(choose(None, &file).unwrap(), device, "saved at adoption");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }

    #[test]
    fn a_new_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flannel.1.mac");
        let first = choose(None, &file).unwrap();
        let second = renew(None, &file).unwrap();
        assert_ne!(second, first);
        assert_eq!(choose(None, &file).unwrap(), second);
    }

    #[test]
    fn a_new_one_counts_before_the_address_that_it_replaces_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flannel.1.mac");
        let twins: MacAddr = "02:00:00:00:00:01".parse().unwrap();
        assert_eq!(choose(Some(twins), &file).unwrap(), twins);
        let new = renew(Some(twins), &file).unwrap();
        // First the device is not programmed yet; then it is, or it is gone.
        for existing in [Some(twins), Some(twins), Some(new), None] {
            assert_eq!(choose(existing, &file).unwrap(), new);
        }
        // Another flannel recreated the device.
        let flannels: MacAddr = "02:00:00:00:00:02".parse().unwrap();
        assert_eq!(choose(Some(flannels), &file).unwrap(), flannels);
        assert_eq!(choose(Some(twins), &file).unwrap(), twins);
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flannel.1.mac");
        for damage in ["", "c6:d2", "01:00:5e:00:00:01\n", "\u{fffd}"] {
            fs::write(&file, damage).unwrap();
            let mac = choose(None, &file).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{mac}\n"));
        }
    }

    #[test]
    fn an_unusable_directory_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let file = dir.path().join("file/flannel.1.mac");
        let error = choose(None, &file).unwrap_err();
        assert!(error.to_string().contains("file/flannel.1.mac"), "{error}");
    }
}
