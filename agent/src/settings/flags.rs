//! What the command line says.

use super::environment::{split_list, unplaced};
use super::fragment::{Agent, Etcd, Files, Firewall, Fragment, Health, Remote, Texts, Underlay};
use crate::command::cli::SettingsFlags;

/// The flags in the form that every source has.
pub(super) fn fragment(flags: &SettingsFlags) -> Fragment {
    let text = |flag: &Option<String>| flag.clone().map(unplaced);
    let list = |flags: &Vec<String>| {
        let given = Some(flags.clone()).filter(|flags| !flags.is_empty());
        given.map(|flags| unplaced(Texts(flags)))
    };
    let number = |flag: Option<i64>| flag.map(unplaced);
    let switch = |flag: Option<bool>| flag.map(unplaced);
    Fragment {
        etcd: Etcd {
            endpoints: text(&flags.etcd_endpoints).map(split_list),
            prefix: text(&flags.etcd_prefix),
            cafile: text(&flags.etcd_cafile),
            certfile: text(&flags.etcd_certfile),
            keyfile: text(&flags.etcd_keyfile),
            username: text(&flags.etcd_username),
            password_file: text(&flags.etcd_password_file),
            lease_ttl: number(flags.etcd_lease_ttl),
        },
        remote: Remote {
            server: text(&flags.remote).map(|list| unplaced(Texts(split_list(list).into_inner()))),
            network: text(&flags.remote_network),
            listen: text(&flags.listen),
            cafile: text(&flags.remote_cafile),
            certfile: text(&flags.remote_certfile),
            keyfile: text(&flags.remote_keyfile),
            insecure: switch(flags.insecure),
        },
        underlay: Underlay {
            interfaces: list(&flags.iface),
            interface_regex: list(&flags.iface_regex),
            can_reach: text(&flags.iface_can_reach),
            interface_cidr: list(&flags.iface_cidr),
            public_ip: text(&flags.public_ip),
            public_ipv6: text(&flags.public_ipv6),
        },
        firewall: Firewall {
            mode: text(&flags.firewall_mode),
            masquerade: switch(flags.ip_masq),
            forward: switch(flags.iptables_forward_rules),
            random_fully: switch(flags.ip_masq_fully_random),
            masquerade_exclude: list(&flags.ip_masq_exclude),
            resync: number(flags.iptables_resync),
            blackhole_route: switch(flags.ip_blackhole_route),
        },
        files: Files {
            subnet_file: text(&flags.subnet_file),
            state_dir: text(&flags.state_dir),
            socket: text(&flags.socket),
        },
        health: Health {
            address: text(&flags.healthz_ip),
            port: number(flags.healthz_port),
        },
        agent: Agent {
            network: text(&flags.network),
            node_id: text(&flags.node_id),
            log: text(&flags.log),
            resync: number(flags.resync),
            leave_on_stop: switch(flags.leave_on_stop),
        },
    }
}
