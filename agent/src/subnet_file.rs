//! `subnet.env`: what the overlay tells container runtimes on this host.
//!
//! One file serves four readers: systemd (`EnvironmentFile=`), a shell that sources it, flannel's CNI plugin, and the
//! agent (or flanneld) itself, which asks for the same subnet again after a restart. So the keys are flannel's in
//! flannel's order, and only then the options that Docker is started with.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::atomic_file;

/// The file cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// It exists but cannot be read.
    #[error("failed to read the subnet file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("failed to write the subnet file {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be removed.
    #[error("failed to remove the subnet file {}", path.display())]
    Remove {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubnetFile {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// The leased subnet; its first address + 1 is the container bridge's.
    pub subnet: Ipv4Net,
    /// MTU of the overlay in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades what leaves the overlay; the runtime then must not.
    pub masquerade: bool,
}

impl SubnetFile {
    /// The file's text.
    ///
    /// Nothing is quoted: no value has a character that is special to systemd or to a shell, and flannel's readers
    /// know no quotes. The options are not called `DOCKER_OPTS`, because flannel's `mk-docker-opts.sh` sources this
    /// file and would put that variable's value in front of the options it makes.
    pub fn render(&self) -> String {
        let Self {
            network,
            subnet,
            mtu,
            masquerade,
        } = *self;
        let network = network.trunc();
        let bridge = bridge_address(subnet);
        let runtime_masquerade = !masquerade;
        let mut text = String::with_capacity(256);
        // Writing into a `String` never fails.
        let _ = write!(
            text,
            "FLANNEL_NETWORK={network}\n\
             FLANNEL_SUBNET={bridge}\n\
             FLANNEL_MTU={mtu}\n\
             FLANNEL_IPMASQ={masquerade}\n\
             DOCKER_OPT_BIP=--bip={bridge}\n\
             DOCKER_OPT_IPMASQ=--ip-masq={runtime_masquerade}\n\
             DOCKER_OPT_MTU=--mtu={mtu}\n"
        );
        text
    }

    /// Writes the file at `path` unless it says the same already; returns whether it wrote.
    ///
    /// # Errors
    /// [`Error::Write`]; the old file is then untouched.
    pub fn write(&self, path: &Path) -> Result<bool, Error> {
        let text = self.render();
        if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(false);
        }
        atomic_file::replace(path, text.as_bytes(), 0o644).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(true)
    }
}

/// The address of the container bridge: the subnet's first address + 1, with the subnet's length.
fn bridge_address(subnet: Ipv4Net) -> Ipv4Net {
    let first = u32::from(subnet.network());
    let address = Ipv4Addr::from(first.saturating_add(1));
    Ipv4Net::new(address, subnet.prefix_len()).unwrap_or(subnet)
}

/// What an earlier run left: the network and the subnet to ask for again, both masked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Previous {
    /// The overlay network at that time.
    pub network: Option<Ipv4Net>,
    /// The subnet leased at that time.
    pub subnet: Option<Ipv4Net>,
}

/// Reads what an earlier run of the agent or of any flanneld left at `path`; a missing file says nothing.
///
/// # Errors
/// [`Error::Read`] when the file is there but unreadable.
pub fn read_previous(path: &Path) -> Result<Previous, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Previous::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Previous::default()),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes the file at `path`; returns whether there was one.
///
/// # Errors
/// [`Error::Remove`].
pub fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Remove {
            path: path.to_owned(),
            source,
        }),
    }
}

impl Previous {
    /// Reads the text as flannel's dotenv parser does: comments, quotes, `export` and `KEY: value` are taken, what is
    /// not understood is skipped, and the last of several lines with one key counts.
    pub fn parse(text: &str) -> Self {
        let mut previous = Self::default();
        for (key, value) in text.lines().filter_map(parse_line) {
            match key {
                "FLANNEL_NETWORK" => previous.network = only_network(value),
                "FLANNEL_SUBNET" => previous.subnet = only_network(value),
                _ => {}
            }
        }
        previous
    }
}

/// Splits `KEY=value` or `KEY: value`; `None` for comments and for lines without a separator.
fn parse_line(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once(['=', ':'])?;
    let key = key.trim();
    let key = match key.strip_prefix("export") {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => key,
    };
    let value = value.trim();
    let quoted = |quote: char| {
        let (inside, _) = value.strip_prefix(quote)?.split_once(quote)?;
        Some(inside)
    };
    let value = match quoted('"').or_else(|| quoted('\'')) {
        Some(inside) => inside,
        None => value.split('#').next().unwrap_or(value).trim_end(),
    };
    Some((key, value))
}

/// The one network in a comma-separated list, masked; flannel 0.21 to 0.25 wrote lists, and more than one valid member
/// means that nobody knows which was meant.
fn only_network(list: &str) -> Option<Ipv4Net> {
    let mut valid = list
        .split(',')
        .filter_map(|entry| entry.trim().parse::<Ipv4Net>().ok());
    let first = valid.next()?;
    valid.next().is_none().then(|| first.trunc())
}

#[cfg(test)]
mod tests;
