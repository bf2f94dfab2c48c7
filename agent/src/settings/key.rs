//! The names of all settings: as a key in a file, as a flag, and as environment variables.

/// One setting's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    /// Table and key in a settings file, such as `etcd.prefix`.
    pub(super) path: &'static str,
    /// The flag without its dashes, such as `etcd-prefix`; flannel's name where it has the setting.
    pub(super) flag: &'static str,
}

/// What our own environment variables begin with.
const OURS: &str = "SELVAGE_";

/// What flanneld's begin with; ours win.
const FLANNELS: &str = "FLANNELD_";

impl Key {
    const fn new(path: &'static str, flag: &'static str) -> Self {
        Self { path, flag }
    }

    /// The environment variables for this setting, the stronger first.
    pub(super) fn variables(self) -> [String; 2] {
        variables(self.flag)
    }
}

/// The environment variables for a flag: its name in upper case, with underscores for dashes.
pub(super) fn variables(flag: &str) -> [String; 2] {
    let name = flag.to_ascii_uppercase().replace('-', "_");
    [format!("{OURS}{name}"), format!("{FLANNELS}{name}")]
}

/// Whether an environment variable could be a setting.
pub(super) fn is_variable(name: &str) -> bool {
    name.starts_with(OURS) || name.starts_with(FLANNELS)
}

/// Whether it is one of our own, not flannel's.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

pub(super) const ETCD_ENDPOINTS: Key = Key::new("etcd.endpoints", "etcd-endpoints");
pub(super) const ETCD_PREFIX: Key = Key::new("etcd.prefix", "etcd-prefix");
pub(super) const ETCD_CAFILE: Key = Key::new("etcd.cafile", "etcd-cafile");
pub(super) const ETCD_CERTFILE: Key = Key::new("etcd.certfile", "etcd-certfile");
pub(super) const ETCD_KEYFILE: Key = Key::new("etcd.keyfile", "etcd-keyfile");
pub(super) const ETCD_USERNAME: Key = Key::new("etcd.username", "etcd-username");
pub(super) const ETCD_PASSWORD_FILE: Key = Key::new("etcd.password-file", "etcd-password-file");
pub(super) const ETCD_LEASE_TTL: Key = Key::new("etcd.lease-ttl", "etcd-lease-ttl");
pub(super) const REMOTE_SERVER: Key = Key::new("remote.server", "remote");
pub(super) const REMOTE_NETWORK: Key = Key::new("remote.network", "remote-network");
pub(super) const REMOTE_LISTEN: Key = Key::new("remote.listen", "listen");
pub(super) const REMOTE_CAFILE: Key = Key::new("remote.cafile", "remote-cafile");
pub(super) const REMOTE_CERTFILE: Key = Key::new("remote.certfile", "remote-certfile");
pub(super) const REMOTE_KEYFILE: Key = Key::new("remote.keyfile", "remote-keyfile");
pub(super) const REMOTE_INSECURE: Key = Key::new("remote.insecure", "insecure");
pub(super) const UNDERLAY_INTERFACES: Key = Key::new("underlay.interfaces", "iface");
pub(super) const UNDERLAY_INTERFACE_REGEX: Key =
    Key::new("underlay.interface-regex", "iface-regex");
pub(super) const UNDERLAY_CAN_REACH: Key = Key::new("underlay.can-reach", "iface-can-reach");
pub(super) const UNDERLAY_INTERFACE_CIDR: Key = Key::new("underlay.interface-cidr", "iface-cidr");
pub(super) const UNDERLAY_PUBLIC_IP: Key = Key::new("underlay.public-ip", "public-ip");
pub(super) const UNDERLAY_PUBLIC_IPV6: Key = Key::new("underlay.public-ipv6", "public-ipv6");
pub(super) const FIREWALL_MODE: Key = Key::new("firewall.mode", "firewall-mode");
pub(super) const FIREWALL_MASQUERADE: Key = Key::new("firewall.masquerade", "ip-masq");
pub(super) const FIREWALL_FORWARD: Key = Key::new("firewall.forward", "iptables-forward-rules");
pub(super) const FIREWALL_RANDOM_FULLY: Key =
    Key::new("firewall.random-fully", "ip-masq-fully-random");
pub(super) const FIREWALL_MASQUERADE_EXCLUDE: Key =
    Key::new("firewall.masquerade-exclude", "ip-masq-exclude");
pub(super) const FIREWALL_RESYNC: Key = Key::new("firewall.resync", "iptables-resync");
pub(super) const FIREWALL_BLACKHOLE_ROUTE: Key =
    Key::new("firewall.blackhole-route", "ip-blackhole-route");
pub(super) const FILES_SUBNET_FILE: Key = Key::new("files.subnet-file", "subnet-file");
pub(super) const FILES_STATE_DIR: Key = Key::new("files.state-dir", "state-dir");
pub(super) const FILES_SOCKET: Key = Key::new("files.socket", "socket");
pub(super) const HEALTH_ADDRESS: Key = Key::new("health.address", "healthz-ip");
pub(super) const HEALTH_PORT: Key = Key::new("health.port", "healthz-port");
pub(super) const AGENT_NETWORK: Key = Key::new("agent.network", "network");
pub(super) const AGENT_NODE_ID: Key = Key::new("agent.node-id", "node-id");
pub(super) const AGENT_LOG: Key = Key::new("agent.log", "log");
pub(super) const AGENT_RESYNC: Key = Key::new("agent.resync", "resync");
pub(super) const AGENT_LEAVE_ON_STOP: Key = Key::new("agent.leave-on-stop", "leave-on-stop");

/// Every setting, in the order of the sample file.
#[cfg(test)]
pub(super) const ALL: [Key; 38] = [
    ETCD_ENDPOINTS,
    ETCD_PREFIX,
    ETCD_CAFILE,
    ETCD_CERTFILE,
    ETCD_KEYFILE,
    ETCD_USERNAME,
    ETCD_PASSWORD_FILE,
    ETCD_LEASE_TTL,
    REMOTE_SERVER,
    REMOTE_NETWORK,
    REMOTE_LISTEN,
    REMOTE_CAFILE,
    REMOTE_CERTFILE,
    REMOTE_KEYFILE,
    REMOTE_INSECURE,
    UNDERLAY_INTERFACES,
    UNDERLAY_INTERFACE_REGEX,
    UNDERLAY_CAN_REACH,
    UNDERLAY_INTERFACE_CIDR,
    UNDERLAY_PUBLIC_IP,
    UNDERLAY_PUBLIC_IPV6,
    FIREWALL_MODE,
    FIREWALL_MASQUERADE,
    FIREWALL_FORWARD,
    FIREWALL_RANDOM_FULLY,
    FIREWALL_MASQUERADE_EXCLUDE,
    FIREWALL_RESYNC,
    FIREWALL_BLACKHOLE_ROUTE,
    FILES_SUBNET_FILE,
    FILES_STATE_DIR,
    FILES_SOCKET,
    HEALTH_ADDRESS,
    HEALTH_PORT,
    AGENT_NETWORK,
    AGENT_NODE_ID,
    AGENT_LOG,
    AGENT_RESYNC,
    AGENT_LEAVE_ON_STOP,
];
