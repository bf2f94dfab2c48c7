//! Which flags there are: those of flannel v0.28.9, and two of flannel 0.5 that still have a use.

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

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Definition {
    Definition {
        name,
        kind,
        default,
        help,
    }
}

/// Where flanneld looks for etcd: its first port, and the one that replaced it.
pub(crate) const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";

/// Where flannel 0.5 put the subnet files of the networks that `--networks` names.
pub(crate) const DEFAULT_SUBNET_DIR: &str = "/run/flannel/networks";

/// All flags, in the order of their names, as Go prints them.
pub(super) static ALL: [Definition; 38] = [
    flag(
        "etcd-cafile",
        Kind::Text,
        "",
        "certificate authorities to verify etcd with (PEM)",
    ),
    flag(
        "etcd-certfile",
        Kind::Text,
        "",
        "client certificate for etcd (PEM); needs --etcd-keyfile",
    ),
    flag(
        "etcd-endpoints",
        Kind::Text,
        DEFAULT_ENDPOINTS,
        "URLs of the etcd members, separated by commas",
    ),
    flag(
        "etcd-keyfile",
        Kind::Text,
        "",
        "key of the client certificate (PEM)",
    ),
    flag(
        "etcd-password",
        Kind::Text,
        "",
        "etcd password; every user of this host can read it here, unlike in FLANNELD_ETCD_PASSWORD",
    ),
    flag(
        "etcd-prefix",
        Kind::Text,
        "/coreos.com/network",
        "etcd key prefix",
    ),
    flag("etcd-username", Kind::Text, "", "etcd user name"),
    flag(
        "healthz-ip",
        Kind::Text,
        "0.0.0.0",
        "listen address of the health endpoints",
    ),
    flag(
        "healthz-port",
        Kind::Number,
        "0",
        "port of the health endpoints; 0 for none",
    ),
    flag(
        "iface",
        Kind::Texts,
        "",
        "underlay interface, by name or address; the first match is used",
    ),
    flag(
        "iface-can-reach",
        Kind::Text,
        "",
        "use the interface with the route to this address",
    ),
    flag(
        "iface-regex",
        Kind::Texts,
        "",
        "pattern for addresses, then for interface names; the first match is used",
    ),
    flag(
        "ip-blackhole-route",
        Kind::Switch,
        "false",
        "drop packets to unused addresses of this node's subnet",
    ),
    flag(
        "ip-masq",
        Kind::Switch,
        "false",
        "masquerade traffic that leaves the overlay",
    ),
    flag(
        "ip-masq-fully-random-disable",
        Kind::Switch,
        "false",
        "masquerade without random source ports",
    ),
    flag(
        "iptables-forward-rules",
        Kind::Switch,
        "true",
        "accept forwarded traffic from and to the overlay",
    ),
    flag(
        "iptables-resync",
        Kind::Number,
        "5",
        "seconds between checks of the firewall rules",
    ),
    flag(
        "kube-annotation-prefix",
        Kind::Text,
        "flannel.alpha.coreos.com",
        "Kubernetes mode, which is not supported",
    ),
    flag(
        "kube-api-url",
        Kind::Text,
        "",
        "Kubernetes mode, which is not supported",
    ),
    flag(
        "kube-subnet-mgr",
        Kind::Switch,
        "false",
        "Kubernetes mode, which is not supported",
    ),
    flag(
        "kubeconfig-file",
        Kind::Text,
        "",
        "Kubernetes mode, which is not supported",
    ),
    flag(
        "listen",
        Kind::Text,
        "",
        "run as lease server for hosts with --remote: HOST:PORT, fd:// or fd://N",
    ),
    flag(
        "log_backtrace_at",
        Kind::Location,
        "",
        "accepted and ignored",
    ),
    flag(
        "net-config-path",
        Kind::Text,
        "/etc/kube-flannel/net-conf.json",
        "Kubernetes mode, which is not supported",
    ),
    flag(
        super::flags::NETWORKS,
        Kind::Text,
        "",
        "flannel 0.5: name of the network below --etcd-prefix to join",
    ),
    flag(
        "public-ip",
        Kind::Text,
        "",
        "IPv4 address that peers send to, if not the interface's",
    ),
    flag(
        "public-ipv6",
        Kind::Text,
        "",
        "IPv6 address that peers send to, if not the interface's",
    ),
    flag(
        "remote",
        Kind::Text,
        "",
        "HOST:PORT of the lease servers to use instead of etcd, separated by commas",
    ),
    flag(
        "remote-cafile",
        Kind::Text,
        "",
        "certificate authorities to verify the other side of --remote or --listen with (PEM)",
    ),
    flag(
        "remote-certfile",
        Kind::Text,
        "",
        "certificate for --remote or --listen (PEM); needs --remote-keyfile",
    ),
    flag(
        "remote-keyfile",
        Kind::Text,
        "",
        "key of that certificate (PEM)",
    ),
    flag(
        "set-node-network-unavailable",
        Kind::Switch,
        "true",
        "Kubernetes mode, which is not supported",
    ),
    flag(
        "subnet-dir",
        Kind::Text,
        DEFAULT_SUBNET_DIR,
        "flannel 0.5: directory of the subnet file with --networks",
    ),
    flag(
        "subnet-file",
        Kind::Text,
        "/run/flannel/subnet.env",
        "subnet file, which container runtimes read",
    ),
    flag(
        super::flags::RENEW_MARGIN,
        Kind::Number,
        "60",
        "checked, then ignored: the lease is renewed all the time",
    ),
    flag(
        "v",
        Kind::Verbosity,
        "0",
        "log level: below 2 state changes, from 2 details, from 5 everything",
    ),
    flag(
        "version",
        Kind::Switch,
        "false",
        "print the version and exit",
    ),
    flag("vmodule", Kind::Modules, "", "accepted and ignored"),
];
