//! The firewall backend: nftables or iptables.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The setting `firewall.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum FirewallMode {
    /// Like flannel: nftables if the network config sets `EnableNFTables`, else iptables, where operators, Docker and
    /// kube-proxy expect the rules. If the kernel lacks the one or the programs for the other are missing, the other
    /// backend.
    #[default]
    Auto,
    /// One nftables table of our own, written by netlink.
    Nftables,
    /// flannel's chains, written with `iptables-save` and `iptables-restore` of the installed variant.
    Iptables,
}

impl FirewallMode {
    /// The modes' names, for messages.
    pub const NAMES: &str = "auto, nftables or iptables";

    /// The mode to use: never [`FirewallMode::Auto`].
    ///
    /// `prefer_nftables` is the network config's `EnableNFTables`, `has_nftables` says whether the kernel has them, and
    /// `has_iptables` whether the programs of iptables are installed. That is only asked where it decides.
    pub(crate) async fn choose(
        self,
        prefer_nftables: bool,
        has_nftables: bool,
        has_iptables: impl Future<Output = bool>,
    ) -> Self {
        match self {
            Self::Auto if prefer_nftables && has_nftables => Self::Nftables,
            Self::Auto if has_iptables.await => Self::Iptables,
            Self::Auto => Self::Nftables,
            chosen => chosen,
        }
    }
}

impl fmt::Display for FirewallMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// The text is not a mode.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a firewall mode: expected {names}", names = FirewallMode::NAMES)]
pub struct ParseModeError(String);

impl FromStr for FirewallMode {
    type Err = ParseModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            _ => Err(ParseModeError(text.chars().take(64).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn text_and_mode_are_the_same_both_ways() {
        for mode in [
            FirewallMode::Auto,
            FirewallMode::Nftables,
            FirewallMode::Iptables,
        ] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "nft".parse::<FirewallMode>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"nft\" is not a firewall mode: expected auto, nftables or iptables"
        );
    }

    #[tokio::test]
    async fn auto_is_flannels_choice_where_that_is_there() {
        let table = [
            // EnableNFTables, nftables, iptables
            (false, true, true, FirewallMode::Iptables),
            (true, true, true, FirewallMode::Nftables),
            (false, true, false, FirewallMode::Nftables),
            (true, false, true, FirewallMode::Iptables),
            (false, false, false, FirewallMode::Nftables),
        ];
        for (prefer, nftables, iptables, expected) in table {
            let chosen = FirewallMode::Auto.choose(prefer, nftables, ready(iptables));
            assert_eq!(chosen.await, expected);
            let iptables = FirewallMode::Iptables.choose(prefer, nftables, ready(iptables));
            assert_eq!(
                iptables.await,
                FirewallMode::Iptables,
                "what was asked for is not guessed about"
            );
        }
        let unasked = FirewallMode::Auto.choose(true, true, pending());
        assert_eq!(unasked.await, FirewallMode::Nftables);
    }
}
