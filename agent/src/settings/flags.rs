//! What the command line says.

use super::environment::{split_list, unplaced};
use super::fragment::{Agent, Etcd, Files, Firewall, Fragment, Underlay};
use crate::cli::SettingsFlags;

/// The flags in the form that every source has.
pub(super) fn fragment(flags: &SettingsFlags) -> Fragment {
    let text = |flag: &Option<String>| flag.clone().map(unplaced);
    Fragment {
        etcd: Etcd {
            endpoints: text(&flags.etcd_endpoints).map(split_list),
            prefix: text(&flags.etcd_prefix),
            cafile: text(&flags.etcd_cafile),
            certfile: text(&flags.etcd_certfile),
            keyfile: text(&flags.etcd_keyfile),
            username: text(&flags.etcd_username),
            password_file: text(&flags.etcd_password_file),
        },
        underlay: Underlay {
            interface: text(&flags.iface),
            public_ip: text(&flags.public_ip),
        },
        firewall: Firewall {
            masquerade: flags.ip_masq.map(unplaced),
            forward: flags.iptables_forward_rules.map(unplaced),
            random_fully: flags.ip_masq_fully_random.map(unplaced),
        },
        files: Files {
            subnet_file: text(&flags.subnet_file),
            state_dir: text(&flags.state_dir),
        },
        agent: Agent {
            node_id: text(&flags.node_id),
            log: text(&flags.log),
            resync: flags.resync.map(unplaced),
        },
    }
}
