//! Rules in nftables, by netlink: the agent needs neither `nft` nor any other program for them.
//!
//! One transaction replaces the whole table, so packets see either the old or the new rules. It rests on the generation
//! that the decision was made on: if another program changed the ruleset meanwhile, the kernel refuses, and we look
//! again. The rules have the meaning of flannel's iptables rules, not of its nftables rules, whose fourth one mixes up
//! the two networks.

use std::collections::BTreeMap;

use ipnet::IpNet;
use nix::errno::Errno;

use super::Rules;
use super::program::Error;
use crate::base::net::Family;
use crate::base::network_name::{NetworkName, suffixed};
use crate::host::netlink::netfilter::{Change, Netfilter, Object, TABLE_NAME, TableFamily};
use crate::host::netlink::{Attributes, KernelError};

mod expression;
mod listing;
mod ruleset;

use listing::Listing;
use ruleset::Table;

/// The default network's table. A named network's table has its name as a suffix.
const TABLE: &str = "selvage";

/// The family of our table: one serves IPv4 and IPv6.
pub(super) const TABLE_FAMILY: TableFamily = TableFamily::Inet;

/// How often to look again when other programs change the ruleset between a look and a change. After that, the change is
/// made whatever they do.
const ATTEMPTS: usize = 5;

/// The name of a network's table.
pub(super) fn table_of(network: Option<&NetworkName>) -> String {
    suffixed(TABLE, network)
}

/// The table of that IP version that flannel creates if its network config says `EnableNFTables`.
fn flannels_table(ip: Family) -> &'static str {
    match ip {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// A table's family and name.
type Name = (TableFamily, String);

/// The tables of both IP versions, as of a generation of the ruleset.
pub(super) struct Tables {
    generation: Option<u32>,
    /// `None` if they could not be listed, or need not be.
    tables: Option<BTreeMap<Name, Attributes>>,
}

impl Tables {
    /// Nothing is known of the tables: they need not be listed, or the kernel has none, or none for us. Programs of
    /// iptables may see more.
    pub(super) fn unknown() -> Self {
        Self {
            generation: None,
            tables: None,
        }
    }

    fn get(&self, family: TableFamily, name: &str) -> Option<&Attributes> {
        self.tables.as_ref()?.get(&(family, name.to_owned()))
    }

    pub(super) fn has(&self, family: TableFamily, name: &str) -> bool {
        self.get(family, name).is_some()
    }

    /// Whether the table may exist, as far as we know.
    pub(super) fn may_have(&self, family: TableFamily, name: &str) -> bool {
        self.tables.is_none() || self.has(family, name)
    }

    /// Whether Docker makes nftables rules of its own.
    fn have_docker(&self) -> bool {
        let has = |ip| self.has(TableFamily::from(ip), "docker-bridges");
        Family::BOTH.into_iter().any(has)
    }
}

/// The table that we wrote last.
struct Written {
    table: Table,
    /// The ruleset's generation when that was the last change.
    generation: u32,
    /// How the kernel lists it, if not in the words that we sent.
    spelling: Option<Listing>,
}

/// Our table in the network namespace of the caller.
pub(super) struct Nftables {
    netfilter: Netfilter,
    /// The network whose table this is.
    network: Option<NetworkName>,
    /// The table's name.
    table: String,
    written: Option<Written>,
}

impl Nftables {
    /// Starts without state for the table of that network.
    pub(super) fn new(network: Option<&NetworkName>) -> Self {
        Self {
            netfilter: Netfilter::default(),
            network: network.cloned(),
            table: table_of(network),
            written: None,
        }
    }

    /// The generation of the ruleset; `None` if it cannot be read.
    pub(super) async fn generation(&mut self) -> Option<u32> {
        self.netfilter.generation().await.ok().flatten()
    }

    /// Lists the tables.
    ///
    /// # Errors
    /// [`Error::NoNftables`] if the kernel has no nf_tables.
    pub(super) async fn tables(&mut self) -> Result<Tables, Error> {
        let generation = self.netfilter.generation().await.map_err(unread)?;
        let listed = self.netfilter.tables().await.map_err(unread)?;
        let name = |(family, table): (u8, Attributes)| {
            let name = table.get(TABLE_NAME)?.strip_suffix(b"\0")?;
            let name = String::from_utf8(name.to_vec()).ok()?;
            Some(((TableFamily::of_number(family)?, name), table))
        };
        let listed = listed.ok_or(Error::NoNftables)?;
        Ok(Tables {
            generation,
            tables: Some(listed.into_iter().filter_map(name).collect()),
        })
    }

    /// Tables of the agent or of flannel that should not exist in this mode. Only the default network removes
    /// flannel's: they may belong to any network.
    pub(super) fn stale(&self, tables: &Tables, ours_is_in_use: bool) -> Vec<Name> {
        let ours = (!ours_is_in_use).then(|| (TABLE_FAMILY, self.table.clone()));
        let flannels = Family::BOTH.map(|ip| (ip.into(), flannels_table(ip).to_owned()));
        let flannels = flannels.into_iter().filter(|_| self.network.is_none());
        let stale = ours.into_iter().chain(flannels);
        stale
            .filter(|(family, name)| tables.has(*family, name))
            .collect()
    }

    /// Changes the table to `rules` if it differs; returns whether anything changed. Lists `tables` again if the
    /// ruleset has changed since.
    pub(super) async fn ensure(
        &mut self,
        rules: &Rules,
        tables: &mut Tables,
    ) -> Result<bool, Error> {
        for _ in 1..ATTEMPTS {
            match self.try_ensure(rules, tables).await {
                Err(Error::Kernel { source, .. }) if source.errno == Errno::ERESTART => {
                    *tables = self.tables().await?;
                }
                done => return done,
            }
        }
        tables.generation = None;
        self.try_ensure(rules, tables).await
    }

    async fn try_ensure(&mut self, rules: &Rules, tables: &Tables) -> Result<bool, Error> {
        let listed = tables.get(TABLE_FAMILY, &self.table);
        let Some(table) = Table::ours(&self.table, rules, tables.have_docker()) else {
            let ours = listed.map(|_| (TABLE_FAMILY, self.table.clone()));
            return self.remove(ours.as_slice()).await;
        };
        if let Some(listed) = listed {
            let listing = self.list(listed.clone()).await?;
            if self.is_in_place(&table, listing, tables.generation) {
                return Ok(false);
            }
        }
        // Starting the agent waits for this, and the kernel needs half the time if nothing has to be removed.
        let mut changes = match listed.is_none() && tables.generation.is_some() {
            true => Vec::new(),
            false => removal(TABLE_FAMILY, &self.table),
        };
        changes.extend(table.create());
        let action = "replace the agent's table";
        commit(&mut self.netfilter, action, changes, tables.generation).await?;
        self.written = tables.generation.map(|generation| Written {
            table,
            // 0 is left out.
            generation: generation.wrapping_add(1).max(1),
            spelling: None,
        });
        Ok(true)
    }

    /// Reads all that is in our table, of which `table` was listed already.
    async fn list(&mut self, table: Attributes) -> Result<Listing, Error> {
        let (netfilter, family, name) = (&mut self.netfilter, TABLE_FAMILY, &self.table);
        let chains = netfilter.contents(Object::Chain, family, name).await;
        let chains = chains.map_err(unread)?;
        let rules = netfilter.contents(Object::Rule, family, name).await;
        Ok(Listing {
            table,
            chains,
            rules: rules.map_err(unread)?,
        })
    }

    /// Whether the kernel has the table as we want it.
    ///
    /// If it lists a table in other words than we sent, and nobody has changed anything since, then those are its words
    /// for it: writing it again would change nothing, forever.
    fn is_in_place(&mut self, table: &Table, listing: Listing, generation: Option<u32>) -> bool {
        if listing.shows(table) {
            return true;
        }
        let Some(written) = self.written.as_mut().filter(|last| last.table == *table) else {
            return false;
        };
        if Some(written.generation) == generation {
            tracing::debug!(
                table = table.name,
                "the kernel lists the table in other words"
            );
            written.spelling = Some(listing);
            return true;
        }
        written.spelling.as_ref() == Some(&listing)
    }

    /// Removes tables in one transaction; returns whether there were any.
    pub(super) async fn remove(&mut self, tables: &[Name]) -> Result<bool, Error> {
        if tables.is_empty() {
            return Ok(false);
        }
        let removal = |(family, name): &Name| removal(*family, name);
        let changes = tables.iter().flat_map(removal).collect();
        commit(&mut self.netfilter, "remove tables", changes, None).await?;
        Ok(true)
    }

    /// The source networks whose packets another program's table sends to a chain of its own, and the names of those
    /// chains.
    pub(super) async fn branches(
        &mut self,
        family: TableFamily,
        table: &str,
    ) -> Result<Vec<(IpNet, String)>, Error> {
        let rules = self.netfilter.contents(Object::Rule, family, table).await;
        let rules = rules.map_err(unread)?;
        Ok(rules.iter().filter_map(listing::branch).collect())
    }
}

/// Moves the default network's rules from our table to flannel's tables, if our table exists. The rules are the same, so
/// packets see no difference. But a flannel that starts after us replaces its own tables, while it knows nothing of
/// ours.
pub(super) async fn hand_over(rules: &Rules) -> Result<(), Error> {
    let mut nftables = Nftables::new(None);
    let tables = match nftables.tables().await {
        Err(Error::NoNftables) => return Ok(()),
        tables => tables?,
    };
    if !tables.has(TABLE_FAMILY, TABLE) {
        return Ok(());
    }
    let mut changes = Vec::new();
    for table in Table::flannels(rules, tables.have_docker()) {
        changes.extend(removal(table.family, &table.name));
        changes.extend(table.create());
    }
    changes.extend(removal(TABLE_FAMILY, TABLE));
    let action = "move the agent's rules to flannel's tables";
    commit(&mut nftables.netfilter, action, changes, None).await
}

/// Whether there is a table of that name in the family `inet`. Needs root.
pub(super) async fn exists(table: &str) -> Result<bool, Error> {
    match Nftables::new(None).tables().await {
        Err(Error::NoNftables) => Ok(false),
        tables => Ok(tables?.has(TABLE_FAMILY, table)),
    }
}

/// Removes a table, whether it exists or not.
fn removal(family: TableFamily, name: &str) -> Vec<Change> {
    let mut attributes = Attributes::default();
    attributes.put_text(TABLE_NAME, name);
    vec![
        Change::add(Object::Table, family, attributes),
        Change::delete_table(family, name),
    ]
}

fn unread(source: KernelError) -> Error {
    let action = "read nftables";
    Error::Netlink { action, source }
}

/// Makes changes in one transaction.
async fn commit(
    netfilter: &mut Netfilter,
    action: &'static str,
    changes: Vec<Change>,
    generation: Option<u32>,
) -> Result<(), Error> {
    let done = netfilter.commit(changes, generation).await;
    let done = done.map_err(|source| Error::Netlink { action, source })?;
    done.map_err(|source| Error::Kernel { action, source })
}

#[cfg(test)]
mod tests;
