//! The config of the first boot, where Ignition itself does not find it: what somebody put into the firmware, the boot
//! partition or on a disk, and the user data of platforms that Debian's Ignition (2.14) does not know.
//!
//! The initrd calls [`provision`] once. It leaves a config where Ignition looks, and says in Ignition's environment which
//! platform Ignition is to work for.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use thiserror::Error;
use tracing::{info, warn};

use super::drive::Drive;
use super::http::Trouble;
use super::providers::{Place, Source};
use super::read::{self, Candidate};
use super::{Site, guestinfo, kvp, provider, race};
use crate::appliance::platform::Found;
use crate::base::words::harmless;

/// The credential's name: `io.systemd.credential:ignition.config=…` in SMBIOS.
pub(in crate::appliance) const CREDENTIAL: &str = "ignition.config";

/// Where the initrd has it: from SMBIOS by systemd, and from the boot partition (`loader/credentials/` there, and the
/// kernel's `.extra.d/`) by systemd-stub(7).
const CREDENTIALS: [&str; 3] = [
    "run/credentials/@system",
    ".extra/global_credentials",
    ".extra/credentials",
];

/// The label of a disk with a config, and the files that are looked for there.
const LABELS: [&str; 2] = ["IGNITION", "ignition"];
const FILES: [&str; 2] = ["ignition/config.ign", "config.ign"];

/// The platforms whose user data Ignition 2.14 cannot fetch, and we can; and those where it waits without end for a
/// drive that not every machine has (kubevirt, nutanix, powervs).
const NOT_IGNITIONS: [&str; 9] = [
    "akamai",
    "hetzner",
    "kubevirt",
    "nutanix",
    "oraclecloud",
    "powervs",
    "proxmoxve",
    "scaleway",
    "upcloud",
];

/// The platform that hands over a config by keys and values of its own.
const HYPERV: &str = "hyperv";

/// The platform whose config Ignition asks this device for, and fails without. Debian's cloud kernel has no driver.
const VIRTUALBOX: (&str, &str) = ("virtualbox", "dev/vboxguest");

/// How long a drive may take to appear. The platform attaches it before the machine starts, or not at all.
const DRIVE_PATIENCE: Duration = Duration::from_secs(10);

/// The platforms whose service the owner of a machine may switch off, and how long it may take to come.
const OPTIONAL: [&str; 1] = ["upcloud"];
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(300);

/// Where Ignition is told.
#[derive(Clone, Debug)]
pub struct Target {
    /// The file that Ignition's units read variables from; lines are added.
    pub environment: PathBuf,
    /// The directory that Ignition reads `user.ign` from.
    pub directory: PathBuf,
}

/// Why this machine is not provisioned.
#[derive(Debug, Error)]
pub enum Error {
    /// What is there is no config.
    #[error("{place}: {is}; {hint}")]
    NotIgnition {
        /// Where it is from.
        place: String,
        /// What it is instead.
        is: String,
        /// What to do.
        hint: &'static str,
    },
    /// The platform does not answer.
    #[error(transparent)]
    Platform(#[from] super::Error),
    /// The disk with the config cannot be read.
    #[error("the disk with the config")]
    Drive(#[from] Trouble),
    /// A file cannot be read or written.
    #[error("failed to {verb} {}", path.display())]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Hyper-V's driver fails.
    #[error("failed to read what Hyper-V hands over (/dev/vmbus/hv_kvp)")]
    Exchange(#[source] io::Error),
    /// There is no network.
    #[error("failed to start the network")]
    Network(#[source] io::Error),
}

/// What a document is.
#[derive(PartialEq, Eq, Debug)]
enum Kind {
    Ignition,
    Empty,
    CloudConfig,
    Other(String, &'static str),
}

const TO_BUTANE: &str = "translate it with butane, and give what butane prints";
const TO_IGNITION: &str = "this image reads Ignition configs (JSON) only; write one with butane, or leave the user data empty";

/// Finds the config and tells Ignition. `network` brings the network up; it is called where the platform's service must be
/// asked. Returns what was found, for people.
///
/// # Errors
/// When what is there is no config, when a file cannot be written, and when a service refuses for minutes. One that
/// does not answer is asked for ever, unless its platform can do without.
pub async fn provision(
    found: &Found,
    site: &Site,
    target: &Target,
    network: impl FnOnce() -> io::Result<()>,
) -> Result<String, Error> {
    if let Some(config) = given(&site.root)? {
        let path = target.directory.join("user.ign");
        write(&path, &config.bytes)?;
        add_lines(&target.environment, found, "metal", None)?;
        return Ok(format!("the config is from {}", config.place));
    }
    let (virtualbox, device) = VIRTUALBOX;
    if found.id == virtualbox && !site.root.join(device).exists() {
        add_lines(&target.environment, found, "metal", None)?;
        return Ok(format!("there is no config: there is no /{device}"));
    }
    let is_ours = match found.id.as_str() {
        // Ignition has a name of its own for the key, we have cloud-init's.
        guestinfo::PLATFORM => {
            !guestinfo::has_ignitions(site) && guestinfo::value(site, guestinfo::USERDATA).is_some()
        }
        id => id == HYPERV || NOT_IGNITIONS.contains(&id),
    };
    if !is_ours {
        add_lines(&target.environment, found, &found.id, None)?;
        return Ok("Ignition fetches the config itself".to_owned());
    }
    let Some(config) = fetched(found, site, network).await? else {
        add_lines(&target.environment, found, "metal", None)?;
        return Ok("there is no config".to_owned());
    };
    let path = target.directory.join("platform.ign");
    write(&path, &config.bytes)?;
    add_lines(&target.environment, found, "file", Some(&path))?;
    Ok(format!("the config is from {}", config.place))
}

/// The config that somebody gave to this machine, whatever it runs on.
fn given(root: &Path) -> Result<Option<Candidate>, Error> {
    for directory in CREDENTIALS {
        let name = if directory.starts_with("run/") {
            CREDENTIAL.to_owned()
        } else {
            format!("{CREDENTIAL}.cred")
        };
        let path = root.join(directory).join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                let verb = "read";
                return Err(Error::File { verb, path, source });
            }
        };
        let place = format!("the credential {}", path.display());
        return Ok(Some(ignition(Candidate { place, bytes })?));
    }
    let drive = match Drive::open(root, &LABELS) {
        Ok(drive) => drive,
        Err(Trouble::NoDrive(_)) => return Ok(None),
        Err(trouble) => return Err(trouble.into()),
    };
    for file in FILES {
        if let Some(bytes) = drive.read(file)? {
            let place = drive.name(file);
            return Ok(Some(ignition(Candidate { place, bytes })?));
        }
    }
    Err(Error::NotIgnition {
        place: format!("the disk labelled {}", drive.label()),
        is: format!("it has neither {} nor {}", FILES[0], FILES[1]),
        hint: "put the config there, or take the disk or its label away",
    })
}

/// A document that must be a config.
fn ignition(candidate: Candidate) -> Result<Candidate, Error> {
    let (is, hint) = match kind(&candidate.bytes) {
        Kind::Ignition => return Ok(candidate),
        Kind::Empty => (
            "it is empty".to_owned(),
            "put the config there, or remove it",
        ),
        Kind::CloudConfig => ("it is a cloud-config".to_owned(), TO_IGNITION),
        Kind::Other(is, hint) => (is, hint),
    };
    let place = candidate.place;
    Err(Error::NotIgnition { place, is, hint })
}

/// The user data of a platform that Ignition does not know.
async fn fetched(
    found: &Found,
    site: &Site,
    network: impl FnOnce() -> io::Result<()>,
) -> Result<Option<Candidate>, Error> {
    if found.id == HYPERV {
        let config = kvp::config(&site.root).map_err(Error::Exchange)?;
        let place = "Hyper-V's data exchange".to_owned();
        let candidate = config.map(|bytes| Candidate { place, bytes });
        return candidate.map(ignition).transpose();
    }
    let Some(provider) = provider(&found.id) else {
        return Ok(None);
    };
    let with_data = |place: &'static Place| Some((place, place.user_data.as_ref()?));
    let is_local = |place: &Place| !matches!(place.from, Source::Http(_));
    let mut site = site.clone();
    if provider.places.iter().all(is_local) {
        site.patience = site.patience.min(DRIVE_PATIENCE);
    } else {
        network().map_err(Error::Network)?;
    }
    let is_optional = OPTIONAL.contains(&found.id.as_str());
    if is_optional {
        site.patience = site.patience.min(OPTIONAL_PATIENCE);
    }
    let tried = race::first(provider, &site, async |place| match with_data(place) {
        Some((place, wanted)) => {
            let (from, candidates) = read::user_data(place, wanted, &site).await?;
            Ok((from, (candidates, wanted.base64)))
        }
        None => Err(Vec::new()),
    });
    let (candidates, base64) = match tried.await {
        Ok((_, found)) => found,
        // Not every guest has a drive.
        Err(super::Error::NoAnswer { troubles, .. })
            if (troubles.iter()).all(|trouble| matches!(trouble, Trouble::NoDrive(_))) =>
        {
            info!("platform {}: there is no drive with a config", found.id);
            return Ok(None);
        }
        Err(error @ super::Error::NoAnswer { .. }) if is_optional => {
            warn!("going on without a config, as if the metadata service is switched off: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    chosen(found, candidates, base64)
}

/// The config among the documents of a platform.
fn chosen(
    found: &Found,
    candidates: Vec<Candidate>,
    base64: bool,
) -> Result<Option<Candidate>, Error> {
    // What Proxmox VE itself writes for every guest with such a drive is a cloud-config: its keys and names come by
    // `selvage metadata`.
    let ignores_cloud_config = found.id == "proxmoxve";
    for mut candidate in candidates {
        if base64 {
            candidate.bytes = decoded(&candidate)?;
        }
        match kind(&candidate.bytes) {
            Kind::Empty => (),
            Kind::CloudConfig if ignores_cloud_config => {
                info!("{}: a cloud-config, which is not used", candidate.place);
            }
            _ => return ignition(candidate).map(Some),
        }
    }
    Ok(None)
}

fn decoded(candidate: &Candidate) -> Result<Vec<u8>, Error> {
    let text: Vec<u8> = (candidate.bytes.iter().copied())
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    STANDARD.decode(text).map_err(|error| Error::NotIgnition {
        place: candidate.place.clone(),
        is: format!("it is no base64 ({error})"),
        hint: "give the config in base64, as the platform wants it",
    })
}

/// What a document is, by its beginning.
fn kind(bytes: &[u8]) -> Kind {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let hint =
            "give it as it is: the platforms' limits are far above the size of usual configs";
        return Kind::Other("it is compressed".to_owned(), hint);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Kind::Other("it is no text".to_owned(), TO_IGNITION);
    };
    let text = text.trim_start_matches('\u{feff}').trim();
    let first = text.lines().next().unwrap_or_default();
    if text.is_empty() {
        Kind::Empty
    } else if text.starts_with('{') {
        match serde_json::from_str::<Value>(text) {
            Ok(value) if value.get("ignition").is_some() => Kind::Ignition,
            Ok(_) => Kind::Other("it is JSON without \"ignition\"".to_owned(), TO_IGNITION),
            Err(error) => Kind::Other(
                format!("it is no valid JSON ({error})"),
                "correct it; `selvage ignition check FILE` shows the place",
            ),
        }
    } else if first.starts_with("#cloud-config") {
        Kind::CloudConfig
    } else if first.starts_with("#!") {
        Kind::Other("it is a script".to_owned(), TO_IGNITION)
    } else if first.to_ascii_lowercase().starts_with("content-type:")
        || first.to_ascii_lowercase().starts_with("mime-version:")
    {
        Kind::Other(
            "it is a multipart archive for cloud-init".to_owned(),
            TO_IGNITION,
        )
    } else if text.lines().any(|line| line.starts_with("variant:")) {
        Kind::Other("it is a Butane config".to_owned(), TO_BUTANE)
    } else {
        let start: String = first.chars().take(40).collect();
        Kind::Other(
            format!("it begins with {:?}", harmless(&start)),
            TO_IGNITION,
        )
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    // Keys and passwords may be in it.
    use std::os::unix::fs::OpenOptionsExt as _;
    let written = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes));
    written.map_err(|source| Error::File {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

/// Says which platform it is, as which Ignition works, and where the config is for its `file` provider.
fn add_lines(
    environment: &Path,
    found: &Found,
    ignitions: &str,
    config: Option<&Path>,
) -> Result<(), Error> {
    let mut text = format!("PLATFORM_ID={ignitions}\nSELVAGE_PLATFORM={}\n", found.id);
    if let Some(config) = config {
        text += &format!("IGNITION_CONFIG_FILE={}\n", config.display());
    }
    let mut options = File::options();
    let file = options.create(true).append(true).open(environment);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::File {
        verb: "write",
        path: environment.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
