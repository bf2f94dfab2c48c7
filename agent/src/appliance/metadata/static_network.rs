//! A network that the platform gives, for machines where nobody answers DHCP.
//!
//! A document is read into one form ([`Network`]), from which files for systemd-networkd are made: before it starts, in
//! the initrd and in the running system. Where it is, the first that there is counts:
//!
//! | place | form |
//! |---|---|
//! | QEMU's fw_cfg, `opt/selvage/network` | network config of cloud-init |
//! | VMware's guestinfo, `afterburn.initrd.network-kargs` | arguments of the kernel command line |
//! | VMware's guestinfo, `metadata`, key `network` | network config of cloud-init |
//! | a disk labelled `config-2`, `openstack/latest/network_data.json` | OpenStack's own |
//! | a disk labelled `cidata`, `network-config` | network config of cloud-init |
//!
//! The kernel command line counts more: with `ip=` there none of these is looked at.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use self::node::Node;
use self::places::Document;
use super::{Site, guestinfo};
use crate::base::atomic_file;
use crate::base::yaml;

pub use self::form::{Dhcp, Interface, Match, Network, Route};
pub use self::outcome::Outcome;
pub use self::problem::{Error, Problem, Unsupported};
pub use self::values::{Domain, Pattern, Unusable};

mod arguments;
mod form;
mod netplan;
mod network_config;
mod network_data;
mod networkd;
mod node;
mod outcome;
mod places;
mod problem;
mod values;

/// Where networkd looks, before what is in the image.
const FILES: &str = "run/systemd/network";

/// The largest document, in bytes. Sixty-four cards with a screenful each are a quarter of that.
const LARGEST: usize = 256 << 10;

/// What a document looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// cloud-init's network config, version 1 or 2, which is netplan's; YAML or JSON, perhaps below a key `network`.
    NetworkConfig,
    /// OpenStack's `network_data.json`.
    NetworkData,
}

/// Gives networkd the platform's network, if it has one and the kernel command line has none.
///
/// # Errors
/// What the platform gives cannot be understood. networkd then has no files of it.
pub fn write(platform: &str, site: &Site) -> Result<Option<Outcome>, Error> {
    let line = fs::read_to_string(site.root.join("proc/cmdline")).unwrap_or_default();
    if line.split_whitespace().any(|word| word.starts_with("ip=")) {
        return Ok(None);
    }
    let mut document = places::fw_cfg(&site.root)?;
    if document.is_none() && platform == guestinfo::PLATFORM {
        if let Some(arguments) = guestinfo::decoded(site, guestinfo::NETWORK)? {
            let given = arguments::write(&site.root, &arguments)?;
            return Ok(Some(Outcome {
                from: Some(guestinfo::name(guestinfo::NETWORK)),
                gives: vec![given],
                ..Outcome::default()
            }));
        }
        document = places::of_guestinfo(site)?;
    }
    let document = match document {
        Some(document) => Some(document),
        None => places::on_a_drive(&site.root)?,
    };
    let Some(Document { place, form, bytes }) = document else {
        return Ok(None);
    };
    let network = match parse(form, &bytes) {
        Ok(network) => network,
        Err(problem) => return Err(Error::Document { place, problem }),
    };
    // Nothing of this boot is left of another document.
    replace_files(&site.root, network.files(&place)).map_err(Error::Files)?;
    let outcome = Outcome {
        gives: network.interfaces.iter().map(Interface::words).collect(),
        left_out: network.left_out.iter().map(ToString::to_string).collect(),
        from: Some(place),
        refused: None,
    };
    // A drive that says nothing about cards, as Proxmox VE's does without `ipconfig0`.
    let says_something = !outcome.gives.is_empty() || outcome.is_lacking();
    Ok(says_something.then_some(outcome))
}

/// The network that a document means.
///
/// # Errors
/// The document is not what its form says, is too large, or asks for more than cards.
pub fn parse(form: Form, bytes: &[u8]) -> Result<Network, Problem> {
    if bytes.len() > LARGEST {
        return Err(Problem::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::NotText)?;
    let value = yaml::parse(text.trim_start_matches('\u{feff}')).map_err(Problem::Syntax)?;
    match form {
        Form::NetworkData => network_data::read(&Node::root(&value)),
        Form::NetworkConfig => of_network_config(&value),
    }
}

/// The network of a network config that has been read.
fn of_network_config(value: &Value) -> Result<Network, Problem> {
    let root = Node::root(value);
    let root = root.get("network").unwrap_or(root);
    // cloud-init's word for "leave the network alone".
    let is_disabled = |node: Node<'_>| node.text("").is_ok_and(|text| text == "disabled");
    let is_empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    if is_empty || root.get("config").is_some_and(is_disabled) {
        return Ok(Network::default());
    }
    let version = root.needed("version")?;
    match version.parsed::<u32>("1 or 2")? {
        1 => network_config::read(&root),
        2 => netplan::read(&root),
        _ => Err(version.wrong("1 or 2")),
    }
}

impl Network {
    /// The files for networkd, by their names. `place` says where the network is from.
    pub fn files(&self, place: &str) -> Vec<(String, String)> {
        networkd::files(self, place)
    }
}

impl Interface {
    /// What is said of it, in words: `enp1s0 192.0.2.1/24`.
    fn words(&self) -> String {
        let addresses = self.addresses.iter().map(ToString::to_string);
        let mut words: Vec<String> = addresses.collect();
        for (name, is_used) in [
            ("DHCP", self.dhcp4.is_some()),
            ("DHCPv6", self.dhcp6.is_some()),
            ("router advertisements", self.accept_ra == Some(true)),
        ] {
            if is_used {
                words.push(name.to_owned());
            }
        }
        format!("{} {}", self.matched.words(), words.join(", "))
    }
}

/// Puts the files where networkd reads them, and takes those of an earlier document away.
fn replace_files(root: &Path, files: Vec<(String, String)>) -> io::Result<()> {
    let directory = root.join(FILES);
    let files: BTreeMap<_, _> = files.into_iter().collect();
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| name.starts_with(networkd::START)) {
        if !files.contains_key(&name) {
            fs::remove_file(directory.join(name))?;
        }
    }
    for (name, text) in files {
        let path = directory.join(name);
        // networkd takes a file with another time of change for another file.
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            atomic_file::replace(&path, text.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
