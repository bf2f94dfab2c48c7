//! Hyper-V's data exchange: keys and values that the host gives to this guest.
//!
//! The kernel's driver (`hv_utils`) hands over each pair to whoever registers on its device, and waits for an answer.
//! Messages are `struct hv_kvp_msg` of `linux/hyperv.h`:
//!
//! ```text
//!  0  operation, pool, 2 bytes of padding; in an answer the error instead, 4 bytes
//!  4  value type, key size, value size, each 4 bytes; sizes count the NUL at the end
//! 16  key, 512 bytes
//! 528 value, 2048 bytes; the rest is for other operations
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The driver's device.
const DEVICE: &str = "dev/vmbus/hv_kvp";

/// The size of every message, in bytes.
const MESSAGE: usize = 7432;

/// Where the sizes, the key and the value are.
const SIZES: usize = 8;
const KEY: std::ops::Range<usize> = 16..528;
const VALUE: std::ops::Range<usize> = 528..2576;

/// Operations: the host sets a pair; we register (`KVP_OP_SET`, `KVP_OP_REGISTER1`).
const SET: u8 = 1;
const REGISTER: u8 = 100;

/// The pool that hosts write to (`KVP_POOL_EXTERNAL`).
const EXTERNAL: u8 = 0;

/// Answers: done, and not supported (`HV_S_OK`, `HV_E_FAIL`).
const DONE: u32 = 0;
const FAILED: u32 = 0x8000_4005;

/// After so long without a message, in milliseconds, the host has given all that it has.
const QUIET_MS: u16 = 1000;

/// However much the host has to say, it ends then.
const LONGEST: Duration = Duration::from_secs(30);

/// The key of a config, and what starts the keys of one in parts: `ignition.config.0` and so on. A value holds some 1000
/// bytes.
const CONFIG: &str = "ignition.config";

/// The config that the host gives; `None` if it gives none, or there is no such device.
///
/// # Errors
/// The device fails.
pub(super) fn config(root: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut options = File::options();
    match options.read(true).write(true).open(root.join(DEVICE)) {
        Ok(device) => Ok(assembled(&pairs(device)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn assembled(pairs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Vec<u8>> {
    let whole = pairs.get(CONFIG.as_bytes());
    if let Some(whole) = whole.filter(|whole| !whole.is_empty()) {
        return Some(whole.clone());
    }
    let part = |number: usize| pairs.get(format!("{CONFIG}.{number}").as_bytes());
    let parts: Vec<_> = (0..).map_while(part).collect();
    (!parts.is_empty()).then(|| parts.into_iter().flatten().copied().collect())
}

/// All pairs of the external pool.
fn pairs(mut device: File) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut message = vec![0; MESSAGE];
    message[0] = REGISTER;
    device.write_all(&message)?;
    let mut pairs = BTreeMap::new();
    let started = Instant::now();
    while started.elapsed() < LONGEST {
        let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(QUIET_MS)) {
            Ok(0) => break,
            Ok(_) => (),
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match device.read(&mut message) {
            Ok(MESSAGE) => (),
            Ok(0) => break,
            Ok(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let answer = match (message[0], message[1]) {
            // The driver says which version it speaks, and waits for no answer.
            (REGISTER, _) => continue,
            (SET, pool) => match pair(&message) {
                Some((key, value)) => {
                    if pool == EXTERNAL {
                        pairs.insert(key, value);
                    }
                    DONE
                }
                None => FAILED,
            },
            _ => FAILED,
        };
        let mut reply = vec![0; MESSAGE];
        reply[..4].copy_from_slice(&answer.to_ne_bytes());
        device.write_all(&reply)?;
    }
    Ok(pairs)
}

/// Key and value of a message, without the NULs at their ends; `None` if the sizes are wrong.
fn pair(message: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = |number: usize, place: std::ops::Range<usize>| {
        let at = SIZES + 4 * number;
        let size = u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?);
        let text = message.get(place)?.get(..usize::try_from(size).ok()?)?;
        Some(text.strip_suffix(&[0]).unwrap_or(text).to_vec())
    };
    Some((text(0, KEY)?, text(1, VALUE)?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::thread;

    use super::*;

    fn set(pool: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut message = vec![0; MESSAGE];
        message[..2].copy_from_slice(&[SET, pool]);
        let size = |length: usize| u32::try_from(length + 1).unwrap().to_ne_bytes();
        message[8..12].copy_from_slice(&size(key.len()));
        message[12..16].copy_from_slice(&size(value.len()));
        message[16..16 + key.len()].copy_from_slice(key);
        message[528..528 + value.len()].copy_from_slice(value);
        message
    }

    /// What the guest makes of a host that says this, and its answers.
    fn said(messages: Vec<Vec<u8>>) -> (BTreeMap<Vec<u8>, Vec<u8>>, Vec<u32>) {
        let (host, guest) = UnixDatagram::pair().unwrap();
        let host = thread::spawn(move || {
            let mut buffer = vec![0; MESSAGE];
            assert_eq!(host.recv(&mut buffer).unwrap(), MESSAGE);
            assert_eq!(buffer[0], REGISTER);
            // Its own word comes first.
            host.send(&buffer).unwrap();
            let mut answers = Vec::new();
            for message in messages {
                host.send(&message).unwrap();
                assert_eq!(host.recv(&mut buffer).unwrap(), MESSAGE);
                answers.push(u32::from_ne_bytes(buffer[..4].try_into().unwrap()));
            }
            answers
        });
        let pairs = pairs(File::from(OwnedFd::from(guest))).unwrap();
        (pairs, host.join().unwrap())
    }

    #[test]
    fn the_hosts_pairs_are_taken_and_answered() {
        let mut wrong = set(EXTERNAL, b"x", b"y");
        wrong[8..12].copy_from_slice(&513u32.to_ne_bytes());
        let mut other = set(EXTERNAL, b"x", b"y");
        other[0] = 4;
        let (pairs, answers) = said(vec![
            set(EXTERNAL, b"ignition.config.1", b"\"3.3.0\"}}"),
            set(
                EXTERNAL,
                b"ignition.config.0",
                b"{\"ignition\":{\"version\":",
            ),
            set(3, b"ignition.config", b"the guest's own"),
            wrong,
            other,
        ]);
        assert_eq!(answers, [DONE, DONE, DONE, FAILED, FAILED]);
        let config = assembled(&pairs).unwrap();
        assert_eq!(config, br#"{"ignition":{"version":"3.3.0"}}"#);
    }

    #[test]
    fn one_key_counts_more_than_parts_and_parts_end_at_the_first_gap() {
        let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<Vec<u8>, Vec<u8>> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()))
                .collect()
        };
        for (given, expected) in [
            (&[][..], None),
            (
                &[("ignition.config", "a"), ("ignition.config.0", "b")],
                Some("a"),
            ),
            (
                &[("ignition.config", ""), ("ignition.config.0", "b")],
                Some("b"),
            ),
            (
                &[("ignition.config.0", "a"), ("ignition.config.2", "c")],
                Some("a"),
            ),
            (&[("ignition.config.1", "b")], None),
        ] {
            let config = assembled(&pairs(given));
            assert_eq!(config.as_deref(), expected.map(str::as_bytes), "{given:?}");
        }
    }

    #[test]
    fn a_machine_without_the_device_has_no_config() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(config(root.path()).unwrap(), None);
    }
}
