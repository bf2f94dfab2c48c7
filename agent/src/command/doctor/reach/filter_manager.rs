//! How to accept the overlay's packets on a host: that depends on the program that manages its packet filter.

use crate::host::firewall;

/// Where ufw says whether it is on (ufw(8), FILES).
const UFW: &str = "/etc/ufw/ufw.conf";

/// The program that manages the packet filter of a host, so that other rules are lost or have no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FilterManager {
    Firewalld,
    Ufw,
    /// None: the administrator's own rules, as in `/etc/nftables.conf`.
    Rules,
}

impl FilterManager {
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

/// The packets to accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Encapsulation {
    Udp(u16),
    /// IP protocol 4.
    Ipip,
}

impl Encapsulation {
    /// The match in nftables' syntax.
    pub(super) fn nft_match(self) -> String {
        match self {
            Self::Udp(port) => format!("udp dport {port}"),
            Self::Ipip => "meta l4proto 4".to_owned(),
        }
    }

    /// The command that accepts them, also after the next boot if a program manages the rules.
    pub(super) fn accept_command(self, manager: FilterManager) -> String {
        match (manager, self) {
            (FilterManager::Firewalld, Self::Udp(port)) => format!(
                "firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"
            ),
            (FilterManager::Firewalld, Self::Ipip) => {
                "firewall-cmd --permanent --add-protocol=ipencap && firewall-cmd --reload".to_owned()
            }
            (FilterManager::Ufw, Self::Udp(port)) => format!("ufw allow {port}/udp"),
            (FilterManager::Ufw, Self::Ipip) => {
                "-A ufw-before-input -p 4 -j ACCEPT in /etc/ufw/before.rules, before COMMIT, and ufw reload".to_owned()
            }
            (FilterManager::Rules, _) => {
                format!("nft insert rule inet filter input {} accept", self.nft_match())
            }
        }
    }

    /// The same for a host whose rule manager is unknown.
    pub(super) fn accept_commands(self) -> String {
        format!(
            "{}; with firewalld: {}; with ufw: {}",
            self.accept_command(FilterManager::Rules),
            self.accept_command(FilterManager::Firewalld),
            self.accept_command(FilterManager::Ufw)
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
    fn every_filter_manager_has_a_command_for_every_encapsulation() {
        assert_eq!(
            Encapsulation::Udp(8472).accept_command(FilterManager::Firewalld),
            "firewall-cmd --permanent --add-port=8472/udp && firewall-cmd --reload"
        );
        assert_eq!(
            Encapsulation::Udp(51820).accept_command(FilterManager::Ufw),
            "ufw allow 51820/udp"
        );
        assert_eq!(
            Encapsulation::Ipip.accept_command(FilterManager::Rules),
            "nft insert rule inet filter input meta l4proto 4 accept"
        );
        for carried in [Encapsulation::Udp(8285), Encapsulation::Ipip] {
            let all = carried.accept_commands();
            for manager in [
                FilterManager::Firewalld,
                FilterManager::Ufw,
                FilterManager::Rules,
            ] {
                assert!(all.contains(&carried.accept_command(manager)), "{all}");
            }
        }
    }
}
