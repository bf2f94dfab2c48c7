//! Reads the rules without changing any, for commands that run while no agent does.

use super::Mode;
use super::program::{self, Error};
use super::{iptables, nftables};
use crate::base::network_name::NetworkName;

/// The mode in which a network's rules are in place now; `None` if there are none of ours. Needs root.
///
/// # Errors
/// The rules cannot be read.
pub(crate) async fn current_mode(network: Option<&NetworkName>) -> Result<Option<Mode>, Error> {
    if nftables::exists(&nftables::table_of(network)).await? {
        return Ok(Some(Mode::Nftables));
    }
    // iptables-save prints the rules of its own variant, the one that plain `iptables` changes.
    let Some(save) = program::find("iptables-save") else {
        return Ok(None);
    };
    let output = program::run(save, &[], "").await?;
    let rules = program::printed("iptables-save", "list the rules", &output)?;
    let declared: Vec<_> = rules
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .collect();
    let ours = iptables::chain_names(network)
        .iter()
        .any(|chain| declared.contains(&chain.as_str()));
    Ok(ours.then_some(Mode::Iptables))
}
