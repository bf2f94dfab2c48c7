//! Checks whether Docker's bridge is on this host's subnet, if dockerd uses the options that the agent writes.
//!
//! The options alone do not prove it. With live-restore a restarted dockerd leaves its networks unchanged while any
//! container runs (moby, `daemon/daemon_unix.go`, `initNetworkController`), so that containers stay on a subnet that
//! peers route elsewhere. A dockerd whose network comes from daemon.json or its defaults is not checked.

use std::fs;
use std::path::PathBuf;

use ipnet::IpNet;
use tracing::debug;

use crate::base::logging::chain;
use crate::cluster::lease::SubnetKey;
use crate::host::netlink::inventory;
use crate::telemetry::status::Docker;

/// The only bridge that these options apply to.
const BRIDGE: &str = "docker0";

/// dockerd's default PID file.
const PID_FILE: &str = "/run/docker.pid";

/// The options with a subnet, for IPv4 and IPv6.
const OPTIONS: [&str; 2] = ["--bip", "--fixed-cidr-v6"];

/// Checks the bridge. `own`: this host's subnets; `networks`: the overlay's. `None` if there is no bridge, or no
/// dockerd with a subnet of the overlay on its command line.
pub(crate) async fn check(own: SubnetKey, networks: &[IpNet]) -> Option<Docker> {
    let options = started_with(&command_line()?);
    if options.is_empty() {
        return None;
    }
    match inventory::addresses_of(BRIDGE).await {
        Ok(addresses) => judge(&options, addresses?, own, networks),
        Err(error) => {
            debug!("skipped the check of {BRIDGE}: {}", chain(&error));
            None
        }
    }
}

/// The command line of the running dockerd, which is world-readable.
fn command_line() -> Option<Vec<u8>> {
    let process = fs::read_to_string(PID_FILE).ok()?;
    let process = PathBuf::from("/proc").join(process.trim());
    // The PID file of a killed dockerd may name another process by now.
    let name = fs::read_to_string(process.join("comm")).ok()?;
    (name.trim() == "dockerd").then_some(())?;
    fs::read(process.join("cmdline")).ok()
}

/// An option and its subnet.
type BridgeOption = (&'static str, IpNet);

/// The options with a subnet. If one is given twice, dockerd uses the last.
fn started_with(command_line: &[u8]) -> Vec<BridgeOption> {
    let arguments: Vec<_> = command_line
        .split(|byte| *byte == 0)
        .filter_map(|argument| std::str::from_utf8(argument).ok())
        .collect();
    let last = |option: &'static str| {
        let mut values = arguments.iter().rev();
        let value = values.find_map(|argument| argument.strip_prefix(option)?.strip_prefix('='))?;
        Some((option, value.parse().ok()?))
    };
    OPTIONS.into_iter().filter_map(last).collect()
}

fn judge(
    options: &[BridgeOption],
    addresses: Vec<IpNet>,
    own: SubnetKey,
    networks: &[IpNet],
) -> Option<Docker> {
    let mut ours = Vec::new();
    let mut trouble = None;
    for (option, net) in options {
        let text = format!("{option}={net}");
        let on = || match &addresses[..] {
            [] => "has no address".to_owned(),
            some => format!("is on {}", listed(some)),
        };
        let why = if own.nets().any(|subnet| subnet.trunc() == net.trunc()) {
            let in_use = addresses
                .iter()
                .any(|address| address.trunc() == net.trunc());
            (!in_use).then(|| {
                format!(
                    "Docker was started with {text}, but its bridge {BRIDGE} {}: live-restore keeps it while containers run, \
                     and peers cannot reach them",
                    on()
                )
            })
        } else if networks.iter().any(|network| network.contains(&net.addr())) {
            Some(format!(
                "Docker still uses {text}, a former subnet of this node: peers cannot reach its containers until Docker \
                 is restarted"
            ))
        } else {
            continue;
        };
        ours.push(text);
        trouble = trouble.or(why);
    }
    (!ours.is_empty()).then(|| Docker {
        bridge: BRIDGE.to_owned(),
        options: ours,
        addresses,
        trouble,
    })
}

fn listed(nets: &[IpNet]) -> String {
    let texts: Vec<_> = nets.iter().map(IpNet::to_string).collect();
    texts.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10.5.9.0/24";
    const OWN_V6: &str = "fd00:5:0:9::/64";

    fn judge_line(command_line: &str, addresses: &[&str]) -> Option<Docker> {
        let own = SubnetKey::new(OWN.parse().ok(), OWN_V6.parse().ok());
        let networks = ["10.5.0.0/16", "fd00:5::/48"].map(|net| net.parse().unwrap());
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let command_line = command_line.replace(' ', "\0");
        judge(
            &started_with(command_line.as_bytes()),
            addresses,
            own,
            &networks,
        )
    }

    const NEW: &str =
        "dockerd -H fd:// --bip=10.5.9.1/24 --ip-masq=false --fixed-cidr-v6=fd00:5:0:9::/64";

    #[test]
    fn bridge_on_the_own_subnets_is_well() {
        let docker = judge_line(NEW, &["10.5.9.1/24", "fd00:5:0:9::1/64"]).unwrap();
        assert_eq!(docker.trouble, None);
        assert_eq!(
            docker.options,
            ["--bip=10.5.9.1/24", "--fixed-cidr-v6=fd00:5:0:9::/64"]
        );
    }

    #[test]
    fn what_somebody_else_chose_is_not_ours() {
        for line in [
            "dockerd",
            "dockerd --bip=192.168.9.1/24",
            "dockerd --bip=10.5.9.1/24 --bip=192.168.9.1/24",
            "dockerd --bip=nonsense",
            "dockerd --bip",
        ] {
            assert_eq!(judge_line(line, &["172.17.0.1/16"]), None, "{line}");
        }
    }

    #[test]
    fn bridge_that_does_not_follow_is_told() {
        let told = |line: &str, addresses: &[&str], words: &str| {
            let trouble = judge_line(line, addresses).unwrap().trouble;
            assert!(
                trouble.as_ref().is_some_and(|text| text.contains(words)),
                "{line}, {addresses:?}: {trouble:?}"
            );
        };
        let both = ["10.5.3.1/24", "fd00:5:0:9::1/64"];
        let words = "with --bip=10.5.9.1/24, but its bridge docker0 is on 10.5.3.1/24 and fd00:5:0:9::1/64: live-restore";
        told(NEW, &both, words);
        let v6 = ["10.5.9.1/24", "fd00:5:0:3::1/64"];
        told(NEW, &v6, "with --fixed-cidr-v6=fd00:5:0:9::/64, but");
        // Of another length, and without any.
        told(
            NEW,
            &["10.5.9.1/20", "fd00:5:0:9::1/64"],
            "is on 10.5.9.1/20 and",
        );
        told(NEW, &[], "docker0 has no address");
        let old = "dockerd --bip=10.5.3.1/24";
        told(old, &["10.5.3.1/24"], "a former subnet of this node");
    }
}
