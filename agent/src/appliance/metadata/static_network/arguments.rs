//! A network as arguments for the kernel command line, which VMware's host has as Afterburn reads it: `ip=…` and so on.
//! systemd's own generator makes files for networkd of them, so that they mean the same as there.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::{Error, FILES};
use crate::appliance::metadata::guestinfo;
use crate::base::atomic_file;

/// What makes files of arguments.
const GENERATOR: &str = "usr/lib/systemd/systemd-network-generator";

/// The arguments that the generator knows, without values (systemd-network-generator.service(8)).
const KNOWN: [&str; 9] = [
    "bond",
    "bridge",
    "ifname",
    "ip",
    "nameserver",
    "net.ifname_policy",
    "rd.peerdns",
    "rd.route",
    "vlan",
];

/// Gives networkd the network that the arguments mean. Returns them.
pub(super) fn write(root: &Path, arguments: &[u8]) -> Result<String, Error> {
    let arguments = String::from_utf8_lossy(arguments).trim().to_owned();
    let words = words(&arguments)?;
    generate(root, &words, &arguments)?;
    Ok(arguments)
}

/// The arguments, if they make a network.
fn words(arguments: &str) -> Result<Vec<&str>, Error> {
    let place = || guestinfo::name(guestinfo::NETWORK);
    let words: Vec<&str> = arguments.split_whitespace().collect();
    for word in &words {
        let (name, _) = word.split_once('=').unwrap_or((word, ""));
        if !KNOWN.contains(&name) {
            let argument = (*word).to_owned();
            let place = place();
            return Err(Error::Argument { place, argument });
        }
    }
    match words.iter().any(|word| word.starts_with("ip=")) {
        true => Ok(words),
        false => Err(Error::NoAddress { place: place() }),
    }
}

/// Has the generator make its files elsewhere, as it would not replace those of the initrd, and moves them.
fn generate(root: &Path, words: &[&str], arguments: &str) -> Result<(), Error> {
    let mut name = tempfile::Builder::new();
    let made = (name.prefix("selvage-network-"))
        .tempdir_in(root.join("run"))
        .map_err(Error::Files)?;
    let status = Command::new(root.join(GENERATOR))
        .arg("--root")
        .arg(made.path())
        .args(words)
        .status();
    let cause = match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(io::Error::other(status.to_string())),
        Err(error) => Some(error),
    };
    if let Some(cause) = cause {
        return Err(Error::Generator {
            place: guestinfo::name(guestinfo::NETWORK),
            arguments: arguments.to_owned(),
            cause,
        });
    }
    let moved = || -> io::Result<()> {
        for entry in fs::read_dir(made.path().join(FILES))? {
            let entry = entry?;
            let target = root.join(FILES).join(entry.file_name());
            atomic_file::replace(&target, &fs::read(entry.path())?, 0o644)?;
        }
        Ok(())
    };
    moved().map_err(Error::Files)
}
