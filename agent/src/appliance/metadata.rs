//! What the platform says of this machine: its addresses, names, and the keys of its owner.
//!
//! [`fetch`] asks the platform's service or reads its drive; [`environment`] makes variables of the answer, under the names
//! that configs written for CoreOS, Flatcar and Afterburn expect. [`providers`] is the table of platforms: another one is
//! another row.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use self::http::Trouble;
use self::providers::Provider;
use crate::appliance::ignition::ssh_key;
use crate::appliance::platform;
use crate::base::words;

pub use self::environment::environment;

pub mod check_in;
mod document;
mod drive;
mod environment;
pub mod guestinfo;
mod http;
mod kvp;
mod providers;
mod race;
mod read;
pub mod ssh_keys;
pub mod static_network;
pub mod user_data;

/// Where to look, and for how long.
#[derive(Clone, Debug)]
pub struct Site {
    /// The root of the file system, for the drives.
    pub root: PathBuf,
    /// The servers to ask in place of the platform's, as `http://127.0.0.1:8080`; for tests.
    pub servers: Option<Vec<String>>,
    /// What VMware's host says, by its keys; empty on other platforms.
    pub guestinfo: BTreeMap<String, String>,
    /// How long to try.
    pub patience: Duration,
}

impl Site {
    /// This machine, which runs on a platform.
    pub fn of_this_machine(platform: &str, patience: Duration) -> Self {
        let is_vmware = platform::id_of(platform) == guestinfo::PLATFORM;
        Self {
            root: PathBuf::from("/"),
            servers: None,
            guestinfo: is_vmware.then(guestinfo::of_host).unwrap_or_default(),
            patience,
        }
    }

    /// The servers to ask: one whose address is good on one link only, `http://[fe80::1%]`, on each interface that has
    /// a device.
    fn servers(&self, of_platform: &[&str]) -> Vec<String> {
        if let Some(servers) = &self.servers {
            return servers.clone();
        }
        let on_each = |server: &&str| match server.split_once("%]") {
            None => vec![(*server).to_owned()],
            Some((start, end)) => (self.interfaces().iter())
                .map(|name| format!("{start}%{name}]{end}"))
                .collect(),
        };
        of_platform.iter().flat_map(on_each).collect()
    }

    /// The network interfaces that have a device, by name.
    fn interfaces(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("sys/class/net"));
        let mut names: Vec<_> = (entries.into_iter().flatten().flatten())
            .filter(|entry| entry.path().join("device").exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }
}

/// What a platform says.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The platform's id.
    pub platform: String,
    /// The address of the server, or the drive; `None` where the platform has neither.
    pub source: Option<String>,
    /// Attributes by Afterburn's names without the platform: `IPV4_LOCAL`. Never empty ones.
    pub attributes: Vec<(String, String)>,
    /// The public SSH keys of the machine's owner, each a line for `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

impl Metadata {
    /// An attribute by the name that it has on all platforms: `HOSTNAME`, `IPV4_LOCAL`.
    pub fn common(&self, name: &str) -> Option<&str> {
        environment::common(&self.attributes, name)
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// Nothing answered in time.
    #[error("no answer from platform {platform} after {}: {}", words::duration(waited.as_secs()), list(troubles.iter()))]
    NoAnswer {
        /// The platform's id.
        platform: String,
        /// For how long it was tried.
        waited: Duration,
        /// What was wrong with each place at the last try.
        troubles: Vec<Trouble>,
    },
    /// What came cannot be understood, and another try would not help.
    #[error("platform {platform}")]
    Answer {
        /// The platform's id.
        platform: String,
        /// What is wrong.
        #[source]
        trouble: Trouble,
    },
}

fn list<'t>(troubles: impl Iterator<Item = &'t Trouble>) -> String {
    let texts: Vec<String> = troubles.map(ToString::to_string).collect();
    texts.join("; ")
}

/// The row of a platform.
fn provider(platform: &str) -> Option<&'static Provider> {
    providers::all().find(|row| row.platform == platform)
}

/// Whether a platform has SSH keys.
pub fn has_keys(platform: &str) -> bool {
    provider(platform).is_some_and(Provider::has_keys)
}

/// Fetches what the platform says, and tries again until the site's patience ends. A platform without metadata says nothing.
///
/// # Errors
/// When no place answers in time, or an answer cannot be understood.
pub async fn fetch(platform: &str, site: &Site) -> Result<Metadata, Error> {
    let platform = platform::id_of(platform);
    let Some(provider) = provider(platform) else {
        return Ok(Metadata {
            platform: platform.to_owned(),
            ..Metadata::default()
        });
    };
    let fetched = race::first(provider, site, async |place| read::all(place, site).await).await?;
    let (source, contents) = fetched;
    let mut metadata = Metadata {
        platform: platform.to_owned(),
        source: Some(source),
        attributes: contents.attributes,
        ssh_keys: Vec::new(),
    };
    for key in contents.keys {
        match ssh_key::check(&key) {
            Ok(()) if metadata.ssh_keys.contains(&key) => (),
            Ok(()) => metadata.ssh_keys.push(key),
            Err(error) => warn!("an SSH key of platform {platform} is left out: {error}"),
        }
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests;
