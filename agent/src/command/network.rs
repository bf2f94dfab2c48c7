//! `selvage network`: the network config and the leases of all nodes, for administrators and boot scripts.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;
use tracing::warn;

use crate::base::go_json;
use crate::base::logging::chain;
use crate::base::retry::{Backoff, random_seed};
use crate::cluster::lease::etcd::{EtcdStore, Expected, StoredConfig};
use crate::cluster::lease::{Lease, LeaseStore, StoreError, allocate};
use crate::cluster::network_config::{NetworkConfig, NetworkConfigError};
use crate::command::cli::NetworkCommand;
use crate::plan::backend::BackendConfig;
use crate::settings::Settings;

mod leases;
mod reservation;

pub use leases::list;
pub use reservation::{ReservationError, node, reserve, unreserve};

/// Pauses between attempts to reach etcd.
const PAUSES: Backoff = Backoff::constant(Duration::from_millis(500), Duration::from_secs(5), 0.3);

/// `selvage network` failed.
#[derive(Debug, Error)]
pub enum NetworkCommandError {
    /// The new config cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new config breaks a rule; nothing was written.
    #[error("invalid network config, nothing was changed")]
    Invalid(#[from] NetworkConfigError),
    /// The backend cannot work with the new config; nothing was written.
    #[error("invalid network config, nothing was changed: {0}")]
    Backend(String),
    /// etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A reservation.
    #[error(transparent)]
    Reservation(#[from] ReservationError),
    /// The config cannot be shown as JSON.
    #[error("failed to encode the network config")]
    Encode(#[from] serde_json::Error),
    /// The answer cannot be written.
    #[error("failed to write the output")]
    Write(#[from] io::Error),
}

impl NetworkCommandError {
    /// Whether the config is at fault (exit status 78), rather than etcd or the output.
    pub fn is_bad_config(&self) -> bool {
        matches!(
            self,
            Self::Invalid(_) | Self::Backend(_) | Self::Store(StoreError::BadNetworkConfig { .. })
        )
    }
}

/// The result of [`set`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetOutcome {
    /// No config existed.
    Created,
    /// A different one existed.
    Replaced,
    /// The same config existed already.
    Unchanged,
    /// A config existed, and `if_absent` was set.
    LeftAlone,
}

/// Runs the subcommand.
pub async fn run(
    command: NetworkCommand,
    store: &mut EtcdStore,
    settings: &Settings,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    match command {
        NetworkCommand::Get { json, .. } => get(store, json, out).await,
        NetworkCommand::Set {
            if_absent,
            wait,
            file,
            ..
        } => {
            let text = read_input(Some(&file))?;
            let until = Instant::now() + Duration::from_secs(wait);
            set_until(store, &text, if_absent, until, out).await
        }
        NetworkCommand::Leases { json, .. } => list(store, false, json, out).await,
        NetworkCommand::Reservations { json, .. } => list(store, true, json, out).await,
        NetworkCommand::Reserve {
            subnet,
            settings: flags,
        } => reserve(store, subnet, node(&flags, settings).as_ref(), out).await,
        NetworkCommand::Unreserve { subnet, .. } => unreserve(store, subnet, out).await,
    }
}

/// Reads a config to set from a file, or from standard input for none or `-`.
pub fn read_input(file: Option<&Path>) -> Result<String, NetworkCommandError> {
    let read = |path: &Path, result: io::Result<String>| {
        result.map_err(|source| NetworkCommandError::Read {
            path: path.to_owned(),
            source,
        })
    };
    match file.filter(|path| *path != Path::new("-")) {
        Some(path) => read(path, std::fs::read_to_string(path)),
        None => {
            let mut text = String::new();
            let result = io::stdin().read_to_string(&mut text);
            read(Path::new("standard input"), result.map(|_| text))
        }
    }
}

/// Shows the network config with the computed defaults: as lines, or as JSON that `set` takes back.
pub async fn get(
    store: &mut EtcdStore,
    json: bool,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    let config = store.network_config().await?;
    let text = config.to_json()?;
    if json {
        writeln!(out, "{text}")?;
        return Ok(());
    }
    for (name, value) in fields(&text)? {
        writeln!(out, "{name:<15} {value}")?;
    }
    Ok(())
}

/// As [`set`], again and again until a server of etcd answers, or it is `until`.
async fn set_until(
    store: &mut EtcdStore,
    text: &str,
    if_absent: bool,
    until: Instant,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    let check = |config: &NetworkConfig| match BackendConfig::parse(config) {
        Ok(_) => Ok(()),
        Err(error) => Err(chain(&error)),
    };
    let mut pauses = PAUSES.seeded(random_seed());
    let mut told = String::new();
    loop {
        let result = set(store, text, if_absent, check, out).await;
        let Err(NetworkCommandError::Store(StoreError::Unreachable { attempts, .. })) = &result
        else {
            return result.map(drop);
        };
        let next = Instant::now() + pauses.next_delay();
        if next > until {
            return result.map(drop);
        }
        if told != *attempts {
            told.clone_from(attempts);
            warn!("waiting for etcd: {attempts}");
        }
        tokio::time::sleep_until(next).await;
    }
}

/// Validates a network config and writes it. `check` validates the backend's part. With `if_absent` an existing config
/// stays unchanged.
///
/// Running nodes apply all changes that need no other subnet; leases that the new config does not allow are listed as a
/// warning.
pub async fn set(
    store: &mut EtcdStore,
    text: &str,
    if_absent: bool,
    check: impl Fn(&NetworkConfig) -> Result<(), String>,
    out: &mut impl Write,
) -> Result<SetOutcome, NetworkCommandError> {
    let config = NetworkConfig::parse(text)?;
    check(&config).map_err(NetworkCommandError::Backend)?;
    let text = go_json::compact(text);
    let key = store.config_key().to_owned();

    let old = store.raw_network_config().await?;
    match &old {
        Some(old) if old.text == text => {
            writeln!(out, "{key} is unchanged")?;
            return Ok(SetOutcome::Unchanged);
        }
        Some(_) if if_absent => {
            writeln!(out, "{key} exists and differs; nothing was changed")?;
            return Ok(SetOutcome::LeftAlone);
        }
        Some(_) | None => {}
    }
    let expected = match &old {
        Some(old) => Expected::Revision(old.revision),
        None => Expected::Absent,
    };
    match store.set_network_config(&text, expected).await {
        Err(StoreError::ConfigChanged { .. }) if if_absent => {
            writeln!(
                out,
                "{key} was just written by another client; nothing was changed"
            )?;
            return Ok(SetOutcome::LeftAlone);
        }
        result => result?,
    }
    let outcome = match &old {
        Some(old) => {
            write_differences(old, &config, &key, out)?;
            SetOutcome::Replaced
        }
        None => {
            writeln!(out, "{key} written: {text}")?;
            SetOutcome::Created
        }
    };
    write_unfit(&config, &store.list().await?, out)?;
    Ok(outcome)
}

/// Prints the changed settings, including computed ones.
fn write_differences(
    old: &StoredConfig,
    new: &NetworkConfig,
    key: &str,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    let old = match NetworkConfig::parse(&old.text) {
        Ok(old) => fields(&old.to_json()?)?,
        Err(error) => {
            writeln!(out, "{key} replaced; the old one was invalid: {error}")?;
            return Ok(());
        }
    };
    let new = fields(&new.to_json()?)?;
    writeln!(out, "{key} replaced:")?;
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut same = true;
    for name in names {
        let value = |fields: &BTreeMap<String, String>| {
            fields.get(name).map_or("-".to_owned(), String::clone)
        };
        let (old, new) = (value(&old), value(&new));
        if old != new {
            same = false;
            writeln!(out, "  {name}: {old} -> {new}")?;
        }
    }
    if same {
        writeln!(out, "  only the text changed, not its meaning")?;
    }
    Ok(())
}

/// Warns about leases that the config does not allow: their nodes take other subnets at their next start.
fn write_unfit(
    config: &NetworkConfig,
    leases: &[Lease],
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    const SHOWN: usize = 10;
    let unfit: Vec<_> = leases
        .iter()
        .filter(|lease| !allocate::allows(config, &lease.key))
        .collect();
    if unfit.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "warning: {} of {} leases do not fit this config; their nodes take other subnets when they restart:",
        unfit.len(),
        leases.len()
    )?;
    for lease in unfit.iter().take(SHOWN) {
        writeln!(out, "  {} of {}", lease.key, lease.attrs.public_address())?;
    }
    if let Some(more) = unfit.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        writeln!(out, "  and {more} more")?;
    }
    Ok(())
}

/// The fields of a JSON object as text, strings without quotes.
fn fields(json: &str) -> Result<BTreeMap<String, String>, serde_json::Error> {
    let object: BTreeMap<String, Value> = serde_json::from_str(json)?;
    Ok(object
        .into_iter()
        .map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect())
}
