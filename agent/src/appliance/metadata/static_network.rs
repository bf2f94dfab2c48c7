//! A network that the platform gives, for machines where nobody answers DHCP.
//!
//! VMware's host gives it as Afterburn has it: arguments as for the kernel command line, `ip=…` and so on. systemd's
//! own generator makes files for networkd of them, so that they mean the same as there.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use thiserror::Error;

use super::http::Trouble;
use super::{Site, guestinfo};
use crate::base::atomic_file;

/// What makes files of arguments, and where it puts them.
const GENERATOR: &str = "usr/lib/systemd/systemd-network-generator";
const FILES: &str = "run/systemd/network";

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

/// Why the network is not the platform's.
#[derive(Debug, Error)]
pub enum Error {
    /// The platform does not say it.
    #[error("the platform's network")]
    Platform(#[from] Trouble),
    /// An argument that nobody understands.
    #[error(
        "{place} has the argument {argument:?}: expected ip=, nameserver= and the like, as on the kernel command line"
    )]
    Argument {
        /// The key.
        place: String,
        /// The argument.
        argument: String,
    },
    /// Without `ip=` the generator would make a network without any address.
    #[error("{place} has no ip=, so it is not used")]
    NoAddress {
        /// The key.
        place: String,
    },
    /// The generator refuses the arguments; its own words are above.
    #[error("systemd-network-generator does not take {arguments:?} of {place}: {cause}")]
    Generator {
        /// The key.
        place: String,
        /// All of them.
        arguments: String,
        /// The exit status, or why it was not started.
        cause: io::Error,
    },
    /// The files cannot be put where networkd reads them.
    #[error("failed to write the platform's network to /{FILES}")]
    Files(#[source] io::Error),
}

/// Gives networkd the platform's network, if it has one and the kernel command line has none. Returns the arguments.
///
/// # Errors
/// What the platform gives cannot be understood. networkd then has no files of it.
pub fn write(platform: &str, site: &Site) -> Result<Option<String>, Error> {
    let line = fs::read_to_string(site.root.join("proc/cmdline")).unwrap_or_default();
    if platform != guestinfo::PLATFORM
        || line.split_whitespace().any(|word| word.starts_with("ip="))
    {
        return Ok(None);
    }
    let Some(arguments) = guestinfo::decoded(site, guestinfo::NETWORK)? else {
        return Ok(None);
    };
    let arguments = String::from_utf8_lossy(&arguments).trim().to_owned();
    let words = words(&arguments)?;
    generate(&site.root, &words, &arguments)?;
    Ok(Some(arguments))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::metadata::tests::site_of_vmware;

    const GUESTINFO: &str = "guestinfo.afterburn.initrd.network-kargs";

    /// A machine in a directory, with this host's generator; `None` where there is none.
    fn machine(arguments: &str, command_line: &str) -> Option<(tempfile::TempDir, Site)> {
        let generator = Path::new("/").join(GENERATOR);
        if !generator.exists() {
            eprintln!("skipped: there is no {}", generator.display());
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        for path in ["proc/cmdline", "run/x", GENERATOR] {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
        }
        fs::write(root.path().join("proc/cmdline"), command_line).unwrap();
        std::os::unix::fs::symlink(generator, root.path().join(GENERATOR)).unwrap();
        let mut site = site_of_vmware(&[(GUESTINFO, arguments)]);
        root.path().clone_into(&mut site.root);
        Some((root, site))
    }

    /// The files that networkd has of it, one after the other.
    fn files(root: &Path) -> String {
        let entries = fs::read_dir(root.join(FILES)).into_iter().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let texts = paths.iter().map(|path| fs::read_to_string(path).unwrap());
        texts.collect()
    }

    #[test]
    fn networks_are_those_of_the_kernel_command_line() {
        for (arguments, expected) in [
            // Fedora CoreOS's documentation of VMware ("Customizing network configuration"), with its names filled in.
            (
                "ip=10.20.30.42::10.20.30.254:255.255.255.0:example:ens192:off",
                &[
                    "Name=ens192",
                    "Address=10.20.30.42/24",
                    "Gateway=10.20.30.254",
                    "DHCP=no",
                ][..],
            ),
            // Two name servers, as an issue of OpenShift's installer has them.
            (
                "ip=192.168.1.20::192.168.1.1:255.255.255.0:::none nameserver=192.168.1.2 nameserver=192.168.1.3",
                &[
                    "Address=192.168.1.20/24",
                    "DNS=192.168.1.2",
                    "DNS=192.168.1.3",
                ],
            ),
            // dracut.cmdline(7).
            (
                "ip=[2001:db8::10]::[2001:db8::1]:64::ens192:none\n",
                &["Address=2001:db8::10/64", "Gateway=2001:db8::1"],
            ),
        ] {
            let Some((root, site)) = machine(arguments, "quiet\n") else {
                return;
            };
            // In the initrd, and in the system that it starts.
            for _ in 0..2 {
                let used = write("vmware", &site).unwrap();
                assert_eq!(used.as_deref(), Some(arguments.trim()));
            }
            let text = files(root.path());
            for line in expected {
                assert!(text.lines().any(|is| is == *line), "no {line:?} in {text}");
            }
            let left = fs::read_dir(root.path().join("run")).unwrap().count();
            assert_eq!(left, 1, "something is left in /run");
        }
    }

    #[test]
    fn what_makes_no_network_is_refused_and_networkd_has_nothing_of_it() {
        for (arguments, expected) in [
            (
                "init=/bin/sh ip=dhcp",
                "has the argument \"init=/bin/sh\": expected ip=",
            ),
            ("10.20.30.42/24", "has the argument \"10.20.30.42/24\""),
            ("nameserver=10.0.0.1", "has no ip=, so it is not used"),
            (
                "ip=10.0.0.5",
                "does not take \"ip=10.0.0.5\" of VMware's guestinfo.afterburn",
            ),
        ] {
            let Some((root, site)) = machine(arguments, "") else {
                return;
            };
            let error = write("vmware", &site).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(files(root.path()), "");
        }
    }

    #[test]
    fn the_kernel_command_line_counts_more_and_other_platforms_have_none() {
        let arguments = "ip=10.20.30.42::10.20.30.254:24::ens192:off";
        for (platform, line, arguments) in [
            ("vmware", "quiet ip=dhcp\n", arguments),
            ("vmware", "quiet\n", ""),
            ("metal", "quiet\n", arguments),
        ] {
            let Some((root, site)) = machine(arguments, line) else {
                return;
            };
            assert_eq!(write(platform, &site).unwrap(), None);
            assert_eq!(files(root.path()), "");
        }
    }
}
