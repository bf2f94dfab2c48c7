//! What to do about the reasons that the agent gives, by their words. The words are ours; the tests hold both together.

use crate::settings::Settings;

/// What a reason does to the overlay, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Advice {
    /// What it does, and how it comes about.
    pub(super) why: String,
    /// What to do, the best first.
    pub(super) remedy: Vec<String>,
}

impl Advice {
    /// Takes texts of either kind.
    pub(super) fn new<const N: usize>(why: &str, remedy: [&str; N]) -> Self {
        Self {
            why: why.to_owned(),
            remedy: remedy.map(str::to_owned).to_vec(),
        }
    }
}

/// What to do about something that the agent waits for, or that is wrong.
pub(super) fn advise(reason: &str, settings: &Settings) -> Advice {
    let has = |words: &str| reason.contains(words);
    let prefix = &settings.etcd.prefix;
    if has("no network config at") {
        let set = format!(
            "say which network all nodes share: echo '{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}' | selvage network set (it goes to {prefix}/config)"
        );
        return Advice::new(
            "the cluster's network config says which addresses the overlay has and how packets travel; without it no node can take a subnet",
            [
                &set,
                "if another cluster tool wrote it under another prefix: set etcd.prefix to that one on every node",
            ],
        );
    }
    if has("bad network config at") || has("a usable network config") {
        return network_config();
    }
    if has("out of subnets") {
        return full();
    }
    if has("races for a subnet") {
        let watch = format!(
            "wait a minute; if it lasts, look for what writes there: etcdctl watch --prefix {prefix}/subnets"
        );
        return Advice::new(
            "many nodes take a subnet at this moment, and others were faster every time; the agent goes on trying",
            [&watch],
        );
    }
    if has("the underlay") {
        return underlay();
    }
    if has("the firewall") {
        return Advice::new(
            "the rules that accept and masquerade the containers' packets are not all in place, so some of them may be dropped, or leave with addresses that nobody answers to",
            [
                "see what the kernel says to it: nft list ruleset, or iptables-save; journalctl -u selvage has the whole error",
                "if the kernel lacks nf_tables: set firewall.mode = \"iptables\", and the other way round",
            ],
        );
    }
    if has("the subnet file") {
        let file = settings.files.subnet_file.display();
        let look =
            format!("look at the directory, its owner and its space: ls -ld {file}; df {file}");
        return Advice::new(
            "container runtimes read their subnet from this file; Docker is not started without it",
            [&look],
        );
    }
    if has("the back end") || has("NAT") || has("the private key") {
        return Advice::new(
            "the back end that the network config asks for cannot be set up on this host",
            [
                "journalctl -u selvage has the whole error",
                "selvage network get shows which back end all nodes share",
            ],
        );
    }
    if has("etcd") || has("selvage server") || has("refused the request") || has("publish") {
        return store(reason, settings);
    }
    Advice::new(
        "the agent tries again with growing pauses; what was set up before stays in place meanwhile",
        ["journalctl -u selvage -b shows how it came about"],
    )
}

/// Where leases are kept: servers of etcd's, or agents that serve it to others.
pub(super) fn servers(settings: &Settings) -> &[String] {
    match settings.remote.servers.as_slice() {
        [] => &settings.etcd.endpoints,
        servers => servers,
    }
}

/// The lease store does not answer, or refuses.
fn store(reason: &str, settings: &Settings) -> Advice {
    const WHY: &str = "without the lease store this node hears of no new peers, and cannot extend its lease; what is known stays in place until then";
    let lower = reason.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let etcd = &settings.etcd;
    let is_remote = !settings.remote.servers.is_empty();
    let section = if is_remote { "remote" } else { "etcd" };
    let first = servers(settings).first().map_or("", String::as_str);
    if has(&["certificate", "unknownissuer", "tls", "handshake"]) {
        let check = format!(
            "see the server's certificate: openssl s_client -connect {} </dev/null | openssl x509 -noout -dates -issuer -ext subjectAltName",
            first.rsplit("://").next().unwrap_or_default()
        );
        let compare = format!(
            "compare it with {section}.cafile, and {section}.certfile with what the server trusts; renewed files are read without a restart"
        );
        return Advice::new(
            WHY,
            [&check, &compare, "look at this host's clock: timedatectl"],
        );
    }
    if has(&[
        "authentication",
        "permission denied",
        "auth token",
        "user name",
        "password",
    ]) {
        let role = format!(
            "let the user read and write below the prefix: etcdctl role grant-permission ROLE readwrite {p}/ --prefix",
            p = etcd.prefix
        );
        return Advice::new(
            WHY,
            [
                "set etcd.username and etcd.password-file to a user that etcd knows; then systemctl reload selvage, which reads the password again",
                &role,
            ],
        );
    }
    if is_remote {
        let curl = format!(
            "ask whether this host gets through: curl -s {first}/v1/{}/config",
            settings.remote.network
        );
        return Advice::new(
            WHY,
            [
                &curl,
                "on the server: systemctl status selvage-server says whether it reaches etcd itself; remote.listen says where it listens",
                "if the servers moved: set remote.server on this node",
            ],
        );
    }
    let list = etcd.endpoints.join(",");
    let health = format!("ask the servers: etcdctl --endpoints={list} endpoint health");
    let curl = format!("ask whether this host gets through: curl -s {first}/health");
    Advice::new(
        WHY,
        [
            &curl,
            &health,
            "on the server: systemctl status etcd, and whether it listens on an address that this host reaches (--listen-client-urls)",
            "if the servers moved: set etcd.endpoints on this node",
        ],
    )
}

/// The network config cannot be used.
pub(super) fn network_config() -> Advice {
    Advice::new(
        "nodes that run keep the network config that they have, but none can join with this one, also not this node after a restart",
        [
            "read what is there: selvage network get",
            "write a good one, which is checked first: selvage network set FILE",
        ],
    )
}

/// There is no subnet left.
pub(super) fn full() -> Advice {
    Advice::new(
        "every node needs a subnet of its own, and there are only so many",
        [
            "see who has them, and for how long yet: selvage network leases",
            "free those of nodes that are gone for good: selvage leave on the node, or selvage network unreserve SUBNET for a reservation",
            "make room: widen Network (or SubnetMin and SubnetMax) with selvage network set; nodes keep their subnets if those still fit",
        ],
    )
}

/// No interface or address to send from.
fn underlay() -> Advice {
    Advice::new(
        "the overlay's packets leave by one interface of this host, and there is none that fits",
        [
            "see what there is: ip -brief address; ip route",
            "if the wrong one is looked for, say which: underlay.interfaces = [\"eth1\"] in /etc/selvage/agent.toml (--iface), or underlay.can-reach",
            "if the interface is not up yet, the agent goes on as soon as it is: networkctl status",
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::lease::StoreError;
    use crate::cluster::lease::allocate::Exhausted;

    fn settings(flags: &[&str]) -> Settings {
        let flags = crate::settings::flags::parse(flags);
        let root = tempfile::tempdir().unwrap();
        crate::settings::load(crate::settings::Sources {
            root: root.path(),
            config: None,
            environment: &crate::settings::Environment::default(),
            flags: &flags,
        })
        .unwrap()
    }

    #[test]
    fn every_reason_of_the_store_has_its_remedy() {
        let settings = settings(&["--etcd-endpoints", "https://10.0.0.1:2379"]);
        let unreachable = |cause: &str| {
            StoreError::Unreachable {
                attempts: format!("etcd at https://10.0.0.1:2379: {cause}"),
            }
            .to_string()
        };
        let refused = |reason: &str| {
            StoreError::Refused {
                server: "etcd at https://10.0.0.1:2379".to_owned(),
                reason: reason.to_owned(),
                code: 7,
            }
            .to_string()
        };
        for (reason, word) in [
            (
                unreachable("connection refused"),
                "curl -s https://10.0.0.1:2379/health",
            ),
            (
                unreachable("invalid peer certificate: certificate expired"),
                "openssl s_client -connect 10.0.0.1:2379",
            ),
            (
                refused("etcdserver: permission denied"),
                "etcdctl role grant-permission",
            ),
            (
                refused("etcdserver: authentication failed, invalid user ID or password"),
                "etcd.password-file",
            ),
            (
                StoreError::NoNetworkConfig {
                    key: "/coreos.com/network/config".to_owned(),
                }
                .to_string(),
                "selvage network set",
            ),
            (
                StoreError::OutOfSubnets(Exhausted {
                    holds: None,
                    network: "10.5.0.0/16".parse().unwrap(),
                    subnet_len: 24,
                })
                .to_string(),
                "selvage network unreserve",
            ),
            (
                StoreError::LostRaces { attempts: 10 }.to_string(),
                "etcdctl watch",
            ),
            ("whatever comes".to_owned(), "journalctl"),
        ] {
            // As the agent tells it: while it joins, and of a task that failed.
            for told in [
                format!("waiting for {reason}"),
                format!("failed to take a lease again: {reason}"),
            ] {
                let advice = advise(&told, &settings);
                let has = |remedy: &String| remedy.contains(word);
                assert!(advice.remedy.iter().any(has), "{told}: {advice:?}");
            }
        }
    }
}
