//! `selvage metadata`: what the platform says of this machine, for units, sshd and people.
//!
//! Its flags are those of Afterburn and of CoreOS's `coreos-metadata`, so that drop-ins for their units work.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use nix::unistd::sethostname;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::appliance::consoles;
use crate::appliance::metadata::static_network::{self, Outcome};
use crate::appliance::metadata::user_data::{self, Target};
use crate::appliance::metadata::{
    self, Metadata, Site, check_in, environment, guestinfo, ssh_keys,
};
use crate::appliance::platform::{Facts, Found, detect, id_of};
use crate::base::atomic_file;
use crate::base::logging;

/// The manual's words on the files.
pub const METADATA_HELP: &str = "\
Units that need metadata pull in coreos-metadata.service (also afterburn.service)
and read one of the files that it writes, which are all the same:
/run/metadata/selvage, coreos, flatcar, afterburn. The variables are called

  SELVAGE_METADATA_NAME      on every platform: PLATFORM, HOSTNAME, IPV4_LOCAL,
                             IPV4_PUBLIC, IPV6, INSTANCE_ID, INSTANCE_TYPE,
                             REGION, ZONE, as far as the platform has them
  COREOS_PLATFORM_NAME       as on CoreOS and Flatcar: COREOS_EC2_IPV4_LOCAL
  AFTERBURN_PLATFORM_NAME    as on Fedora CoreOS: AFTERBURN_AWS_IPV4_LOCAL

The platform is what ignition.platform.id= on the kernel command line says, or
else is found by firmware, disks and devices.";

/// How long to wait between tries to tell the platform that this machine is up.
const CHECK_IN_AGAIN: Duration = Duration::from_secs(5);

/// The longest host name of Linux, in bytes.
const MAX_HOSTNAME: usize = 64;

/// What `selvage metadata` is asked.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MetadataFlags {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<MetadataCommand>,
    /// Find the platform by the kernel command line, or else by the machine; it is found so without this flag, too.
    #[arg(long)]
    pub cmdline: bool,
    /// The platform, such as aws or hetzner; ec2, gce and the other names of Afterburn and CoreOS are understood.
    #[arg(long, value_name = "PLATFORM")]
    pub provider: Option<String>,
    /// Write the attributes to this file, as variables; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub attributes: Vec<PathBuf>,
    /// Have sshd take the platform's keys for this user.
    #[arg(long, value_name = "USER")]
    pub ssh_keys: Option<String>,
    /// Write the host name to this file, unless it has one; /etc/hostname also makes it this machine's name at once.
    #[arg(long, value_name = "FILE")]
    pub hostname: Option<PathBuf>,
    /// Tell the platform that this machine is up, where it waits for that: Azure, Equinix Metal, Scaleway.
    #[arg(long)]
    pub check_in: bool,
    /// How long to wait for the platform's answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=86400))]
    pub patience: u64,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum MetadataCommand {
    /// Print the platform, by what it is known, what it says of this machine, and the network that it gives.
    Show {
        /// Print JSON; its schema is stable.
        #[arg(long)]
        json: bool,
        /// The platform, if not the one that is found.
        #[arg(long, value_name = "PLATFORM")]
        provider: Option<String>,
        /// How long to wait for the platform's answer.
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        #[arg(value_parser = clap::value_parser!(u64).range(0..=86400))]
        patience: u64,
    },
    /// Give networkd the platform's network, where it has one; the image does so before networkd starts.
    #[command(hide = true)]
    Network,
    /// Ask VMware's host for what it has for this machine, and print it as JSON; the other commands have this done.
    #[command(hide = true)]
    Guestinfo,
    /// Find the config of the first boot; the initrd does so.
    #[command(hide = true)]
    UserData {
        /// The file that Ignition's units read variables from; lines are added.
        #[arg(long, value_name = "FILE")]
        environment: PathBuf,
        /// The directory that Ignition reads user.ign from.
        #[arg(long, value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The platform does not answer.
    #[error("no metadata")]
    Metadata(#[from] metadata::Error),
    /// The first boot has no usable config.
    #[error("no config for the first boot")]
    UserData(#[from] user_data::Error),
    /// VMware's host is not asked, or does not answer.
    #[error("failed to ask VMware's host")]
    Guestinfo(#[source] io::Error),
    /// A file cannot be written.
    #[error("failed to write {path} (as root?)")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not take the name.
    #[error("failed to set the host name (as root?)")]
    SetHostname(#[source] io::Error),
    /// Printing failed.
    #[error("failed to print")]
    Output(#[from] io::Error),
}

/// Does what is asked, on the machine whose root is `root`. Returns the exit status.
///
/// # Errors
/// See [`Error`].
pub async fn run(root: &Path, flags: &MetadataFlags, out: &mut impl Write) -> Result<u8, Error> {
    match &flags.command {
        Some(MetadataCommand::UserData {
            environment,
            directory,
        }) => {
            let target = Target {
                environment: environment.clone(),
                directory: directory.clone(),
            };
            provision(root, &target, out).await?;
            return Ok(0);
        }
        Some(MetadataCommand::Network) => {
            let found = platform(root, None);
            network_of(&found, &site(root, &found, 0), out)?;
            return Ok(0);
        }
        Some(MetadataCommand::Guestinfo) => {
            guestinfo::print(out).map_err(Error::Guestinfo)?;
            return Ok(0);
        }
        Some(MetadataCommand::Show {
            json,
            provider,
            patience,
        }) => {
            let found = platform(root, provider.as_deref());
            return show(root, &found, *patience, *json, out).await;
        }
        None => (),
    }
    let found = platform(root, flags.provider.as_deref());
    let wants_metadata =
        !flags.attributes.is_empty() || flags.ssh_keys.is_some() || flags.hostname.is_some();
    if !wants_metadata && !flags.check_in {
        return show(root, &found, flags.patience, false, out).await;
    }
    let site = site(root, &found, flags.patience);
    if wants_metadata {
        let metadata = metadata::fetch(&found.id, &site).await?;
        write_all(root, flags, &found, &metadata, out)?;
    }
    if flags.check_in {
        match check_in(&found.id, &site).await? {
            Some(told) => writeln!(out, "told platform {}: {told}", found.id)?,
            None => writeln!(out, "platform {} does not wait for this machine", found.id)?,
        }
    }
    Ok(0)
}

fn site(root: &Path, found: &Found, patience: u64) -> Site {
    let mut site = Site::of_this_machine(&found.id, Duration::from_secs(patience));
    root.clone_into(&mut site.root);
    site
}

fn platform(root: &Path, given: Option<&str>) -> Found {
    match given {
        Some(name) => Found {
            id: id_of(name).to_owned(),
            reason: format!("--provider={name}"),
        },
        None => detect(&Facts::read(root)),
    }
}

fn write_all(
    root: &Path,
    flags: &MetadataFlags,
    found: &Found,
    metadata: &Metadata,
    out: &mut impl Write,
) -> Result<(), Error> {
    if metadata.source.is_none() {
        warn!("platform {} ({}) has no metadata", found.id, found.reason);
    }
    let text = environment(metadata);
    for path in &flags.attributes {
        let path = root.join(path.strip_prefix("/").unwrap_or(path));
        replace(&path, &text)?;
        writeln!(
            out,
            "{}: {} variables",
            path.display(),
            text.lines().count()
        )?;
    }
    if let Some(user) = &flags.ssh_keys {
        let keys = &metadata.ssh_keys;
        let written = ssh_keys::write(root, user, keys);
        let path = written.map_err(|(path, source)| Error::Write { path, source })?;
        writeln!(out, "{}: {} keys", path.display(), keys.len())?;
    }
    if let (Some(path), Some(name)) = (&flags.hostname, metadata.common("HOSTNAME")) {
        write_hostname(
            &root.join(path.strip_prefix("/").unwrap_or(path)),
            name,
            out,
        )?;
    }
    Ok(())
}

/// Writes the name, if the file has none. One that Linux does not take is no error: it would be none the next time.
fn write_hostname(path: &Path, name: &str, out: &mut impl Write) -> Result<(), Error> {
    let known = std::fs::read_to_string(path).unwrap_or_default();
    if !known.trim().is_empty() {
        return Ok(());
    }
    if !is_hostname(name) {
        warn!(
            "the platform calls this machine {name:?}, which is no host name; give it one by /etc/hostname"
        );
        return Ok(());
    }
    replace(path, &format!("{name}\n"))?;
    writeln!(out, "{}: {name}", path.display())?;
    if path == Path::new("/etc/hostname") {
        sethostname(name).map_err(|error| Error::SetHostname(error.into()))?;
    }
    Ok(())
}

fn replace(path: &Path, text: &str) -> Result<(), Error> {
    atomic_file::replace(path, text.as_bytes(), 0o644).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// Whether Linux and hostnamed take it.
fn is_hostname(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && label.chars().all(is_good) && !label.starts_with('-')
    };
    name.len() <= MAX_HOSTNAME && name.split('.').all(is_label)
}

/// Tries until the patience ends: the platform takes a machine that does not report for broken.
async fn check_in(platform: &str, site: &Site) -> Result<Option<String>, metadata::Error> {
    let started = Instant::now();
    loop {
        match check_in::check_in(platform, site).await {
            Err(error) if started.elapsed() < site.patience => {
                warn!("check-in failed, trying again: {}", logging::chain(&error));
                sleep(CHECK_IN_AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn show(
    root: &Path,
    found: &Found,
    patience: u64,
    json: bool,
    out: &mut impl Write,
) -> Result<u8, Error> {
    let fetched = metadata::fetch(&found.id, &site(root, found, patience)).await;
    if json {
        let (metadata, error) = match &fetched {
            Ok(metadata) => (metadata.clone(), None),
            Err(error) => (Metadata::default(), Some(logging::chain(error))),
        };
        let attributes = metadata.attributes.into_iter();
        let attributes: Map<String, Value> = attributes
            .map(|(name, value)| (name, Value::from(value)))
            .collect();
        let report = json!({
            "platform": found.id, "reason": found.reason, "source": metadata.source,
            "attributes": attributes, "sshKeys": metadata.ssh_keys, "error": error,
            "network": Outcome::of_this_boot(root),
        });
        writeln!(out, "{report:#}")?;
        return Ok(u8::from(fetched.is_err()));
    }
    writeln!(out, "platform: {} ({})", found.id, found.reason)?;
    if let Some(network) = Outcome::of_this_boot(root) {
        writeln!(out, "network: {network}")?;
    }
    let metadata = fetched?;
    let source = metadata.source.as_deref();
    writeln!(out, "source: {}", source.unwrap_or("none"))?;
    for line in environment(&metadata).lines() {
        writeln!(out, "{line}")?;
    }
    for key in &metadata.ssh_keys {
        writeln!(out, "SSH key: {key}")?;
    }
    Ok(0)
}

/// The first boot: finds the platform and the config, and tells Ignition.
async fn provision(root: &Path, target: &Target, out: &mut impl Write) -> Result<(), Error> {
    let mut facts = Facts::read(root);
    if !facts.fw_cfg {
        // Labels count, so all disks are to be there; a config of QEMU's is known without them. Whatever comes of it: a
        // disk that takes longer is no reason to stop.
        let _ = helper("udevadm", &["settle", "--timeout=10"]);
        facts = Facts::read(root);
    }
    let found = detect(&facts);
    writeln!(
        out,
        "first boot: provisioning this machine (platform {}: {})",
        found.id, found.reason
    )?;
    let mut site = site(root, &found, 0);
    let given = site.clone();
    let network = || {
        network_of(&found, &given, out)?;
        network()
    };
    // A cloud's service may come later than the machine, and without it there is nothing to do.
    site.patience = Duration::MAX;
    let config = user_data::provision(&found, &site, target, network).await?;
    writeln!(out, "{config}")?;
    Ok(())
}

/// Gives networkd the platform's network. Whatever is wrong with that, DHCP may do: a unit that fails for it would have
/// a new version of the image judged bad. So every console is told, once.
fn network_of(found: &Found, site: &Site, out: &mut impl Write) -> io::Result<()> {
    let outcome = match static_network::write(&found.id, site) {
        Ok(None) => return Ok(()),
        Ok(Some(outcome)) => outcome,
        Err(error) => Outcome {
            refused: Some(format!("{}; cards use DHCP", logging::chain(&error))),
            ..Outcome::default()
        },
    };
    writeln!(out, "network: {outcome}")?;
    let is_new = outcome.keep(&site.root).unwrap_or_else(|error| {
        warn!("`selvage metadata show` will not have the network: {error}");
        true
    });
    if is_new && outcome.is_lacking() {
        consoles::tell(&site.root, &format!("Network: {outcome}"));
    }
    Ok(())
}

/// Starts what brings the network up in the initrd; the requests themselves are repeated until it is there.
fn network() -> io::Result<()> {
    let services = ["systemd-networkd.service", "systemd-resolved.service"];
    helper("systemctl", &[&["start"], &services[..]].concat())
}

/// Runs a program of the initrd.
fn helper(program: &str, arguments: &[&str]) -> io::Result<()> {
    let status = std::process::Command::new(program)
        .args(arguments)
        .status()?;
    if status.success() {
        return Ok(());
    }
    let arguments = arguments.join(" ");
    Err(io::Error::other(format!("{program} {arguments}: {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_those_that_linux_takes() {
        for (name, good) in [
            ("ip-172-31-1-2.ec2.internal", true),
            ("CLOUDINIT", true),
            ("", false),
            ("a..b", false),
            ("-a", false),
            ("a b", false),
            ("a\nb", false),
            ("a_b", false),
            (&"a".repeat(65), false),
        ] {
            assert_eq!(is_hostname(name), good, "{name:?}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_left_alone_and_no_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etc/hostname");
        let mut out = Vec::new();
        // As a scale set of Azure's calls its first machine.
        for name in ["agents_0", &"a".repeat(65)] {
            write_hostname(&path, name, &mut out).unwrap();
            assert!(!path.exists(), "{name}");
        }
        for name in ["agents000000", "other"] {
            write_hostname(&path, name, &mut out).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, "agents000000\n", "{name}");
        }
    }

    /// `selvage metadata` with a command.
    async fn output_of(root: &Path, command: MetadataCommand) -> String {
        let flags = MetadataFlags {
            command: Some(command),
            cmdline: false,
            provider: None,
            attributes: Vec::new(),
            ssh_keys: None,
            hostname: None,
            check_in: false,
            patience: 0,
        };
        let mut out = Vec::new();
        assert_eq!(run(root, &flags, &mut out).await.unwrap(), 0);
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn a_network_that_cannot_be_used_is_told_once_and_shown() {
        let root = tempfile::tempdir().unwrap();
        let show = || MetadataCommand::Show {
            json: false,
            provider: None,
            patience: 0,
        };
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let told = || std::fs::read_to_string(root.path().join("dev/ttyS0")).unwrap();
        assert_eq!(output_of(root.path(), MetadataCommand::Network).await, "");
        assert!(!output_of(root.path(), show()).await.contains("network:"));
        write("sys/class/tty/console/active", "ttyS0\n");
        write("dev/ttyS0", "");
        let document = "sys/firmware/qemu_fw_cfg/by_name/opt/selvage/network/raw";
        write(
            document,
            "version: 2\nbonds: {bond0: {interfaces: [eth0]}}\n",
        );
        let refused = "not that of the platform: opt/selvage/network of QEMU's fw_cfg: bonds.bond0 is a bond: ";
        for _ in 0..2 {
            let said = output_of(root.path(), MetadataCommand::Network).await;
            assert!(said.starts_with(&format!("network: {refused}")), "{said}");
            assert!(said.ends_with("; cards use DHCP\n"), "{said}");
        }
        assert!(
            told().contains(&format!("Network: {refused}")),
            "{}",
            told()
        );
        assert_eq!(told().matches("Network: ").count(), 1, "{}", told());
        let shown = output_of(root.path(), show()).await;
        assert!(shown.contains(&format!("\nnetwork: {refused}")), "{shown}");
        // One that can be used is told to who looks for it.
        write("dev/ttyS0", "");
        write(
            document,
            "version: 2\nethernets: {eth0: {addresses: [192.0.2.1/24]}}\n",
        );
        output_of(root.path(), MetadataCommand::Network).await;
        assert_eq!(told(), "");
        let shown = output_of(root.path(), show()).await;
        let from = "network: from opt/selvage/network of QEMU's fw_cfg; eth0 192.0.2.1/24\n";
        assert!(shown.contains(from), "{shown}");
    }

    #[tokio::test]
    async fn a_machine_without_metadata_gets_its_file_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let flags = MetadataFlags {
            command: None,
            cmdline: true,
            provider: None,
            attributes: vec!["/run/metadata/coreos".into(), "run/metadata/flatcar".into()],
            ssh_keys: Some("core".into()),
            hostname: Some("/etc/hostname".into()),
            check_in: true,
            patience: 0,
        };
        let mut out = Vec::new();
        assert_eq!(run(root.path(), &flags, &mut out).await.unwrap(), 0);
        for name in ["coreos", "flatcar"] {
            let path = root.path().join("run/metadata").join(name);
            let text = std::fs::read_to_string(path).unwrap();
            assert_eq!(text, "SELVAGE_METADATA_PLATFORM=metal\n");
        }
        assert!(!root.path().join("etc/hostname").exists());
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("platform metal does not wait for this machine"),
            "{out}"
        );
    }
}
