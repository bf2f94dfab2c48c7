//! What Docker's packet filter drops of the overlay's traffic, and which options `dockerd` needs.
//!
//! | Docker | what it drops | what opens it |
//! |---|---|---|
//! | ≥ 1.13 | all forwarding, by the policy of iptables' `FORWARD`, where Docker switched forwarding on | a jump to `FLANNEL-FWD` |
//! | ≥ 28.0 | to ports that are not published, in filter `DOCKER` (moby/moby#48724) | the same, before `DOCKER-FORWARD` |
//! | ≥ 28.0 | to containers by any interface but their bridge, in raw `PREROUTING` (moby/moby#49325, #49829) | `SELVAGE-RAW` before it |
//! | ≥ 29.0 with `--firewall-backend=nftables` | the same, in base chains of its own tables, which no rule of others can overrule | the options of [`options`] and our mark |
//!
//! With iptables Docker needs no option and gets none: `--allow-direct-routing` (28.2) would open the published ports
//! of every network on every interface, while the agent's rule opens only this subnet, and only to the overlay.

use std::fmt;

/// The bit of the packet mark that means "accept" between our nftables table and Docker's. It is set only during
/// forwarding, after routing, and collides neither with kube-proxy (0x4000, 0x8000), Tailscale (0xff0000) nor Calico's
/// default (0xffff0000).
pub const MARK: u32 = 0x1000;

/// A version of `dockerd`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Reads what `dockerd --version` prints, such as `Docker version 28.0.4, build b8034c0`; also the bare number.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text
            .split([' ', ','])
            .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
        let mut parts = number.split(['.', '-', '+', '~']);
        Some(Self {
            major: parts.next()?.parse().ok()?,
            minor: parts.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// How Docker makes its rules: its option `--firewall-backend`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Backend {
    /// The only one before Docker 29, and its default.
    #[default]
    Iptables,
    /// Docker's own nftables tables.
    Nftables,
}

/// The options that this `dockerd` needs to accept overlay packets to its containers; mostly none.
pub fn options(version: Version, backend: Backend) -> Vec<String> {
    match backend {
        Backend::Nftables if version.major >= 29 => vec![
            "--allow-direct-routing".to_owned(),
            format!("--bridge-accept-fwmark={MARK:#x}/{MARK:#x}"),
        ],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_dockerd_prints() {
        for (text, expected) in [
            ("Docker version 28.0.4, build b8034c0", Some((28, 0))),
            (
                "Docker version 20.10.24+dfsg1, build 297e128",
                Some((20, 10)),
            ),
            ("29.1.0-rc.1", Some((29, 1))),
            ("Docker version dev, build unknown", None),
            ("28", None),
            ("", None),
        ] {
            let version = Version::parse(text);
            assert_eq!(version.map(|v| (v.major, v.minor)), expected, "{text}");
        }
    }

    #[test]
    fn only_dockers_own_nftables_needs_options() {
        let options = |text: &str, backend| options(Version::parse(text).unwrap(), backend);
        for version in ["20.10", "26.1", "28.0", "28.2", "29.0"] {
            assert!(options(version, Backend::Iptables).is_empty(), "{version}");
        }
        assert!(options("28.4", Backend::Nftables).is_empty());
        assert_eq!(
            options("29.0", Backend::Nftables),
            [
                "--allow-direct-routing",
                "--bridge-accept-fwmark=0x1000/0x1000"
            ]
        );
    }
}
