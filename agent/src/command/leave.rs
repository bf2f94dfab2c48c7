//! `selvage leave`: releases this host's subnet before its lease expires.
//!
//! For a host that is decommissioned, or needs another subnet. `selvage cleanup` removes the data plane.

use std::io::{self, Write};

use thiserror::Error;

use crate::base::lock::{self, Lock};
use crate::base::machine_id;
use crate::cluster::lease::SettingsError;
use crate::cluster::lease::etcd::{EtcdStore, Record};
use crate::cluster::lease::remote::RemoteStore;
use crate::cluster::lease::rest::tls::TlsError;
use crate::cluster::lease::{Lease, Released, StoreError, SubnetKey};
use crate::host::subnet_file;
use crate::settings::Settings;

/// Why the subnet was not released.
#[derive(Debug, Error)]
pub enum Error {
    /// An agent is running and would take the subnet again.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The owner ID cannot be determined.
    #[error("failed to determine this host's owner ID")]
    Identity(#[from] machine_id::Error),
    /// The lease store's settings are wrong.
    #[error("invalid etcd settings")]
    Settings(#[from] SettingsError),
    /// The lease servers' settings are wrong.
    #[error("invalid settings for the lease servers")]
    Remote(#[from] TlsError),
    /// The lease store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lease changed between reading and deleting.
    #[error("the lease of {subnet} changed meanwhile; try again")]
    Changed {
        /// The leased subnet.
        subnet: SubnetKey,
    },
    /// Several leases have this host's owner ID, most likely because of a cloned disk.
    #[error("{} leases have this host's owner ID {owner}, and none of them is in the subnet file: {}", subnets.len(), list(subnets))]
    Ambiguous {
        /// This host's owner ID.
        owner: String,
        /// The leased subnets.
        subnets: Vec<SubnetKey>,
    },
    /// The answer cannot be written.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

fn list(subnets: &[SubnetKey]) -> String {
    let texts: Vec<_> = subnets.iter().map(SubnetKey::to_string).collect();
    texts.join(", ")
}

/// Deletes the lease with this host's owner ID, unless it changed meanwhile. A reservation stays. A missing lease is no
/// error.
///
/// Of several, as with cloned disks, it deletes the one in `subnet.env`.
///
/// # Errors
/// If an agent is running, nothing is changed.
pub async fn run(settings: &Settings, out: &mut impl Write) -> Result<(), Error> {
    let _lock = Lock::take(&settings.files.state_dir)?;
    if settings.kubernetes.enabled {
        writeln!(
            out,
            "the podCIDR stays this node's until the node is deleted: kubectl delete node"
        )?;
        return Ok(());
    }
    let owner = match &settings.agent.node_id {
        Some(id) => id.clone(),
        None => machine_id::owner("/".as_ref(), &settings.files.state_dir)?,
    };
    let previous = subnet_file::read_previous(&settings.files.subnet_file).unwrap_or_default();
    let previous = SubnetKey::new(previous.subnet, previous.subnet_v6);
    let left = if settings.remote.servers.is_empty() {
        leave_etcd(settings, owner, previous).await?
    } else {
        leave_remote(settings, owner, previous).await?
    };
    match left {
        Released::Nothing => writeln!(out, "this host holds no lease")?,
        Released::Lease(subnet) => writeln!(out, "{subnet} is free again")?,
        Released::Reservation(subnet) => writeln!(
            out,
            "{subnet} remains reserved for this host; to end the reservation: selvage network unreserve"
        )?,
    }
    Ok(())
}

async fn leave_etcd(
    settings: &Settings,
    owner: String,
    previous: SubnetKey,
) -> Result<Released, Error> {
    let mut store = EtcdStore::new(settings.etcd.clone(), owner.clone())?;
    let mut own = store.records().await?.records;
    own.retain(|record| {
        record
            .attrs
            .as_ref()
            .is_some_and(|attrs| attrs.owner.as_ref() == Some(&owner))
    });
    let Some(record) = choose(own, |record: &Record| record.key, previous)
        .map_err(|subnets| Error::Ambiguous { owner, subnets })?
    else {
        return Ok(Released::Nothing);
    };
    let subnet = record.key;
    if record.is_reservation() {
        Ok(Released::Reservation(subnet))
    } else if store.delete(&record).await? {
        Ok(Released::Lease(subnet))
    } else {
        Err(Error::Changed { subnet })
    }
}

/// The same through a lease server, which decides who owns a lease.
async fn leave_remote(
    settings: &Settings,
    owner: String,
    previous: SubnetKey,
) -> Result<Released, Error> {
    let store = RemoteStore::new(&settings.remote, owner.clone())?;
    let own = store.own_leases().await?;
    let found = choose(own, |lease: &Lease| lease.key, previous)
        .map_err(|subnets| Error::Ambiguous { owner, subnets })?;
    match found {
        Some(lease) => Ok(store.give_back(&lease).await?),
        None => Ok(Released::Nothing),
    }
}

/// The lease of this host among those with its owner ID; all their subnets if that is ambiguous.
fn choose<L>(
    mut own: Vec<L>,
    key: impl Fn(&L) -> SubnetKey,
    previous: SubnetKey,
) -> Result<Option<L>, Vec<SubnetKey>> {
    if let Some(at) = own.iter().position(|lease| key(lease) == previous) {
        return Ok(Some(own.swap_remove(at)));
    }
    match own.len() {
        0 | 1 => Ok(own.pop()),
        _ => Err(own.iter().map(key).collect()),
    }
}
