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

const KUBERNETES: &str = "Kubernetes mode, which is not in this version";

flags! {
    "etcd-cafile", Text, "",
        "certificate authorities that etcd's certificate is checked against (PEM)";
    "etcd-certfile", Text, "", "our certificate for etcd (PEM); needs --etcd-keyfile";
    "etcd-endpoints", Text, DEFAULT_ENDPOINTS, "URLs of the etcd members, separated by commas";
    "etcd-keyfile", Text, "", "the key to our certificate (PEM)";
    "etcd-password", Text, "",
        "etcd password; every user of this host can read it here, unlike in FLANNELD_ETCD_PASSWORD";
    "etcd-prefix", Text, "/coreos.com/network", "what all keys in etcd begin with";
    "etcd-username", Text, "", "whom to log in to etcd as";
    "healthz-ip", Text, "0.0.0.0", "address that the health endpoints listen on";
    "healthz-port", Number, "0", "port of the health endpoints; 0 for none";
    "iface", Texts, "",
        "interface that carries the overlay, by name or address; the first that is found counts";
    "iface-can-reach", Text, "", "use the interface over which this address is reached";
    "iface-regex", Texts, "",
        "pattern for addresses, then for names of interfaces; the first that is found counts";
    "ip-blackhole-route", Switch, "false",
        "drop packets to addresses of our subnet that no container has";
    "ip-masq", Switch, "false", "give packets that leave the overlay this host's address";
    "ip-masq-fully-random-disable", Switch, "false",
        "do not pick source ports at random when doing so";
    "iptables-forward-rules", Switch, "true", "accept forwarding from and to the overlay";
    "iptables-resync", Number, "5", "seconds between looks at the firewall rules";
    "kube-annotation-prefix", Text, "flannel.alpha.coreos.com", KUBERNETES;
    "kube-api-url", Text, "", KUBERNETES;
    "kube-subnet-mgr", Switch, "false", KUBERNETES;
    "kubeconfig-file", Text, "", KUBERNETES;
    "listen", Text, "",
        "serve leases to hosts with --remote here instead of joining: HOST:PORT, fd:// or fd://N";
    "log_backtrace_at", Location, "", "taken, and without a meaning here";
    "net-config-path", Text, "/etc/kube-flannel/net-conf.json", KUBERNETES;
    NETWORKS, Text, "", "flannel 0.5's: the one network below --etcd-prefix to join";
    "public-ip", Text, "", "IPv4 address that peers send to, if not the interface's";
    "public-ipv6", Text, "", "IPv6 address that peers send to, if not the interface's";
    "remote", Text, "",
        "HOST:PORT of servers that keep the leases in place of etcd, separated by commas";
    "remote-cafile", Text, "",
        "certificate authorities that the other side of --remote or --listen is checked by (PEM)";
    "remote-certfile", Text, "",
        "our certificate for --remote or --listen (PEM); needs --remote-keyfile";
    "remote-keyfile", Text, "", "the key to that certificate (PEM)";
    "set-node-network-unavailable", Switch, "true", KUBERNETES;
    "subnet-dir", Text, DEFAULT_SUBNET_DIR,
        "flannel 0.5's: directory of the subnet file with --networks";
    "subnet-file", Text, "/run/flannel/subnet.env", "what container runtimes read";
    RENEW_MARGIN, Number, "60", "checked and then unused: the lease is kept alive all the time";
    "v", Verbosity, "0",
        "how much is logged: below 2 changes of state, from 2 details, from 5 everything";
    "version", Switch, "false", "print the version and exit";
    "vmodule", Modules, "", "taken, and without a meaning here";
}
