//! Every setting, once: from this table `settings!` generates the settings of one source ([`Fragment`]), the merged
//! ones ([`Inputs`]), the flags, the environment variables, `--help` and agent.toml(5).
//!
//! A new setting is an entry here, its field in [`super::Settings`], the validation in [`super::validate`] that fills
//! it, and its text in `agent/reload/changes.rs`. With the entry in place, the compiler asks for all the others.

use clap::{Arg, ArgMatches};
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use super::environment::unplaced;
use super::inputs::{Origin, Sourced};
use super::key::Key;
use super::kind::{Commas, Each, Form, Kind, Networks, Number, Switch, Text, Urls};
use super::{Environment, Error, Secret};

/// The commands that have a flag for a setting; the others read it from files and environment only.
pub mod command {
    /// `run`.
    pub const RUN: u16 = 1;
    /// `serve`.
    pub const SERVE: u16 = 1 << 1;
    /// `status`.
    pub const STATUS: u16 = 1 << 2;
    /// `peers`.
    pub const PEERS: u16 = 1 << 3;
    /// `doctor`.
    pub const DOCTOR: u16 = 1 << 4;
    /// `network`, except `network reserve`.
    pub const NETWORK: u16 = 1 << 5;
    /// `network reserve`.
    pub const RESERVE: u16 = 1 << 6;
    /// `leave`.
    pub const LEAVE: u16 = 1 << 7;
    /// `cleanup`.
    pub const CLEANUP: u16 = 1 << 8;
    /// `options docker`.
    pub const OPTIONS: u16 = 1 << 9;
    /// Every command that has settings.
    pub const ALL: u16 = (1 << 10) - 1;
    /// The commands that talk to etcd.
    pub(super) const STORE: u16 = RUN | SERVE | DOCTOR | NETWORK | RESERVE | LEAVE;
    /// The commands that may talk to a lease server instead.
    pub(super) const CLIENT: u16 = RUN | DOCTOR | LEAVE;
}

/// When a changed setting takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnReload {
    Live,
    Restart,
}

/// Whether the networks of a host share the value in the common files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OfNetworks {
    /// All networks share it.
    Shared,
    /// No two networks can share it: a named network ignores the value in the common files.
    Own,
    /// The network's name is appended to it.
    Base,
}

use OfNetworks::{Base as BASE, Own as OWN, Shared as SHARED};
use OnReload::{Live as LIVE, Restart as RESTART};

/// One setting.
pub(crate) struct Setting {
    pub(crate) key: Key,
    /// For example `etcd`.
    pub(crate) table: &'static str,
    /// The key in its table, for example `lease-ttl`.
    pub(crate) name: &'static str,
    /// The heading in `--help`.
    pub(crate) heading: &'static str,
    /// The value's name in `--help`.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
    pub(crate) default: &'static str,
    pub(crate) form: Form,
    /// Flags from [`command`].
    pub(crate) commands: u16,
    pub(crate) on_reload: OnReload,
    pub(super) argument: fn(Arg) -> Arg,
}

macro_rules! settings {
    ($($table:ident: $Table:ident, $heading:literal {
        $($KEY:ident = $field:ident: $kind:ident, key $name:tt, flag $flag:literal $value:literal,
            help $help:literal, default $default:literal,
            commands ($($commands:tt)+), on_reload $reload:ident, of_networks $networks:ident;)+
    })+) => {
        /// Each setting's names.
        pub(crate) mod key {
            use super::Key;
            $($(pub(crate) const $KEY: Key =
                Key::new(concat!(stringify!($table), ".", $name), $flag);)+)+
        }

        /// The tables of a settings file; every key is optional.
        pub(crate) mod fragment {
            use super::*;
            $(
                #[derive(Clone, Debug, Default, Deserialize)]
                #[serde(deny_unknown_fields, default)]
                pub(crate) struct $Table {
                    $(#[serde(rename = $name)]
                    pub(crate) $field: Option<Spanned<<$kind as Kind>::File>>,)+
                }
            )+
        }

        /// The same, each value with its place.
        pub(crate) mod sourced {
            use super::*;
            $(
                #[derive(Default)]
                pub(crate) struct $Table {
                    $(pub(crate) $field: Option<Sourced<<$kind as Kind>::Value>>,)+
                }
            )+
        }

        /// The settings of one source. Unknown keys and tables are errors, so that a misspelt one is noticed.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct Fragment {
            $(pub(crate) $table: fragment::$Table,)+
            /// [`super::update`]'s.
            pub(crate) update: IgnoredAny,
            /// [`super::fleet`]'s.
            pub(crate) fleet: IgnoredAny,
        }

        /// The merged settings; `None` if no source has a value.
        #[derive(Default)]
        pub(crate) struct Inputs {
            $(pub(crate) $table: sourced::$Table,)+
            /// The base of a named network's prefix, used if `etcd.prefix` is not set for that network.
            pub(crate) base_prefix: Option<Sourced<String>>,
            /// The content of the password file, or else flannel's environment variable.
            pub(crate) password: Option<Secret>,
        }

        impl Inputs {
            /// Applies a stronger source on top.
            pub(crate) fn overlay(&mut self, fragment: Fragment, origin: &Origin<'_>) {
                $($(origin.put(&mut self.$table.$field, key::$KEY, fragment.$table.$field);)+)+
            }

            /// Drops the values that no two networks of a host can share.
            pub(super) fn drop_own(&mut self) {
                $($(if $networks == OWN {
                    self.$table.$field = None;
                })+)+
            }
        }

        impl Fragment {
            /// The settings from the environment.
            pub(crate) fn of_environment(environment: &Environment) -> Result<Self, Error> {
                Ok(Self {
                    $($table: fragment::$Table {
                        $($field: environment.get::<$kind>(key::$KEY)?,)+
                    },)+
                    update: IgnoredAny,
                    fleet: IgnoredAny,
                })
            }

            /// The settings from the command line.
            pub(super) fn of_flags(matches: &ArgMatches) -> Self {
                Self {
                    $($table: fragment::$Table {
                        $($field: <$kind>::flag(matches, $flag).map(unplaced),)+
                    },)+
                    update: IgnoredAny,
                    fleet: IgnoredAny,
                }
            }
        }

        /// Every setting, in the order of the sample file.
        pub(crate) const ALL: &[Setting] = &[
            $($({
                use command::*;
                Setting {
                    key: key::$KEY,
                    table: stringify!($table),
                    name: $name,
                    heading: $heading,
                    value: $value,
                    help: $help,
                    default: $default,
                    form: <$kind as Kind>::FORM,
                    commands: $($commands)+,
                    on_reload: $reload,
                    argument: <$kind as Kind>::argument,
                }
            },)+)+
        ];
    };
}

settings! {
    etcd: Etcd, "etcd" {
        ETCD_ENDPOINTS = endpoints: Urls, key "endpoints", flag "etcd-endpoints" "URL,...",
            help "etcd client URLs", default "http://127.0.0.1:2379",
            commands (STORE), on_reload RESTART, of_networks SHARED;
        ETCD_PREFIX = prefix: Text, key "prefix", flag "etcd-prefix" "KEY",
            help "etcd key prefix", default "/coreos.com/network",
            commands (STORE), on_reload RESTART, of_networks BASE;
        ETCD_CAFILE = cafile: Text, key "cafile", flag "etcd-cafile" "FILE",
            help "CA certificates to verify etcd, PEM", default "none",
            commands (STORE), on_reload LIVE, of_networks SHARED;
        ETCD_CERTFILE = certfile: Text, key "certfile", flag "etcd-certfile" "FILE",
            help "Client certificate for etcd, PEM; needs --etcd-keyfile", default "none",
            commands (STORE), on_reload LIVE, of_networks SHARED;
        ETCD_KEYFILE = keyfile: Text, key "keyfile", flag "etcd-keyfile" "FILE",
            help "Private key of the client certificate, PEM", default "none",
            commands (STORE), on_reload LIVE, of_networks SHARED;
        ETCD_USERNAME = username: Text, key "username", flag "etcd-username" "NAME",
            help "etcd user name; needs --etcd-password-file", default "none",
            commands (STORE), on_reload LIVE, of_networks SHARED;
        ETCD_PASSWORD_FILE = password_file: Text, key "password-file", flag "etcd-password-file" "FILE",
            help "File that holds the etcd password on one line", default "none",
            commands (STORE), on_reload LIVE, of_networks SHARED;
        ETCD_LEASE_TTL = lease_ttl: Number, key "lease-ttl", flag "etcd-lease-ttl" "SECONDS",
            help "Lease TTL in seconds, 60 to 31536000", default "86400",
            commands (RUN | SERVE), on_reload RESTART, of_networks SHARED;
    }
    remote: Remote, "Remote" {
        REMOTE_SERVER = server: Commas, key "server", flag "remote" "HOST:PORT,...",
            help "Lease servers to use instead of etcd", default "none",
            commands (CLIENT), on_reload RESTART, of_networks SHARED;
        REMOTE_NETWORK = network: Text, key "network", flag "remote-network" "NAME",
            help "Network name at the lease server", default "--network, else _",
            commands (CLIENT), on_reload RESTART, of_networks OWN;
        REMOTE_LISTEN = listen: Text, key "listen", flag "listen" "ADDRESS",
            help "Listen address: HOST:PORT, fd:// or fd://N", default "none",
            commands (SERVE), on_reload RESTART, of_networks OWN;
        REMOTE_CAFILE = cafile: Text, key "cafile", flag "remote-cafile" "FILE",
            help "CA certificates to verify the other side, PEM", default "none",
            commands (CLIENT | SERVE), on_reload RESTART, of_networks SHARED;
        REMOTE_CERTFILE = certfile: Text, key "certfile", flag "remote-certfile" "FILE",
            help "Our certificate, PEM; needs --remote-keyfile", default "none",
            commands (CLIENT | SERVE), on_reload RESTART, of_networks SHARED;
        REMOTE_KEYFILE = keyfile: Text, key "keyfile", flag "remote-keyfile" "FILE",
            help "Private key of our certificate, PEM", default "none",
            commands (CLIENT | SERVE), on_reload RESTART, of_networks SHARED;
        REMOTE_INSECURE = insecure: Switch, key "insecure", flag "insecure" "BOOL",
            help "Accept clients without a certificate", default "false",
            commands (SERVE), on_reload RESTART, of_networks SHARED;
    }
    underlay: Underlay, "Underlay" {
        UNDERLAY_INTERFACES = interfaces: Each, key "interfaces", flag "iface" "NAME|ADDRESS",
            help "Underlay interface or address", default "the default route's",
            commands (RUN), on_reload RESTART, of_networks SHARED;
        UNDERLAY_INTERFACE_REGEX = interface_regex: Each, key "interface-regex", flag "iface-regex" "REGEX",
            help "Pattern for its addresses, then its name; repeatable", default "none",
            commands (RUN), on_reload RESTART, of_networks SHARED;
        UNDERLAY_CAN_REACH = can_reach: Text, key "can-reach", flag "iface-can-reach" "ADDRESS",
            help "Address reached over it", default "none",
            commands (RUN), on_reload RESTART, of_networks SHARED;
        UNDERLAY_INTERFACE_CIDR = interface_cidr: Networks, key "interface-cidr", flag "iface-cidr" "CIDR,...",
            help "Networks that its address is in", default "none",
            commands (RUN), on_reload RESTART, of_networks SHARED;
        UNDERLAY_PUBLIC_IP = public_ip: Text, key "public-ip", flag "public-ip" "ADDRESS",
            help "IPv4 address that peers send to", default "the interface's",
            commands (RUN | RESERVE), on_reload RESTART, of_networks SHARED;
        UNDERLAY_PUBLIC_IPV6 = public_ipv6: Text, key "public-ipv6", flag "public-ipv6" "ADDRESS",
            help "IPv6 address that peers send to", default "the interface's",
            commands (RUN | RESERVE), on_reload RESTART, of_networks SHARED;
    }
    firewall: Firewall, "Firewall" {
        FIREWALL_MODE = mode: Text, key "mode", flag "firewall-mode" "MODE",
            help "Firewall backend: auto, nftables, iptables", default "auto",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        FIREWALL_MASQUERADE = masquerade: Switch, key "masquerade", flag "ip-masq" "BOOL",
            help "Masquerade packets that leave", default "false",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        FIREWALL_FORWARD = forward: Switch, key "forward", flag "iptables-forward-rules" "BOOL",
            help "Accept forwarded packets", default "true",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        FIREWALL_RANDOM_FULLY = random_fully: Switch, key "random-fully", flag "ip-masq-fully-random" "BOOL",
            help "Masquerade with random ports", default "true",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        FIREWALL_MASQUERADE_EXCLUDE = masquerade_exclude: Networks, key "masquerade-exclude", flag "ip-masq-exclude" "CIDR,...",
            help "Destinations not to masquerade for", default "none",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        FIREWALL_RESYNC = resync: Number, key "resync", flag "iptables-resync" "SECONDS",
            help "Seconds between checks, 1 to 86400", default "5",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        FIREWALL_BLACKHOLE_ROUTE = blackhole_route: Switch, key "blackhole-route", flag "ip-blackhole-route" "BOOL",
            help "Drop packets to unused addresses", default "false",
            commands (RUN), on_reload LIVE, of_networks SHARED;
    }
    files: Files, "Files and health" {
        FILES_SUBNET_FILE = subnet_file: Text, key "subnet-file", flag "subnet-file" "FILE",
            help "Subnet file for container runtimes", default "/run/flannel/subnet.env",
            commands (RUN | STATUS | DOCTOR | LEAVE | CLEANUP | OPTIONS), on_reload RESTART, of_networks OWN;
        FILES_STATE_DIR = state_dir: Text, key "state-dir", flag "state-dir" "DIR",
            help "State directory", default "/var/lib/selvage",
            commands (RUN | STATUS | DOCTOR | LEAVE | CLEANUP), on_reload RESTART, of_networks OWN;
        FILES_SOCKET = socket: Text, key "socket", flag "socket" "FILE",
            help "Control socket", default "/run/selvage/agent.sock",
            commands (RUN | STATUS | PEERS | DOCTOR), on_reload RESTART, of_networks OWN;
    }
    health: Health, "Files and health" {
        HEALTH_ADDRESS = address: Text, key "address", flag "healthz-ip" "ADDRESS",
            help "Address of /healthz, /readyz and /metrics", default "127.0.0.1",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        HEALTH_PORT = port: Number, key "port", flag "healthz-port" "PORT",
            help "TCP port of these, 0 to 65535; 0 is off", default "0",
            commands (RUN), on_reload LIVE, of_networks OWN;
    }
    agent: Agent, "Agent" {
        AGENT_NETWORK = network: Text, key "network", flag "network" "NAME",
            help "Network name, where this host joins several", default "none",
            commands (ALL), on_reload RESTART, of_networks SHARED;
        AGENT_NODE_ID = node_id: Text, key "node-id", flag "node-id" "ID",
            help "Node ID that owns the lease", default "from /etc/machine-id",
            commands (RUN | LEAVE), on_reload RESTART, of_networks SHARED;
        AGENT_LOG = log: Text, key "log", flag "log" "LEVEL",
            help "Log level (error to trace) or filter list", default "info",
            commands (ALL), on_reload LIVE, of_networks SHARED;
        AGENT_RESYNC = resync: Number, key "resync", flag "resync" "SECONDS",
            help "Seconds between kernel checks, 1 to 86400", default "300",
            commands (RUN), on_reload LIVE, of_networks SHARED;
        AGENT_LEAVE_ON_STOP = leave_on_stop: Switch, key "leave-on-stop", flag "leave-on-stop" "BOOL",
            help "Give the subnet back on stop", default "false",
            commands (RUN), on_reload LIVE, of_networks SHARED;
    }
}

/// Whether the setting with this path can change at run time.
pub(crate) fn is_live(path: &str) -> bool {
    ALL.iter()
        .any(|setting| setting.key.path == path && setting.on_reload == LIVE)
}
