//! Rules in nftables, written with the `nft` program.
//!
//! Every version of nft reads text with `nft -f -` (JSON support is a build option). One call is one transaction, so
//! packets see either the old or the new rules. The rules have the meaning of flannel's iptables rules, not of its
//! nftables rules, whose fourth one mixes up the two networks.

use std::collections::BTreeSet;

use super::Rules;
use super::docker;
use super::program::{self, Error};
use crate::base::network_name::{NetworkName, suffixed};

mod script;

use script::Script;

/// The default network's table. Its family is `inet`, so one table serves IPv4 and IPv6. A named network's table has
/// its name as a suffix.
const TABLE: &str = "selvage";

/// The name of a network's table.
pub(super) fn table_of(network: Option<&NetworkName>) -> String {
    suffixed(TABLE, network)
}

/// The tables that flannel creates if its network config says `EnableNFTables`.
const FLANNEL_TABLES: [&str; 2] = ["ip flannel-ipv4", "ip6 flannel-ipv6"];

/// The names of all tables, with their families, such as `inet selvage`.
pub(super) struct Tables(Option<BTreeSet<String>>);

impl Tables {
    /// The tables of a host without a usable `nft`.
    pub(super) fn unknown() -> Self {
        Self(None)
    }

    pub(super) fn has(&self, table: &str) -> bool {
        self.0.as_ref().is_some_and(|tables| tables.contains(table))
    }

    /// Whether the table may exist, as far as we know.
    pub(super) fn may_have(&self, table: &str) -> bool {
        self.0.as_ref().is_none_or(|tables| tables.contains(table))
    }
}

/// Reads the names of the tables.
pub(super) async fn tables() -> Result<Tables, Error> {
    let listing = nft("list the tables", &["list", "tables"], "").await?;
    let names = listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table "));
    Ok(Tables(Some(names.map(str::to_owned).collect())))
}

/// Our table in the network namespace of the caller.
pub(super) struct Nftables {
    /// The network whose table this is.
    network: Option<NetworkName>,
    /// The table's name.
    table: String,
    /// The text that the table was last seen to be made from, and how `nft` listed it then.
    seen: Option<(Script, String)>,
}

impl Nftables {
    /// Starts without state for the table of that network.
    pub(super) fn new(network: Option<&NetworkName>) -> Self {
        Self {
            network: network.cloned(),
            table: table_of(network),
            seen: None,
        }
    }

    /// Tables of the agent or of flannel that should not exist in this mode. Only the default network removes
    /// flannel's: they may belong to any network.
    pub(super) fn stale(&self, tables: &Tables, ours_is_in_use: bool) -> Vec<String> {
        let ours = (!ours_is_in_use).then(|| format!("inet {}", self.table));
        let flannels = match self.network {
            None => &FLANNEL_TABLES[..],
            Some(_) => &[],
        };
        let flannels = flannels.iter().map(|table| (*table).to_owned());
        let stale = ours.into_iter().chain(flannels);
        stale.filter(|table| tables.has(table)).collect()
    }

    /// Changes the table to `rules` if it differs; returns whether anything changed.
    ///
    /// Once the rules were seen in place, a later listing must be identical. Before that (the agent has restarted), the
    /// table's fingerprint and the number and order of its comments decide: versions of `nft` print the same rules
    /// differently, and an update of nft alone must not rewrite the rules.
    pub(super) async fn ensure(&mut self, rules: &Rules, tables: &Tables) -> Result<bool, Error> {
        let script = Script::new(&self.table, rules, has_docker(tables));
        let seen = self.seen.take();
        let full = format!("inet {}", self.table);
        let exists = tables.has(&full);
        if script.is_empty() {
            return match exists {
                true => remove(&[full]).await,
                false => Ok(false),
            };
        }
        if !exists {
            // Starting the agent waits for this, and the kernel needs half the time if nothing has to be removed.
            match transact("create the agent's table", &script.create()).await {
                // The table was created in the meantime.
                Err(Error::Refused { .. }) => {}
                done => return done.map(|()| true),
            }
        } else if let Some(listing) = listing("inet", &self.table).await? {
            let same = match seen {
                Some((seen, text)) if seen == script => text == listing,
                _ => script.matches(&listing),
            };
            if same {
                self.seen = Some((script, listing));
                return Ok(false);
            }
        }
        transact("replace the agent's table", &script.replace()).await?;
        Ok(true)
    }
}

/// Moves the default network's rules from our table to flannel's tables, if our table exists.
pub(super) async fn hand_over(rules: &Rules) -> Result<(), Error> {
    let tables = tables().await?;
    if !tables.has(&format!("inet {TABLE}")) {
        return Ok(());
    }
    let script = script::hand_over(TABLE, rules, has_docker(&tables));
    transact("move the agent's rules to flannel's tables", &script).await
}

/// Whether Docker makes nftables rules of its own.
fn has_docker(tables: &Tables) -> bool {
    tables.has("ip docker-bridges") || tables.has("ip6 docker-bridges")
}

/// Removes `tables` in one transaction; returns whether there were any.
pub(super) async fn remove(tables: &[String]) -> Result<bool, Error> {
    if tables.is_empty() {
        return Ok(false);
    }
    let script: String = tables.iter().map(|table| script::removal(table)).collect();
    transact("remove tables", &script).await?;
    Ok(true)
}

/// A table as `nft list table` prints it; `None` if it does not exist.
pub(super) async fn listing(family: &str, table: &str) -> Result<Option<String>, Error> {
    match nft("list a table", &["list", "table", family, table], "").await {
        // strerror(ENOENT), in the locale that `program::run()` sets.
        Err(Error::Refused { message, .. }) if message.contains("No such file or directory") => {
            Ok(None)
        }
        listing => listing.map(Some),
    }
}

/// Applies `script` as one transaction.
async fn transact(action: &'static str, script: &str) -> Result<(), Error> {
    nft(action, &["-f", "-"], script).await.map(drop)
}

async fn nft(action: &'static str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let program = program::find("nft").ok_or_else(|| Error::NoProgram {
        program: "nft".to_owned(),
        package: "nftables",
    })?;
    let output = program::run(program, arguments, input).await?;
    program::printed("nft", action, &output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_network_removes_its_own_table_alone() {
        let names = ["inet selvage", "inet selvage-blue", "ip flannel-ipv4"];
        let tables = Tables(Some(names.map(str::to_owned).into()));
        let blue = "blue".parse().unwrap();
        let green = "green".parse().unwrap();
        let stale = |network, in_use| Nftables::new(network).stale(&tables, in_use);
        assert_eq!(stale(None, true), ["ip flannel-ipv4"]);
        assert_eq!(stale(None, false), ["inet selvage", "ip flannel-ipv4"]);
        assert_eq!(stale(Some(&blue), true), [""; 0]);
        assert_eq!(stale(Some(&blue), false), ["inet selvage-blue"]);
        assert_eq!(stale(Some(&green), false), [""; 0]);
    }
}
