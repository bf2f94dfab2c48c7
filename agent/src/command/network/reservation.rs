//! `selvage network reserve` and `unreserve`: subnets reserved for a node until the administrator ends it.
//!
//! A reservation is a lease without a TTL, as in flannel's documentation (reservations.md). The node that publishes its
//! address takes the subnet when it next acquires one.

use std::io::Write;

use ipnet::IpNet;
use thiserror::Error;

use super::NetworkCommandError;
use crate::cluster::lease::etcd::{EtcdStore, Record, Records};
use crate::cluster::lease::{LeaseAttrs, LeaseStore, SubnetKey, allocate};
use crate::cluster::network_config::NetworkConfig;
use crate::settings::table::key;
use crate::settings::{Settings, SettingsFlags};

/// A subnet cannot be reserved, or its reservation cannot be ended. Nothing was changed.
#[derive(Debug, Error)]
pub enum ReservationError {
    /// It is no subnet of the network config.
    #[error("{subnet} is not a subnet of this network; allowed: {allowed}")]
    NotAllowed {
        /// What was asked for.
        subnet: SubnetKey,
        /// The allowed subnets, as text.
        allowed: String,
    },
    /// It overlaps an existing lease.
    #[error("{subnet} overlaps {taken}, which {holder} holds")]
    Taken {
        /// What was asked for.
        subnet: SubnetKey,
        /// What exists.
        taken: SubnetKey,
        /// The public address, or that it is unreadable.
        holder: String,
    },
    /// The node already has another reservation.
    #[error(
        "{subnet} is reserved for {node} already; end that first: selvage network unreserve {name}"
    )]
    HasOther {
        /// The node's public address.
        node: String,
        /// The other subnet.
        subnet: SubnetKey,
        /// The argument that names it on the command line.
        name: String,
    },
    /// No node was given for a free subnet.
    #[error(
        "nobody holds {subnet}: name the node that it is for with --public-ip or --public-ipv6"
    )]
    NoNode {
        /// What was asked for.
        subnet: SubnetKey,
    },
    /// There is no such key.
    #[error("there is no reservation of {subnet}")]
    Absent {
        /// What was asked for.
        subnet: SubnetKey,
    },
    /// It is a lease with a TTL.
    #[error("{subnet} is not reserved: {holder} holds it as a lease")]
    NotReserved {
        /// What was asked for.
        subnet: SubnetKey,
        /// The public address.
        holder: String,
    },
    /// The leases changed concurrently.
    #[error("the leases changed meanwhile; try again")]
    Changed,
}

/// The node named by the flags, as lease attributes; `None` if they name none. This host's own address from other
/// sources of settings is ignored.
pub fn node(flags: &SettingsFlags, settings: &Settings) -> Option<LeaseAttrs> {
    let underlay = &settings.underlay;
    let attrs = LeaseAttrs {
        public_ip: underlay
            .public_ip
            .filter(|_| flags.has(&key::underlay::public_ip)),
        public_ipv6: underlay
            .public_ipv6
            .filter(|_| flags.has(&key::underlay::public_ipv6)),
        backend_type: String::new(),
        backend_data: None,
        backend_v6_data: None,
        owner: None,
    };
    (attrs.public_ip.is_some() || attrs.public_ipv6.is_some()).then_some(attrs)
}

/// Reserves a subnet: a free one for `node`, or a leased one for its current node.
pub async fn reserve(
    store: &mut EtcdStore,
    subnet: SubnetKey,
    node: Option<&LeaseAttrs>,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    let config = store.network_config().await?;
    if !allocate::allows(&config, &subnet) {
        let allowed = allowed(&config);
        return Err(ReservationError::NotAllowed { subnet, allowed }.into());
    }
    let seen = store.records().await?;
    let there = seen.records.iter().find(|record| record.key == subnet);
    let done = match (there, node) {
        (Some(record), node) if node.is_none_or(|node| is_of(record, node)) => {
            if record.is_reservation() {
                writeln!(out, "{subnet} is reserved for {} already", holder(record))?;
                return Ok(());
            }
            let done = store.make_reservation(record).await?;
            if done {
                writeln!(
                    out,
                    "{subnet} is reserved for {}, which holds it",
                    holder(record)
                )?;
            }
            done
        }
        (_, Some(node)) => {
            let address = node.public_address();
            check_free(&seen, &subnet, node)?;
            let done = store.create_reservation(&subnet, node, &seen).await?;
            if done {
                writeln!(out, "{subnet} is reserved for {address}")?;
                for record in seen.records.iter().filter(|record| is_of(record, node)) {
                    writeln!(
                        out,
                        "{address} holds {} and keeps that until it leaves it: selvage leave",
                        record.key
                    )?;
                }
            }
            done
        }
        (_, None) => return Err(ReservationError::NoNode { subnet }.into()),
    };
    if done {
        Ok(())
    } else {
        Err(ReservationError::Changed.into())
    }
}

/// Ends a reservation. A subnet in use becomes a lease with a TTL, which its node renews; an unused one is free at
/// once.
pub async fn unreserve(
    store: &mut EtcdStore,
    subnet: SubnetKey,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    let seen = store.records().await?;
    let Some(record) = seen.records.iter().find(|record| record.key == subnet) else {
        return Err(ReservationError::Absent { subnet }.into());
    };
    let holder = holder(record);
    if !record.is_reservation() {
        return Err(ReservationError::NotReserved { subnet, holder }.into());
    }
    let done = if record.is_in_use() {
        store.make_lease(record).await?
    } else {
        store.delete(record).await?
    };
    if !done {
        return Err(ReservationError::Changed.into());
    }
    if record.is_in_use() {
        writeln!(
            out,
            "{subnet} is not reserved any more; {holder} holds it as a lease"
        )?;
    } else {
        writeln!(out, "{subnet} is not reserved any more")?;
    }
    Ok(())
}

/// Checks that the subnet overlaps no lease, and that the node has no other reservation.
fn check_free(
    seen: &Records,
    subnet: &SubnetKey,
    node: &LeaseAttrs,
) -> Result<(), ReservationError> {
    for record in &seen.records {
        if allocate::overlap(&record.key, subnet) {
            return Err(ReservationError::Taken {
                subnet: *subnet,
                taken: record.key,
                holder: holder(record),
            });
        }
        if record.is_reservation() && is_of(record, node) {
            return Err(ReservationError::HasOther {
                node: node.public_address().to_string(),
                subnet: record.key,
                name: record
                    .key
                    .nets()
                    .map(|net| net.to_string())
                    .collect::<Vec<_>>()
                    .join(","),
            });
        }
    }
    Ok(())
}

/// Whether a node with these addresses would treat the lease as its own.
fn is_of(record: &Record, node: &LeaseAttrs) -> bool {
    record
        .attrs
        .as_ref()
        .is_some_and(|attrs| attrs.same_address(node))
}

fn holder(record: &Record) -> String {
    match &record.attrs {
        Some(attrs) => attrs.public_address().to_string(),
        None => "an unreadable lease".to_owned(),
    }
}

/// The subnets that a node may have, as text.
fn allowed(config: &NetworkConfig) -> String {
    let words = |network: IpNet, length: u8, min: String, max: String| {
        format!("a /{length} of {network} from {min} to {max}")
    };
    let v4 = config.ipv4.map(|range| {
        let bounds = (range.min.to_string(), range.max.to_string());
        words(range.network.into(), range.subnet_len, bounds.0, bounds.1)
    });
    let v6 = config.ipv6.map(|range| {
        let bounds = (range.min.to_string(), range.max.to_string());
        words(range.network.into(), range.subnet_len, bounds.0, bounds.1)
    });
    let both: Vec<_> = v4.into_iter().chain(v6).collect();
    both.join(", together with ")
}
