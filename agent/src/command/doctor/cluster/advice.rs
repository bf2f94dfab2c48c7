//! Remedies for the agent's causes, by code.

use crate::command::doctor::Names;
use crate::settings::Settings;
use crate::telemetry::status::{Cause, Code};

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
    let prefix = &settings.etcd.prefix;
    let journal = names.journal();
    match cause.code {
        Code::NoNetworkConfig => Advice::new(
            "the cluster's network config says which addresses the overlay has and how packets travel; without it no node can take a subnet",
            [
                format!(
                    "write the network config that all nodes share: echo '{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}' | {} (it goes to {prefix}/config)",
                    names.selvage("network set")
                ),
                "if another tool wrote it below another key prefix: set etcd.prefix to that prefix on every node".into(),
            ],
        ),
        Code::BadNetworkConfig | Code::NetworkConfigChanged => network_config(names),
        Code::SubnetOutsideNetwork => Advice::new(
            "this node keeps its subnet, which the other nodes may not find in the new network; with another subnet its containers must be restarted",
            [
                format!(
                    "move this node when its containers can be restarted: {} (docker.service is restarted with the new subnet by the image's selvage-docker.service; else: systemctl restart docker)",
                    names.systemctl("restart")
                ),
                format!(
                    "or write a network config again that has room for this node's subnet: {} FILE",
                    names.selvage("network set")
                ),
            ],
        ),
        Code::OutOfSubnets => full(names),
        Code::LostRaces => Advice::new(
            "many nodes take a subnet at this moment, and others were faster every time; the agent keeps trying",
            [format!(
                "wait a minute; if it lasts, look for what writes there: etcdctl watch --prefix {prefix}/subnets"
            )],
        ),
        Code::NoUnderlay => underlay(names),
        Code::Firewall => Advice::new(
            "the rules that accept and masquerade the containers' packets are not all in place: some packets may be dropped, or leave with addresses that nobody answers to",
            [
                format!(
                    "see what the kernel says: nft list ruleset, or iptables-save; {journal} has the whole error"
                ),
                "if the kernel lacks nf_tables: set firewall.mode = \"iptables\", or the other way round".into(),
            ],
        ),
        Code::SubnetFile => {
            let file = settings.files.subnet_file.display();
            Advice::new(
                "container runtimes read their subnet from this file; Docker does not start without it",
                [format!(
                    "check the directory, its owner and its space: ls -ld {file}; df {file}"
                )],
            )
        }
        Code::OtherAgent => Advice::new(
            "another agent on this host has the network, the device or the addresses that this one needs; an agent that waits has touched nothing",
            [
                "give each network a VNI, a device and addresses of its own: agent/docs/networks.md says what two networks cannot share".into(),
                "or stop the other agent: systemctl list-units 'selvage*' 'flanneld*' shows which run".into(),
            ],
        ),
        Code::BehindNat
        | Code::UnderlayMtu
        | Code::BackendCommand
        | Code::BackendIdentity
        | Code::Privileges => Advice::new(
            "the backend that the network config asks for cannot be set up on this host",
            [
                format!("{journal} has the whole error"),
                format!(
                    "{} shows which backend all nodes share",
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
            "another node may be given the subnet, and peers forget this one; the data plane stays as it is until the agent has a lease again",
            [
                "run the doctor again in a moment: the agent is taking a lease".into(),
                format!("{journal} -n 50"),
            ],
        ),
        Code::Unknown => Advice::new(
            "the agent, of another version than this command, gives no reason that this command knows; what was set up before stays in place",
            [
                format!("{journal} -b shows what happened"),
                format!(
                    "after an update the old agent keeps running: {}, which loses no packet",
                    names.systemctl("restart")
                ),
            ],
        ),
        _ => Advice::new(
            "the agent retries with growing pauses; what was set up before stays in place",
            [format!("{journal} -b shows what happened")],
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
const WITHOUT_STORE: &str = "without the lease store this node hears of no new peers and cannot extend its lease; what it knows stays in place until then";

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
                    "compare it with {section}.cafile, and {section}.certfile with what the server trusts; renewed files are read without a restart"
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
                    "let the user read and write below the key prefix: etcdctl role grant-permission ROLE readwrite {}/ --prefix",
                    etcd.prefix
                ),
            ],
        ),
        _ if is_remote => Advice::new(
            WITHOUT_STORE,
            [
                format!(
                    "check that this host gets through: curl -s {first}/v1/{}/config",
                    settings.remote.network
                ),
                "on the server: systemctl status selvage-server says whether it reaches etcd itself; remote.listen says where it listens".into(),
                "if the servers moved: set remote.server on this node".into(),
            ],
        ),
        _ => Advice::new(
            WITHOUT_STORE,
            [
                format!("check that this host gets through: curl -s {first}/health"),
                format!(
                    "ask the servers: etcdctl --endpoints={} endpoint health",
                    etcd.endpoints.join(",")
                ),
                "on the server: systemctl status etcd, and whether it listens on an address that this host reaches (--listen-client-urls)".into(),
                "if the servers moved: set etcd.endpoints on this node".into(),
            ],
        ),
    }
}

/// The network config cannot be used.
fn network_config(names: &Names) -> Advice {
    Advice::new(
        "running nodes keep the network config that they have, but no node can join with this one, nor can this node after a restart",
        [
            format!("read what is there: {}", names.selvage("network get")),
            format!(
                "write a good one, which is checked first: {} FILE",
                names.selvage("network set")
            ),
        ],
    )
}

/// No free subnet is left.
pub(super) fn full(names: &Names) -> Advice {
    Advice::new(
        "every node needs a subnet of its own, and there are only so many",
        [
            format!(
                "see who has them, and for how long: {}",
                names.selvage("network leases")
            ),
            format!(
                "free those of nodes that are gone for good: {} on the node, or {} SUBNET for a reservation",
                names.selvage_with_state("leave"),
                names.selvage("network unreserve")
            ),
            format!(
                "make room: widen Network (or SubnetMin and SubnetMax) with {}; nodes keep their subnets if those still fit",
                names.selvage("network set")
            ),
        ],
    )
}

/// No interface or address to send from.
fn underlay(names: &Names) -> Advice {
    Advice::new(
        "the overlay's packets leave by one interface of this host, and none fits",
        [
            "see what there is: ip -brief address; ip route".into(),
            format!(
                "if the agent looks for the wrong one, name the right one: underlay.interfaces = [\"eth1\"] in {} (--iface), or underlay.can-reach",
                names.settings_file
            ),
            "if the interface is not up yet, the agent continues as soon as it is: networkctl status".into(),
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
