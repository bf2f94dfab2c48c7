//! The subnet file `subnet.env`: what container runtimes on this host read about the overlay.
//!
//! One file has four kinds of readers: systemd (`EnvironmentFile=`), shells that source it, flannel's CNI plugin, and
//! the agent (or flanneld) itself, which asks for the same subnet again after a restart. So flannel's keys come first,
//! in flannel's order, and the Docker options after them.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::base::atomic_file;
use crate::base::net::Leased;

/// The subnet file cannot be read, written or removed.
#[derive(Debug, Error)]
#[error("failed to {action} the subnet file {}", path.display())]
pub struct Error {
    action: &'static str,
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Error {
    fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self {
            action,
            path,
            source,
        }
    }
}

/// Contents of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubnetFile {
    /// The whole overlay network and the leased subnet in it, whose first address + 1 is the container bridge's.
    pub v4: Option<Leased<Ipv4Net>>,
    /// The same for IPv6.
    pub v6: Option<Leased<Ipv6Net>>,
    /// MTU of the overlay in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades packets that leave the overlay; then the runtime must not.
    pub masquerade: bool,
}

impl SubnetFile {
    /// The file's text.
    ///
    /// Values are not quoted: none has a character that is special to systemd or a shell, and flannel's readers do not
    /// support quotes. The variable is not called `DOCKER_OPTS`, because flannel's `mk-docker-opts.sh` sources this
    /// file and would prepend that variable to its own options.
    pub fn render(&self) -> String {
        let Self {
            v4,
            v6,
            mtu,
            masquerade,
        } = *self;
        let mut lines = Vec::with_capacity(12);
        let mut line = |key: &str, value: &dyn fmt::Display| lines.push(format!("{key}={value}\n"));
        if let Some(v4) = v4 {
            line("FLANNEL_NETWORK", &v4.network.trunc());
            line("FLANNEL_SUBNET", &bridge_address(v4.subnet.into()));
        }
        if let Some(v6) = v6 {
            line("FLANNEL_IPV6_NETWORK", &v6.network.trunc());
            line("FLANNEL_IPV6_SUBNET", &bridge_address(v6.subnet.into()));
        }
        line("FLANNEL_MTU", &mtu);
        line("FLANNEL_IPMASQ", &masquerade);
        if let Some(v4) = v4 {
            let bridge = bridge_address(v4.subnet.into());
            line("DOCKER_OPT_BIP", &format_args!("--bip={bridge}"));
        }
        line(
            "DOCKER_OPT_IPMASQ",
            &format_args!("--ip-masq={}", !masquerade),
        );
        line("DOCKER_OPT_MTU", &format_args!("--mtu={mtu}"));
        if let Some(v6) = v6 {
            line("DOCKER_OPT_IPV6", &"--ipv6=true");
            let subnet = v6.subnet.trunc();
            line(
                "DOCKER_OPT_IPV6_CIDR",
                &format_args!("--fixed-cidr-v6={subnet}"),
            );
        }
        lines.concat()
    }

    /// Writes the file at `path` unless it has these contents already; returns whether it wrote.
    ///
    /// # Errors
    /// It cannot be written; the old file is then untouched.
    pub fn write(&self, path: &Path) -> Result<bool, Error> {
        let text = self.render();
        if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(false);
        }
        // The store knows this node's subnet, too; and containers wait for the file.
        atomic_file::replace_soon(path, text.as_bytes(), 0o644)
            .map_err(|error| Error::new("write", path, error))?;
        Ok(true)
    }
}

/// The address of the container bridge: the subnet's first address + 1, with the subnet's prefix length. The plugin
/// host-local uses the same address as gateway.
pub(crate) fn bridge_address(subnet: IpNet) -> IpNet {
    let address = match subnet.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().saturating_add(1)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().saturating_add(1)).into(),
    };
    IpNet::new(address, subnet.prefix_len()).unwrap_or(subnet)
}

/// What an earlier run left in the file: networks, and the subnets to ask for again, all masked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Previous {
    /// The overlay network at that time.
    pub network: Option<Ipv4Net>,
    /// The subnet leased at that time.
    pub subnet: Option<Ipv4Net>,
    /// The overlay network for IPv6.
    pub network_v6: Option<Ipv6Net>,
    /// The subnet for IPv6.
    pub subnet_v6: Option<Ipv6Net>,
    /// MTU of the overlay in bytes.
    pub mtu: Option<u32>,
    /// Whether the agent masqueraded.
    pub masquerade: Option<bool>,
}

/// Reads the file that an earlier run of the agent or of any flanneld left at `path`; a missing file is empty.
///
/// # Errors
/// The file exists but is unreadable.
pub fn read_previous(path: &Path) -> Result<Previous, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Previous::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Previous::default()),
        Err(error) => Err(Error::new("read", path, error)),
    }
}

/// Removes the file at `path`; returns whether there was one.
///
/// # Errors
/// The file exists but cannot be removed.
pub fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::new("remove", path, error)),
    }
}

impl Previous {
    /// Parses the text as flannel's dotenv parser does: accepts comments, quotes, `export` and `KEY: value`, skips
    /// everything else, and the last line with a key wins.
    pub fn parse(text: &str) -> Self {
        let v4 = |net: Ipv4Net| net.trunc();
        let v6 = |net: Ipv6Net| net.trunc();
        let mut previous = Self::default();
        for (key, value) in text.lines().filter_map(parse_line) {
            match key {
                "FLANNEL_NETWORK" => previous.network = only_network(value).map(v4),
                "FLANNEL_SUBNET" => previous.subnet = only_network(value).map(v4),
                "FLANNEL_IPV6_NETWORK" => previous.network_v6 = only_network(value).map(v6),
                "FLANNEL_IPV6_SUBNET" => previous.subnet_v6 = only_network(value).map(v6),
                "FLANNEL_MTU" => previous.mtu = value.parse().ok(),
                "FLANNEL_IPMASQ" => previous.masquerade = value.parse().ok(),
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

/// The only network in a comma-separated list: flannel 0.21 to 0.25 wrote lists, and a list with several valid members
/// is ambiguous.
fn only_network<N: FromStr>(list: &str) -> Option<N> {
    let mut valid = list
        .split(',')
        .filter_map(|entry| entry.trim().parse().ok());
    let first = valid.next()?;
    valid.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests;
