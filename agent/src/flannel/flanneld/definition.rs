//! Which flags there are: those of flannel v0.28.9, and two of flannel 0.5 that still have a use.

use super::flags::{NETWORKS, RENEW_MARGIN};

/// What kind of value a flag takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// True or false; true when no value is given.
    Switch,
    /// A whole number.
    Number,
    /// Any text.
    Text,
    /// A text each time that the flag is given.
    Texts,
    /// klog's verbosity.
    Verbosity,
    /// klog's verbosities of single source files.
    Modules,
    /// klog's place in a source file.
    Location,
}

/// A flag.
#[derive(Debug)]
pub(super) struct Definition {
    /// Its name without dashes.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) kind: Kind,
    /// What holds when it is not given; empty for nothing.
    pub(super) default: &'static str,
    /// What it means.
    pub(super) help: &'static str,
}

/// The flag of that name.
pub(super) fn find(name: &str) -> Option<&'static Definition> {
    ALL.iter().find(|definition| definition.name == name)
}

/// Where flanneld looks for etcd: its first port, and the one that replaced it.
pub(crate) const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";

/// Where flannel 0.5 put the subnet files of the networks that `--networks` names.
pub(crate) const DEFAULT_SUBNET_DIR: &str = "/run/flannel/networks";

macro_rules! flags {
    ($($name:expr, $kind:ident, $default:expr, $help:expr;)+) => {
        /// All flags, in the order of their names, as Go prints them.
        pub(super) static ALL: &[Definition] = &[$(Definition {
            name: $name,
            kind: Kind::$kind,
            default: $default,
            help: $help,
        },)+];
    };
}

flags! {
    "etcd-cafile", Text, "",
        "CA certificates to verify etcd, PEM";
    "etcd-certfile", Text, "", "client certificate for etcd, PEM; needs --etcd-keyfile";
    "etcd-endpoints", Text, DEFAULT_ENDPOINTS, "URLs of the etcd members, separated by commas";
    "etcd-keyfile", Text, "", "private key of the client certificate, PEM";
    "etcd-password", Text, "",
        "etcd password; every user of this host can read it here, unlike in FLANNELD_ETCD_PASSWORD";
    "etcd-prefix", Text, "/coreos.com/network", "etcd key prefix";
    "etcd-username", Text, "", "etcd user name";
    "healthz-ip", Text, "0.0.0.0", "listen address of the health endpoints";
    "healthz-port", Number, "0", "TCP port of the health endpoints; 0 is off";
    "iface", Texts, "",
        "underlay interface, by name or address; the first one found is used";
    "iface-can-reach", Text, "", "use the interface over which this address is reached";
    "iface-regex", Texts, "",
        "pattern for the addresses, then the names of interfaces; the first match is used";
    "ip-blackhole-route", Switch, "false",
        "drop packets to unused addresses of the subnet";
    "ip-masq", Switch, "false", "masquerade packets that leave the overlay";
    "ip-masq-fully-random-disable", Switch, "false",
        "masquerade without random source ports";
    "iptables-forward-rules", Switch, "true", "accept packets forwarded from and to the overlay";
    "iptables-resync", Number, "5", "seconds between checks of the firewall rules";
    "kube-annotation-prefix", Text, "flannel.alpha.coreos.com", "prefix of the node annotations";
    "kube-api-url", Text, "", "API server, if not the kubeconfig's or the pod's";
    "kube-subnet-mgr", Switch, "false",
        "take the subnet from the Kubernetes node instead of etcd; needs NODE_NAME, or POD_NAME and POD_NAMESPACE";
    "kubeconfig-file", Text, "", "kubeconfig, if not the pod's service account";
    "listen", Text, "",
        "serve leases to hosts with --remote here instead of joining: HOST:PORT, fd:// or fd://N";
    "log_backtrace_at", Location, "", "accepted, but without effect";
    "net-config-path", Text, "/etc/kube-flannel/net-conf.json",
        "network config with --kube-subnet-mgr";
    NETWORKS, Text, "", "flannel 0.5: name of the one network below --etcd-prefix to join";
    "public-ip", Text, "", "IPv4 address that peers send to, if not the interface's";
    "public-ipv6", Text, "", "IPv6 address that peers send to, if not the interface's";
    "remote", Text, "",
        "lease servers to use instead of etcd: HOST:PORT, separated by commas";
    "remote-cafile", Text, "",
        "CA certificates to verify the other side of --remote or --listen, PEM";
    "remote-certfile", Text, "",
        "certificate for --remote or --listen, PEM; needs --remote-keyfile";
    "remote-keyfile", Text, "", "private key of that certificate, PEM";
    "set-node-network-unavailable", Switch, "true",
        "set the node condition NetworkUnavailable";
    "subnet-dir", Text, DEFAULT_SUBNET_DIR,
        "flannel 0.5: directory of the subnet file with --networks";
    "subnet-file", Text, "/run/flannel/subnet.env", "subnet file for container runtimes";
    RENEW_MARGIN, Number, "60", "checked, but without effect: the agent keeps its lease alive all the time";
    "v", Verbosity, "0",
        "log verbosity: 0 and 1 changes of state, 2 to 4 details, 5 and above everything";
    "version", Switch, "false", "print the version and exit";
    "vmodule", Modules, "", "accepted, but without effect";
}
