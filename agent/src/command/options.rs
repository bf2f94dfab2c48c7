//! `selvage options`: the configuration that each container runtime needs to attach its containers to the overlay.
//!
//! The configs of rkt and of CNI runtimes name the plugin `flannel`, which reads the subnet file every time; so they
//! are the same on every host, and the image ships them. Docker's options contain the subnet.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Subcommand;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use thiserror::Error;

use crate::base::env_file::{self, Variables};
use crate::host::firewall::docker::{self, Backend, Version};
use crate::settings::OptionsSettings;

/// The config list for containerd, podman, CRI-O and others; belongs into `/etc/cni/net.d/`.
pub use crate::flannel::install::BUILT_IN as CNI;

/// The config for rkt; belongs into `/etc/rkt/net.d/`.
pub const RKT: &str = include_str!("../../data/rkt/10-selvage.conf");

/// Which runtime.
#[derive(Debug, Subcommand)]
pub enum OptionsCommand {
    /// Print the options that dockerd needs on this host, from the subnet file.
    Docker {
        /// Print what belongs into /etc/docker/daemon.json instead.
        #[arg(long)]
        json: bool,
        /// Docker runs with --firewall-backend=nftables; then it needs more, depending on its version.
        #[arg(long)]
        nftables: bool,
        /// Where the subnet file is.
        #[command(flatten)]
        settings: Box<OptionsSettings>,
    },
    /// Print the network config for rkt, /etc/rkt/net.d/10-selvage.conf.
    Rkt,
    /// Print the network config list for containerd, podman and CRI-O, /etc/cni/net.d/10-flannel.conflist.
    Cni,
}

/// The options cannot be printed.
#[derive(Debug, Error)]
pub enum Error {
    /// The subnet file cannot be read.
    #[error("failed to read the subnet file {}, which the agent writes when it has a subnet", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The subnet file is not one.
    #[error("failed to read the subnet file {}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: env_file::Error,
    },
    /// A value is not what it should be.
    #[error("{}: {key} = {value:?}: expected {expected}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// The variable.
        key: &'static str,
        /// Its value; empty when it is missing.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Docker cannot be asked for its version.
    #[error("failed to run `dockerd --version`")]
    Run(#[source] io::Error),
    /// Docker's version cannot be made out.
    #[error("`dockerd --version` says {0:?}: expected a version such as 29.0.1")]
    Version(String),
    /// They cannot be written out.
    #[error("failed to print the options")]
    Print(#[from] io::Error),
}

/// Prints what dockerd needs: the subnet's, from the subnet file, and what opens its packet filter to the overlay, where
/// rules of ours cannot (`nftables`).
///
/// # Errors
/// [`Error`].
pub fn docker(
    subnet_file: &Path,
    nftables: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let options = Docker::read(subnet_file)?;
    let more = if nftables {
        docker::options(installed_docker()?, Backend::Nftables)
    } else {
        Vec::new()
    };
    print(&options, &more, json, out)
}

/// The version of the Docker daemon on this host.
fn installed_docker() -> Result<Version, Error> {
    let output = Command::new("dockerd").arg("--version").output();
    let output = output.map_err(Error::Run)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text).ok_or_else(|| Error::Version(text.trim().chars().take(80).collect()))
}

fn print(options: &Docker, more: &[String], json: bool, out: &mut impl Write) -> Result<(), Error> {
    if !json {
        let all = [&options.arguments(), more].concat();
        writeln!(out, "{}", all.join(" "))?;
        return Ok(());
    }
    let mut settings = serde_json::to_value(options).map_err(io::Error::from)?;
    for option in more {
        let option = option.trim_start_matches('-');
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, value.into()),
            None => (option, true.into()),
        };
        settings[key] = value;
    }
    serde_json::to_writer_pretty(&mut *out, &settings).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// What dockerd needs; serialized, its `daemon.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Docker {
    /// Address of the bridge, with the subnet's length.
    #[serde(skip_serializing_if = "Option::is_none")]
    bip: Option<Ipv4Net>,
    /// Whether Docker masquerades: when the agent does not.
    ip_masq: bool,
    /// MTU of the overlay in bytes.
    mtu: u32,
    #[serde(flatten)]
    ipv6: Option<DockerIpv6>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct DockerIpv6 {
    /// Whether containers get IPv6 addresses.
    ipv6: bool,
    /// Where those are from.
    fixed_cidr_v6: Ipv6Net,
}

impl Docker {
    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut variables = Variables::new();
        env_file::source(&text, &mut variables).map_err(|source| Error::Parse {
            path: path.to_owned(),
            source,
        })?;
        let value = |key| variables.get(key).map_or("", String::as_str);
        let wrong = |key, expected| Error::Value {
            path: path.to_owned(),
            key,
            value: value(key).to_owned(),
            expected,
        };
        let (v4, v6) = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET");
        let bip = match value(v4) {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| wrong(v4, "an IPv4 address with its length"))?,
            ),
        };
        let ipv6 = match value(v6) {
            "" => None,
            text => {
                let bridge: Ipv6Net = text
                    .parse()
                    .map_err(|_| wrong(v6, "an IPv6 address with its length"))?;
                Some(DockerIpv6 {
                    ipv6: true,
                    fixed_cidr_v6: bridge.trunc(),
                })
            }
        };
        if bip.is_none() && ipv6.is_none() {
            return Err(wrong(
                v4,
                "an address with its length, here or in FLANNEL_IPV6_SUBNET",
            ));
        }
        let (mtu, masquerade) = ("FLANNEL_MTU", "FLANNEL_IPMASQ");
        Ok(Self {
            bip,
            ip_masq: match value(masquerade) {
                "true" => false,
                "false" => true,
                _ => return Err(wrong(masquerade, "true or false")),
            },
            mtu: value(mtu)
                .parse()
                .map_err(|_| wrong(mtu, "a number of bytes"))?,
            ipv6,
        })
    }

    /// As arguments of dockerd.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        arguments.extend(self.bip.map(|bip| format!("--bip={bip}")));
        arguments.push(format!("--ip-masq={}", self.ip_masq));
        arguments.push(format!("--mtu={}", self.mtu));
        if let Some(ipv6) = &self.ipv6 {
            arguments.push(format!("--ipv6={}", ipv6.ipv6));
            arguments.push(format!("--fixed-cidr-v6={}", ipv6.fixed_cidr_v6));
        }
        arguments
    }
}

#[cfg(test)]
mod tests;
