//! Every setting, once: see [`Setting`] for what an entry says.
//!
//! A new setting is an entry here, and a function in [`super::check`] if none there fits. From the entry come its flag, its
//! environment variables, its key in a settings file, its line in `--help`, in agent.toml(5) and in `docs/settings.md`, its
//! field in [`Settings`], and what a reload does with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::changes::Change;
use super::check::{
    ADDRESS, ANNOTATION_PREFIX, API_URL, CAN_REACH, FILTER, INTERFACE, LISTEN, MODE, NETWORK,
    NETWORKS, NODE_ID, NODE_NAME, PATH, PUBLIC_IP, PUBLIC_IPV6, certificate, each,
    filled_or_default, on, optional, or_default, password, patterns, port, prefix, remote_cafile,
    remote_network, seconds, servers, urls, username,
};
use super::inputs::Inputs;
use super::setting::{OnReload, Setting, settings};
use super::{Error, FirewallMode, Interface, Listen, Pattern, Secret};
use crate::base::network_name::NetworkName;

settings! {
    /// How the lease store is reached.
    etcd: Etcd, "etcd" {
        /// At least one `http://HOST:PORT` or `https://HOST:PORT`, without a trailing slash.
        endpoints: Vec<String> = urls, Urls,
            flag "etcd-endpoints" "URL,...", help "etcd client URLs",
            default "http://127.0.0.1:2379", commands STORE, on_reload Restart;
        /// The key prefix, cleaned as Go's `path.Join` does, so that `{prefix}/config` is flannel's key. Empty for `/`.
        prefix: String = prefix, Text,
            flag "etcd-prefix" "KEY", help "etcd key prefix",
            default "/coreos.com/network" named "/coreos.com/network/NAME", commands STORE, on_reload Restart;
        /// CA certificates to verify etcd (PEM).
        cafile: Option<PathBuf> = optional(PATH), Path,
            flag "etcd-cafile" "FILE", help "CA certificates to verify etcd, PEM",
            default "none", commands STORE, on_reload Live;
        /// Our certificate (PEM); set together with the key.
        certfile: Option<PathBuf> = certificate(&key::etcd::keyfile), Path,
            flag "etcd-certfile" "FILE", help "Client certificate for etcd, PEM; needs --etcd-keyfile",
            default "none", commands STORE, on_reload Live;
        /// The private key of our certificate (PEM).
        keyfile: Option<PathBuf> = certificate(&key::etcd::certfile), Path,
            flag "etcd-keyfile" "FILE", help "Private key of the client certificate, PEM",
            default "none", commands STORE, on_reload Live;
        /// The etcd user; set together with the password.
        username: Option<String> = username, Text,
            flag "etcd-username" "NAME", help "etcd user name; needs --etcd-password-file",
            default "none", commands STORE, on_reload Live;
        /// That user's password.
        password: Option<Secret> = password, Path key "password-file",
            flag "etcd-password-file" "FILE", help "File that holds the etcd password on one line",
            default "none", commands STORE, on_reload Live;
        /// How long a lease outlives its node: from one minute, enough for a restart of etcd, to one year. A day is
        /// flannel's.
        lease_ttl: Duration = seconds, Number key "lease-ttl",
            flag "etcd-lease-ttl" "SECONDS", help "Lease TTL in seconds" range 60..=31_536_000,
            default "86400", commands RUN | SERVE, on_reload Restart;
    }
    /// Lease servers to use, and being one: flannel's client and server mode.
    remote: Remote, "Remote" {
        /// The lease servers, `http://HOST:PORT` or `https://HOST:PORT`; empty to use etcd directly.
        servers: Vec<String> = servers, Commas key "server",
            flag "remote" "HOST:PORT,...", help "Lease servers to use instead of etcd",
            default "none", commands CLIENT, on_reload Restart;
        /// The network's name at the server, 1 to 64 characters; `_` is the unnamed one.
        network: String = remote_network, Text,
            flag "remote-network" "NAME", help "Network name at the lease server",
            default "--network, else _" named "NAME", commands CLIENT, on_reload Restart;
        /// Where to listen, if this is a server.
        listen: Option<Listen> = optional(LISTEN), Text,
            flag "listen" "ADDRESS", help "Listen address: HOST:PORT, fd:// or fd://N",
            default "none" named "none", commands SERVE, on_reload Restart;
        /// CA certificates that the other side's certificate is verified against (PEM). A server with this setting requires
        /// client certificates.
        cafile: Option<PathBuf> = remote_cafile, Path,
            flag "remote-cafile" "FILE", help "CA certificates to verify the other side, PEM",
            default "none", commands CLIENT | SERVE, on_reload Restart;
        /// Our certificate (PEM); set together with the key.
        certfile: Option<PathBuf> = certificate(&key::remote::keyfile), Path,
            flag "remote-certfile" "FILE", help "Our certificate, PEM; needs --remote-keyfile",
            default "none", commands CLIENT | SERVE, on_reload Restart;
        /// The private key of our certificate (PEM).
        keyfile: Option<PathBuf> = certificate(&key::remote::certfile), Path,
            flag "remote-keyfile" "FILE", help "Private key of our certificate, PEM",
            default "none", commands CLIENT | SERVE, on_reload Restart;
        /// Whether a server admits clients without a certificate.
        insecure: bool = on, Switch,
            flag "insecure" "BOOL", help "Accept clients without a certificate",
            default "false", commands SERVE, on_reload Restart;
    }
    /// Kubernetes as the lease store: a node's subnet is its podCIDR.
    kubernetes: Kubernetes, "Kubernetes" {
        /// Whether leases are the podCIDRs and annotations of the cluster's nodes.
        enabled: bool = on, Switch,
            flag "kube-subnet-mgr" "BOOL", help "Take the subnet from this Kubernetes node",
            default "false" named "false", commands RUN, on_reload Restart;
        /// The API server; `None` for that of the kubeconfig, or of the pod's cluster.
        api_url: Option<String> = optional(API_URL), Text key "api-url",
            flag "kube-api-url" "URL", help "API server, if not the kubeconfig's or the pod's",
            default "none", commands RUN | MIGRATE | RARE, on_reload Restart;
        /// The file with server and credentials; `None` for the pod's service account.
        kubeconfig: Option<PathBuf> = optional(PATH), Path,
            flag "kubeconfig-file" "FILE", help "kubeconfig, if not the service account",
            default "none", commands RUN | MIGRATE | RARE, on_reload Restart;
        /// What the annotations' names begin with, completed as flannel does: `flannel.alpha.coreos.com/`.
        annotation_prefix: String = or_default(ANNOTATION_PREFIX), Text key "annotation-prefix",
            flag "kube-annotation-prefix" "PREFIX", help "Prefix of the node annotations",
            default "flannel.alpha.coreos.com", commands RUN | MIGRATE | RARE, on_reload Restart;
        /// The network config, which pods have from a ConfigMap.
        net_config: PathBuf = or_default(PATH), Path key "net-config",
            flag "net-config-path" "FILE", help "Network config, JSON",
            default "/etc/kube-flannel/net-conf.json", commands RUN | RARE, on_reload Restart;
        /// The node's name; `None` for that in `NODE_NAME`, or that of the pod in `POD_NAME` and `POD_NAMESPACE`.
        node_name: Option<String> = optional(NODE_NAME), Text key "node-name",
            flag "node-name" "NAME", help "Name of this Kubernetes node",
            default "NODE_NAME, or the pod's node", commands RUN | RARE, on_reload Restart;
        /// Whether the node's condition `NetworkUnavailable` follows the overlay.
        set_network_unavailable: bool = on, Switch key "set-network-unavailable",
            flag "set-node-network-unavailable" "BOOL", help "Set the node condition NetworkUnavailable",
            default "true", commands RUN | RARE, on_reload Restart;
    }
    /// The CNI plugin, which the agent puts in its place at each start; `selvage cni install` does so once.
    cni: Cni, "CNI" {
        /// Whether it does.
        install: bool = on, Switch,
            flag "cni-install" "BOOL", help "Install the CNI plugin and its config list",
            default "false" named "false", commands RUN | RARE, on_reload Restart;
        /// The directory of CNI plugins.
        bin_dir: PathBuf = or_default(PATH), Path key "bin-dir",
            flag "cni-bin-dir" "DIR", help "Directory of CNI plugins",
            default "/opt/cni/bin", commands RUN | RARE, on_reload Restart;
        /// The directory of CNI configs.
        conf_dir: PathBuf = or_default(PATH), Path key "conf-dir",
            flag "cni-conf-dir" "DIR", help "Directory of CNI configs",
            default "/etc/cni/net.d", commands RUN | RARE, on_reload Restart;
        /// The config list to copy; `None` for kube-flannel's.
        conf_from: Option<PathBuf> = optional(PATH), Path key "conf-from",
            flag "cni-conf-from" "FILE", help "Config list to copy, if not kube-flannel's",
            default "none", commands RUN | RARE, on_reload Restart;
    }
    /// What carries the overlay's packets: one interface, and an address of each family that the overlay has.
    ///
    /// The interface is the first that one of [`Self::interfaces`], [`Self::interface_regex`], [`Self::can_reach`] and
    /// [`Self::interface_cidr`], in this order, leads to; if all of them are empty, it is the one that has the public
    /// address, or else the default route's. Each list is tried in its own order.
    underlay: Underlay, "Underlay" {
        /// By name or by address.
        interfaces: Vec<Interface> = each(INTERFACE), Each,
            flag "iface" "NAME|ADDRESS", help "Underlay interface or address",
            default "the default route's", commands RUN, on_reload Restart;
        /// By a pattern that is found in an address of the interface, or else in its name.
        interface_regex: Vec<Pattern> = patterns, Each key "interface-regex",
            flag "iface-regex" "REGEX", help "Pattern for its addresses, then its name; repeatable",
            default "none", commands RUN, on_reload Restart;
        /// By an address that the kernel reaches over the interface.
        can_reach: Option<IpAddr> = optional(CAN_REACH), Text key "can-reach",
            flag "iface-can-reach" "ADDRESS", help "Address reached over it",
            default "none", commands RUN, on_reload Restart;
        /// By a network that an address of the interface is in.
        interface_cidr: Vec<IpNet> = each(NETWORKS), Networks key "interface-cidr",
            flag "iface-cidr" "CIDR,...", help "Networks that its address is in",
            default "none", commands RUN, on_reload Restart;
        /// The unicast address that peers send to, where it is not the interface's own (behind NAT).
        public_ip: Option<Ipv4Addr> = optional(PUBLIC_IP), Text key "public-ip",
            flag "public-ip" "ADDRESS", help "IPv4 address that peers send to",
            default "the interface's", commands RUN | RESERVE, on_reload Restart;
        /// The same for IPv6; not link-local.
        public_ipv6: Option<Ipv6Addr> = optional(PUBLIC_IPV6), Text key "public-ipv6",
            flag "public-ipv6" "ADDRESS", help "IPv6 address that peers send to",
            default "the interface's", commands RUN | RESERVE, on_reload Restart;
    }
    /// What the packet filter does.
    firewall: Firewall, "Firewall" {
        /// The firewall backend.
        mode: FirewallMode = filled_or_default(MODE), Text,
            flag "firewall-mode" "MODE", help "Firewall backend: auto, nftables, iptables",
            default "auto", commands RUN, on_reload Live;
        /// Whether packets that leave the overlay get this host's address.
        masquerade: bool = on, Switch,
            flag "ip-masq" "BOOL", help "Masquerade packets that leave",
            default "false", commands RUN, on_reload Live;
        /// Whether forwarding from and to the overlay is accepted.
        forward: bool = on, Switch,
            flag "iptables-forward-rules" "BOOL", help "Accept forwarded packets",
            default "true", commands RUN, on_reload Live;
        /// Whether masquerading picks source ports at random.
        random_fully: bool = on, Switch key "random-fully",
            flag "ip-masq-fully-random" "BOOL", help "Masquerade with random ports",
            default "true", commands RUN, on_reload Live;
        /// Destinations that are not masqueraded for; no bits are set beyond the prefixes.
        masquerade_exclude: Vec<IpNet> = each(NETWORKS), Networks key "masquerade-exclude",
            flag "ip-masq-exclude" "CIDR,...", help "Destinations not to masquerade for",
            default "none", commands RUN, on_reload Live;
        /// The longest time between two checks of the rules. The default is flannel's.
        resync: Duration = seconds, Number,
            flag "iptables-resync" "SECONDS", help "Seconds between checks" range 1..=86_400,
            default "5", commands RUN, on_reload Live;
        /// Whether packets to addresses of the own subnet that no container has are dropped.
        blackhole_route: bool = on, Switch key "blackhole-route",
            flag "ip-blackhole-route" "BOOL", help "Drop packets to unused addresses",
            default "false", commands RUN, on_reload Live;
    }
    /// How a cloud provider is reached whose route tables have the routes; not used by other backends.
    cloud: Cloud, "Cloud" {
        /// The API server, in place of all that the provider has, such as a private endpoint; `None` for the provider's.
        api_url: Option<String> = optional(API_URL), Text key "api-url",
            flag "cloud-api-url" "URL", help "Cloud API server, if not the provider's own",
            default "none", commands RUN | RARE, on_reload Restart;
        /// The metadata service of the instance; `None` for the provider's.
        metadata_url: Option<String> = optional(API_URL), Text key "metadata-url",
            flag "cloud-metadata-url" "URL", help "Metadata service, if not the provider's own",
            default "none", commands RUN | RARE, on_reload Restart;
        /// Credentials in the provider's own form; `None` for the instance's role.
        credentials_file: Option<PathBuf> = optional(PATH), Path key "credentials-file",
            flag "cloud-credentials-file" "FILE", help "Cloud credentials, if not the instance's role",
            default "none", commands RUN | RARE, on_reload Restart;
    }
    /// strongSwan's charon, which negotiates the keys of the backend ipsec.
    ipsec: Ipsec, "IPsec" {
        /// charon's VICI socket.
        vici: PathBuf = or_default(PATH), Path,
            flag "ipsec-vici" "FILE", help "VICI socket of strongSwan's charon",
            default "/run/selvage/charon.vici", commands RUN | CLEANUP | DOCTOR | RARE, on_reload Restart;
    }
    /// What is written where; absolute paths. Those of a named network are where flannel 0.5 had its subnet files.
    files: Files, "Files and health" {
        /// The subnet file, for container runtimes.
        subnet_file: PathBuf = or_default(PATH), Path key "subnet-file",
            flag "subnet-file" "FILE", help "Subnet file for container runtimes",
            default "/run/flannel/subnet.env" named "/run/flannel/networks/NAME.env",
            commands RUN | STATUS | DOCTOR | LEAVE | CLEANUP | OPTIONS, on_reload Restart;
        /// The state directory: what must outlive a reboot.
        state_dir: PathBuf = or_default(PATH), Path key "state-dir",
            flag "state-dir" "DIR", help "State directory",
            default "/var/lib/selvage" named "/var/lib/selvage/networks/NAME",
            commands RUN | STATUS | DOCTOR | LEAVE | CLEANUP, on_reload Restart;
        /// The control socket, where operators' commands ask the agent.
        socket: PathBuf = or_default(PATH), Path,
            flag "socket" "FILE", help "Control socket",
            default "/run/selvage/agent.sock" named "/run/selvage/networks/NAME.sock",
            commands RUN | STATUS | PEERS | DOCTOR, on_reload Restart;
    }
    /// Where the agent answers whether it is well: see [`Self::listen`].
    health: Health, "Files and health" {
        /// Local only by default: exposing the endpoints to other hosts is the operator's choice. flanneld listens on all
        /// addresses.
        address: IpAddr = filled_or_default(ADDRESS), Text,
            flag "healthz-ip" "ADDRESS", help "Address of /healthz, /readyz and /metrics",
            default "127.0.0.1", commands RUN, on_reload Live;
        /// The port; 0 for none.
        port: u16 = port, Number,
            flag "healthz-port" "PORT", help "TCP port of these; 0 is off" range 0..=65_535,
            default "0" named "0", commands RUN, on_reload Live;
    }
    /// The agent itself.
    agent: Agent, "Agent" {
        /// What the network is called where several are on this host; `None` for the first or only one.
        network: Option<NetworkName> = optional(NETWORK), Text,
            flag "network" "NAME", help "Network name, where this host joins several",
            default "none", commands ALL, on_reload Restart;
        /// The owner ID of the lease; `None` for one derived from the machine ID.
        node_id: Option<String> = optional(NODE_ID), Text key "node-id",
            flag "node-id" "ID", help "Node ID that owns the lease",
            default "from /etc/machine-id", commands RUN | LEAVE, on_reload Restart;
        /// A level or a list of filters that [`crate::base::logging::parse_filter`] takes.
        log: String = or_default(FILTER), Text,
            flag "log" "LEVEL", help "Log level (error to trace) or filter list",
            default "info", commands ALL, on_reload Live;
        /// The longest time between two full resyncs with the kernel.
        resync: Duration = seconds, Number,
            flag "resync" "SECONDS", help "Seconds between kernel checks" range 1..=86_400,
            default "300", commands RUN, on_reload Live;
        /// Whether the subnet is given back when the agent is stopped.
        leave_on_stop: bool = on, Switch key "leave-on-stop",
            flag "leave-on-stop" "BOOL", help "Give the subnet back on stop",
            default "false", commands RUN, on_reload Live;
    }
}
