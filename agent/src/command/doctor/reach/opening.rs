//! How a host lets packets of the overlay in: that depends on what keeps its packet filter.

use crate::host::firewall;

/// Where ufw says whether it is on (ufw(8), FILES).
const UFW: &str = "/etc/ufw/ufw.conf";

/// What keeps the packet filter of a host, so that rules of others are lost or do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keeper {
    Firewalld,
    Ufw,
    /// Rules of the administrator's own, as in `/etc/nftables.conf`.
    Rules,
}

impl Keeper {
    pub(super) async fn of_this_host() -> Self {
        if firewall::has_firewalld().await {
            Self::Firewalld
        } else if is_on(&std::fs::read_to_string(UFW).unwrap_or_default()) {
            Self::Ufw
        } else {
            Self::Rules
        }
    }
}

/// Whether ufw is on, by the text of its file.
fn is_on(settings: &str) -> bool {
    let value = |line: &str| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "ENABLED")
            .then(|| value.trim().trim_matches('"').eq_ignore_ascii_case("yes"))
    };
    settings.lines().filter_map(value).next_back() == Some(true)
}

/// What has to come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carried {
    Udp(u16),
    /// IP protocol 4.
    Ipip,
}

impl Carried {
    /// As nftables matches it.
    pub(super) fn matched(self) -> String {
        match self {
            Self::Udp(port) => format!("udp dport {port}"),
            Self::Ipip => "meta l4proto 4".to_owned(),
        }
    }

    /// The command that lets it in, and does so after the next boot as well where something keeps the rules.
    pub(super) fn opened_by(self, keeper: Keeper) -> String {
        match (keeper, self) {
            (Keeper::Firewalld, Self::Udp(port)) => format!(
                "firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"
            ),
            (Keeper::Firewalld, Self::Ipip) => {
                "firewall-cmd --permanent --add-protocol=ipencap && firewall-cmd --reload".to_owned()
            }
            (Keeper::Ufw, Self::Udp(port)) => format!("ufw allow {port}/udp"),
            (Keeper::Ufw, Self::Ipip) => {
                "-A ufw-before-input -p 4 -j ACCEPT in /etc/ufw/before.rules, before COMMIT, and ufw reload".to_owned()
            }
            (Keeper::Rules, _) => {
                format!("nft insert rule inet filter input {} accept", self.matched())
            }
        }
    }

    /// The same for a host whose rule manager is unknown.
    pub(super) fn opened(self) -> String {
        format!(
            "{}; with firewalld: {}; with ufw: {}",
            self.opened_by(Keeper::Rules),
            self.opened_by(Keeper::Firewalld),
            self.opened_by(Keeper::Ufw)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ufw_is_on_if_its_file_says_so() {
        assert!(is_on("# /etc/ufw/ufw.conf\n\nENABLED=yes\nLOGLEVEL=low\n"));
        assert!(is_on("ENABLED=no\nENABLED=\"YES\"\n"));
        for off in [
            "",
            "ENABLED=no\n",
            "#ENABLED=yes\n",
            "ENABLED",
            "DISABLED=yes\n",
        ] {
            assert!(!is_on(off), "{off:?}");
        }
    }

    #[test]
    fn every_keeper_has_a_command_for_every_carrier() {
        assert_eq!(
            Carried::Udp(8472).opened_by(Keeper::Firewalld),
            "firewall-cmd --permanent --add-port=8472/udp && firewall-cmd --reload"
        );
        assert_eq!(
            Carried::Udp(51820).opened_by(Keeper::Ufw),
            "ufw allow 51820/udp"
        );
        assert_eq!(
            Carried::Ipip.opened_by(Keeper::Rules),
            "nft insert rule inet filter input meta l4proto 4 accept"
        );
        for carried in [Carried::Udp(8285), Carried::Ipip] {
            let all = carried.opened();
            for keeper in [Keeper::Firewalld, Keeper::Ufw, Keeper::Rules] {
                assert!(all.contains(&carried.opened_by(keeper)), "{all}");
            }
        }
    }
}
