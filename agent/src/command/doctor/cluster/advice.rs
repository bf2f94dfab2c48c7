//! Remedies for the agent's causes, by code.

use crate::command::doctor::Names;
use crate::settings::Settings;
use crate::telemetry::status::{Cause, Code};

mod kubernetes;

/// The effect of a cause, and its remedies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Advice {
    /// Its effect on the overlay, and how it occurs.
    pub(super) why: String,
    /// The remedies, the best first.
    pub(super) remedy: Vec<String>,
}

impl Advice {
    /// An advice from both texts.
    pub(super) fn new<const N: usize>(why: &str, remedy: [String; N]) -> Self {
        Self {
            why: why.to_owned(),
            remedy: remedy.to_vec(),
        }
    }
}

/// The advice for a cause.
pub(super) fn advise(cause: &Cause, settings: &Settings, names: &Names) -> Advice {
    if let Some(advice) = kubernetes::advise(cause.code, &settings.kubernetes) {
        return advice;
    }
    let prefix = &settings.etcd.prefix;
    let journal = names.journal();
    match cause.code {
        Code::NoNetworkConfig => Advice::new(
            "the network config defines the overlay's addresses and its backend; without it no node can acquire a subnet",
            [
                format!(
                    "write the network config that all nodes share: echo '{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}' | {} (its key is {prefix}/config)",
                    names.selvage("network set")
                ),
                "if another tool wrote it under another key prefix: set etcd.prefix to that prefix on every node".into(),
            ],
        ),
        Code::BadNetworkConfig | Code::NetworkConfigChanged => network_config(names),
        Code::SubnetOutsideNetwork => Advice::new(
            "this node keeps its subnet, which other nodes may refuse because it is outside the new network; with another subnet its containers must be restarted",
            [
                format!(
                    "move this node when its containers can be restarted: {} (on the image, selvage-docker.service then restarts Docker; elsewhere: systemctl restart docker)",
                    names.systemctl("restart")
                ),
                format!(
                    "or write a network config that includes this node's subnet: {} FILE",
                    names.selvage("network set")
                ),
            ],
        ),
        Code::IkeDaemon => ike_daemon(settings, names),
        Code::OutOfSubnets => full(names),
        Code::LostRaces => Advice::new(
            "many nodes are acquiring subnets, and others were faster every time; the agent retries",
            [format!(
                "wait a minute; if it persists, see what writes there: etcdctl watch --prefix {prefix}/subnets"
            )],
        ),
        Code::NoUnderlay => underlay(names),
        Code::Firewall => Advice::new(
            "some of the rules that accept and masquerade container traffic are missing: packets may be dropped, or leave with a source address that gets no replies",
            [
                format!(
                    "list the rules: nft list ruleset, or iptables-save; see the full error: {journal}"
                ),
                "if the kernel lacks nf_tables: set firewall.mode = \"iptables\"; if it lacks iptables: \"nftables\"".into(),
            ],
        ),
        Code::SubnetFile => {
            let file = settings.files.subnet_file.display();
            Advice::new(
                "container runtimes read their subnet from this file; Docker does not start without it",
                [format!(
                    "check the owner and the free space: ls -ld {file}; df {file}"
                )],
            )
        }
        Code::OtherAgent => Advice::new(
            "another agent on this host uses the network, the device or the addresses that this one needs; while it waits, this one changes nothing",
            [
                "give each network its own VNI, device and addresses: agent/docs/networks.md lists what networks cannot share".into(),
                "or stop the other agent; to find it: systemctl list-units 'selvage*' 'flanneld*'".into(),
            ],
        ),
        Code::BehindNat
        | Code::UnderlayMtu
        | Code::BackendCommand
        | Code::BackendIdentity
        | Code::Privileges => Advice::new(
            "this host cannot run the backend of the network config",
            [ format!("see the full error: {journal}"),
                format!(
                    "see the backend that all nodes share: {}",
                    names.selvage("network get")
                ),
            ],
        ),
        Code::StoreUnreachable
        | Code::StoreTls
        | Code::StoreLogin
        | Code::StoreRefused
        | Code::LeaseNotEncoded => store(cause.code, settings, names),
        Code::LeaseLost => Advice::new(
            WITHOUT_LEASE,
            [
                "run the doctor again in a moment: the agent is acquiring a lease".into(),
                format!("{journal} -n 50"),
            ],
        ),
        Code::Unknown => Advice::new(
            "the running agent is of another version and gives a reason that this command does not know; the kernel state stays in place",
            [ format!("see what happened: {journal} -b"),
                format!(
                    "after an update, restart the old agent: {}, which loses no packets",
                    names.systemctl("restart")
                ),
            ],
        ),
        _ => Advice::new(
            "the agent retries with increasing delays; the kernel state stays in place", [format!("see what happened: {journal} -b")],
        ),
    }
}

/// Where leases are kept: etcd servers or lease servers.
pub(super) fn servers(settings: &Settings) -> &[String] {
    match settings.remote.servers.as_slice() {
        [] => &settings.etcd.endpoints,
        servers => servers,
    }
}

/// The effect of an unavailable lease store.
const WITHOUT_STORE: &str = "without the lease store this node learns of no new peers and cannot renew its lease; the kernel state stays in place";
/// The effect of a lost lease.
pub(super) const WITHOUT_LEASE: &str = "another node may get the subnet, and peers remove this one; the data plane stays in place until the agent has a lease again";

/// The lease store does not answer, or refuses.
pub(super) fn store(code: Code, settings: &Settings, names: &Names) -> Advice {
    let etcd = &settings.etcd;
    let is_remote = !settings.remote.servers.is_empty();
    let section = if is_remote { "remote" } else { "etcd" };
    let first = servers(settings).first().map_or("", String::as_str);
    match code {
        Code::StoreTls => Advice::new(
            WITHOUT_STORE,
            [
                format!(
                    "see the server's certificate: openssl s_client -connect {} </dev/null | openssl x509 -noout -dates -issuer -ext subjectAltName",
                    first.rsplit("://").next().unwrap_or_default()
                ),
                format!(
                    "check it against {section}.cafile, and {section}.certfile against the authorities that the server trusts; new files need no restart"
                ),
                "check this host's clock: timedatectl".into(),
            ],
        ),
        Code::StoreLogin => Advice::new(
            WITHOUT_STORE,
            [
                format!(
                    "set etcd.username and etcd.password-file to a user that etcd knows; then {}, which reads the password again",
                    names.systemctl("reload")
                ),
                format!(
                    "grant the user access to the key prefix: etcdctl role grant-permission ROLE readwrite {}/ --prefix",
                    etcd.prefix
                ),
            ],
        ),
        _ if is_remote => Advice::new(
            WITHOUT_STORE,
            [
                format!(
                    "check that this host reaches the server: curl -s {first}/v1/{}/config",
                    settings.remote.network
                ),
                "on the server: systemctl status selvage-server shows whether it reaches etcd; remote.listen is the address that it listens on".into(),
                "if the servers moved: set remote.server on this node".into(),
            ],
        ),
        _ => Advice::new(
            WITHOUT_STORE,
            [
                format!("check that this host reaches the server: curl -s {first}/health"),
                format!(
                    "check the servers: etcdctl --endpoints={} endpoint health",
                    etcd.endpoints.join(",")
                ),
                "on the server: systemctl status etcd; check that it listens on an address that this host reaches (--listen-client-urls)".into(),
                "if the servers moved: set etcd.endpoints on this node".into(),
            ],
        ),
    }
}

/// The network config cannot be used.
fn network_config(names: &Names) -> Advice {
    Advice::new(
        "running nodes keep their network config, but no node can join with the new one, and neither can this node after a restart",
        [
            format!("read it: {}", names.selvage("network get")),
            format!(
                "write a valid one: {} FILE, which checks it first",
                names.selvage("network set")
            ),
        ],
    )
}

/// No free subnet is left.
pub(super) fn full(names: &Names) -> Advice {
    Advice::new(
        "every node needs its own subnet, and the network has a fixed number of them",
        [
            format!(
                "list the nodes and the remaining lease times: {}",
                names.selvage("network leases")
            ),
            format!(
                "free the subnets of decommissioned nodes: {} on the node, or {} SUBNET for a reservation",
                names.selvage_with_state("leave"),
                names.selvage("network unreserve")
            ),
            format!(
                "enlarge Network (or widen SubnetMin and SubnetMax) with {}; nodes keep subnets that still fit",
                names.selvage("network set")
            ),
        ],
    )
}

/// No IKE daemon that does as it is told.
fn ike_daemon(settings: &Settings, names: &Names) -> Advice {
    Advice::new(
        "strongSwan's charon negotiates the keys of IPsec; tunnels that exist stay up until their keys expire, within an hour, and no new one is made",
        [
            "see whether it runs, and what it says: systemctl status selvage-charon; journalctl --unit selvage-charon"
                .into(),
            "if it is not installed: selvage sysext add ipsec in the image, elsewhere apt install charon-systemd strongswan-swanctl libstrongswan-standard-plugins; then systemctl start selvage-charon"
                .into(),
            format!(
                "if another charon holds UDP port 500 (ss -lunp sport = :500), stop it, or let the agent use its VICI socket: ipsec.vici in {}, now {}",
                names.settings_file,
                settings.ipsec.vici.display()
            ),
            "if it refuses an algorithm, choose another ESPProposal for the network".into(),
        ],
    )
}

/// No interface or address to send from.
fn underlay(names: &Names) -> Advice {
    Advice::new(
        "the overlay needs an underlay interface on this host, and none qualifies",
        [
            "list the interfaces: ip -brief address; ip route".into(),
            format!(
                "to choose another interface: underlay.interfaces = [\"eth1\"] in {} (--iface), or underlay.can-reach",
                names.settings_file
            ),
            "if the interface is not up yet, the agent continues when it is: networkctl status"
                .into(),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::lease::allocate::Exhausted;
    use crate::cluster::lease::{Fault, StoreError};
    use crate::command::doctor::names::tests::settings;
    use crate::telemetry::status::Coded;

    #[test]
    fn every_reason_of_the_store_has_its_remedy() {
        let settings = settings(&["--etcd-endpoints", "https://10.0.0.1:2379"]);
        let names = Names::of(&settings);
        let unreachable = |fault| StoreError::Unreachable {
            attempts: "etcd at https://10.0.0.1:2379: no".to_owned(),
            fault,
        };
        let refused = |reason: &str, code| StoreError::Refused {
            server: "etcd at https://10.0.0.1:2379".to_owned(),
            reason: reason.to_owned(),
            code,
        };
        for (error, word) in [
            (
                unreachable(Fault::Other),
                "curl -s https://10.0.0.1:2379/health",
            ),
            (
                unreachable(Fault::Tls),
                "openssl s_client -connect 10.0.0.1:2379",
            ),
            (
                refused("etcdserver: permission denied", 7),
                "etcdctl role grant-permission",
            ),
            (
                refused(
                    "etcdserver: authentication failed, invalid user ID or password",
                    3,
                ),
                "etcd.password-file",
            ),
            (
                StoreError::NoNetworkConfig {
                    key: "/coreos.com/network/config".to_owned(),
                },
                "selvage network set",
            ),
            (
                StoreError::OutOfSubnets(Exhausted {
                    holds: None,
                    network: "10.5.0.0/16".parse().unwrap(),
                    subnet_len: 24,
                }),
                "selvage network unreserve",
            ),
            (StoreError::LostRaces { attempts: 10 }, "etcdctl watch"),
        ] {
            let cause = error.to_cause();
            let advice = advise(&cause, &settings, &names);
            let has = |remedy: &String| remedy.contains(word);
            assert!(advice.remedy.iter().any(has), "{cause:?}: {advice:?}");
        }
    }

    #[test]
    fn every_code_has_advice_that_names_this_network_alone() {
        let settings = settings(&["--network", "blue"]);
        let names = Names::of(&settings);
        for code in Code::ALL.iter().chain([&Code::Unknown]) {
            let advice = advise(&Cause::new(*code, "x"), &settings, &names);
            assert!(!advice.why.is_empty() && !advice.remedy.is_empty());
            super::super::tests::assert_about_blue(&advice.remedy);
        }
    }
}
