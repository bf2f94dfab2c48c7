//! `selvage leave`: gives this host's subnet back before its lease expires.
//!
//! For a host that is taken down for good, or is to get another subnet. The data plane is left to `selvage cleanup`.

use std::io::{self, Write};

use thiserror::Error;

use crate::lease::etcd::{EtcdStore, Record, SettingsError};
use crate::lease::{StoreError, SubnetKey};
use crate::lock::{self, Lock};
use crate::settings::Settings;
use crate::{machine_id, subnet_file};

/// Why the subnet was not given back.
#[derive(Debug, Error)]
pub enum Error {
    /// An agent runs, and would take the subnet again.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The machine's identity cannot be made out.
    #[error("failed to find out which machine this is")]
    Identity(#[from] machine_id::Error),
    /// The lease store's settings are wrong.
    #[error("the etcd settings are wrong")]
    Settings(#[from] SettingsError),
    /// etcd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lease changed between reading and deleting.
    #[error("the lease of {subnet} changed meanwhile; try again")]
    Changed {
        /// The leased subnet.
        subnet: SubnetKey,
    },
    /// A cloned disk, most likely.
    #[error("{} leases name this machine, {owner}, and this host remembers none of them as its own: {}", subnets.len(), list(subnets))]
    Ambiguous {
        /// Which machine this is.
        owner: String,
        /// The leased subnets.
        subnets: Vec<SubnetKey>,
    },
    /// The answer cannot be written.
    #[error("failed to print")]
    Output(#[from] io::Error),
}

fn list(subnets: &[SubnetKey]) -> String {
    let texts: Vec<_> = subnets.iter().map(SubnetKey::to_string).collect();
    texts.join(", ")
}

/// Deletes the lease that names this machine, if nobody changed it meanwhile. A reservation stays. No lease is no failure.
///
/// Of several, which cloned disks have, it is the one that `subnet.env` remembers.
///
/// # Errors
/// When an agent runs nothing is done.
pub async fn run(settings: &Settings, out: &mut impl Write) -> Result<(), Error> {
    let _lock = Lock::take(&settings.files.state_dir)?;
    let owner = match &settings.agent.node_id {
        Some(id) => id.clone(),
        None => machine_id::owner("/".as_ref(), &settings.files.state_dir)?,
    };
    let mut store = EtcdStore::new(settings.etcd.clone().into(), owner.clone())?;
    let mut own = store.records().await?.records;
    own.retain(|record| {
        record
            .attrs
            .as_ref()
            .is_some_and(|attrs| attrs.owner.as_ref() == Some(&owner))
    });
    let previous = subnet_file::read_previous(&settings.files.subnet_file).unwrap_or_default();
    let previous = SubnetKey::new(previous.subnet, previous.subnet_v6);
    let Some(record) =
        choose(own, previous).map_err(|subnets| Error::Ambiguous { owner, subnets })?
    else {
        writeln!(out, "this host holds no lease")?;
        return Ok(());
    };
    let subnet = record.key;
    if record.is_reservation() {
        writeln!(
            out,
            "{subnet} is reserved for this host and stays so; to end that: selvage network unreserve"
        )?;
    } else if store.delete(&record).await? {
        writeln!(out, "{subnet} is free again")?;
    } else {
        return Err(Error::Changed { subnet });
    }
    Ok(())
}

/// Which of the leases that name this machine is this host's; the subnets of all if that cannot be said.
fn choose(mut own: Vec<Record>, previous: SubnetKey) -> Result<Option<Record>, Vec<SubnetKey>> {
    if let Some(at) = own.iter().position(|record| record.key == previous) {
        return Ok(Some(own.swap_remove(at)));
    }
    match own.len() {
        0 | 1 => Ok(own.pop()),
        _ => Err(own.iter().map(|record| record.key).collect()),
    }
}
