//! Statuses for tests.

use super::*;
use crate::cluster::refusal::RefusalCode;

/// The time of all samples.
pub(crate) const NOW: u64 = 1_800_000_000;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const DOCKER: &str = "Docker was started with --bip=10.5.34.1/24, but its bridge docker0 is on 10.5.3.1/24: live-restore keeps it while containers run, and peers cannot reach them";

/// A conflicting route, and its details.
const ROUTE: [&str; 2] = [
    "route 10.5.4.0/24",
    "10.5.4.0/24 via 10.77.0.9 proto 4 dev eth0",
];

/// A cause with an object and a detail.
fn cause(task: TaskName, code: Code, [object, detail]: [&str; 2], text: &str) -> Cause {
    Cause {
        detail: Some(detail.to_owned()),
        ..Cause::new(code, text).about(object).of(task)
    }
}

/// One with every field set. New fields are to be set here as well.
pub(crate) fn full() -> Status {
    Status {
        schema: SCHEMA,
        time: NOW,
        agent: Agent {
            version: "0.1.0".to_owned(),
            pid: 4711,
            started_time: NOW - 3 * HOUR,
            node_id: "0123456789abcdef0123456789abcdef".to_owned(),
            network: Some("blue".to_owned()),
            settings_rejected: Some("failed to reload the settings: no such file".to_owned()),
            settings_pending: vec!["etcd.prefix".to_owned()],
        },
        health: Health::new(
            State::Degraded,
            vec![
                cause(
                    TaskName::Renewal,
                    Code::StoreRefused,
                    ["etcd at https://10.77.0.2:2379", "x"],
                    "the lease could not be extended: etcd gave no answer within 5 s",
                ),
                cause(
                    TaskName::Program,
                    Code::KernelConflict,
                    ROUTE,
                    "kernel: 2 kernel changes failed, the first: route 10.5.4.0/24 via 10.5.4.0 dev flannel.1 onlink: File exists (os error 17)",
                ),
                cause(TaskName::Docker, Code::DockerSubnet, ["docker0", "x"], DOCKER),
            ],
        ),
        store: Store {
            kind: "etcd".to_owned(),
            servers: vec![
                "https://10.77.0.1:2379".to_owned(),
                "https://10.77.0.2:2379".to_owned(),
                "https://10.77.0.3:2379".to_owned(),
            ],
            prefix: "/coreos.com/network".to_owned(),
            server: Some("https://10.77.0.2:2379".to_owned()),
            trouble: Some("etcd gave no answer within 5 s".to_owned()),
            history: History {
                changes: 2,
                last_time: Some(NOW - 5 * MINUTE),
                last_reason: Some("the revision went back from 1234 to 40".to_owned()),
            },
        },
        network: Some(Network {
            ipv4: Some("10.5.0.0/16".parse().unwrap()),
            ipv6: Some("fd00:5::/48".parse().unwrap()),
            subnets: Some(255),
            backend: "vxlan".to_owned(),
            mtu: 1430,
            rejected: Some("/coreos.com/network/config: VNI = 16777216: expected 0 to 16777215".to_owned()),
        }),
        lease: Some(Lease {
            subnet: Some("10.5.34.0/24".parse().unwrap()),
            subnet_v6: Some("fd00:5:0:22::/64".parse().unwrap()),
            public_ip: Some("10.77.0.11".parse().unwrap()),
            public_ipv6: Some("fd77::11".parse().unwrap()),
            since_time: NOW - 3 * HOUR,
            held: true,
            reservation: false,
            ttl_seconds: Some(DAY),
            left_seconds: Some(22 * HOUR + 5),
            trouble: Some("etcd gave no answer within 5 s".to_owned()),
        }),
        underlay: Some(Underlay {
            interface: "eth0".to_owned(),
            index: 2,
            mtu: 1500,
            ipv4: Some("10.77.0.11/24".parse().unwrap()),
            ipv6: Some("fd77::11/64".parse().unwrap()),
        }),
        devices: vec![
            device("flannel.1", 5 << 30, 3 << 20),
            Device {
                name: "flannel-v6.1".to_owned(),
                present: false,
                kind: None,
                mtu: None,
                mac: None,
                ..device("", 0, 0)
            },
        ],
        firewall: Some(Firewall {
            wanted: "auto".to_owned(),
            mode: Some("nftables".to_owned()),
            masquerade: true,
            forward: true,
            programmed: 2,
            programmed_time: Some(NOW - 12 * MINUTE),
        }),
        cloud: Some(cloud()),
        kernel: Kernel {
            interval_seconds: 300,
            resync_time: Some(NOW - 12),
            resync_usec: Some(3_250),
            resync_total_usec: 120_250,
            resyncs: 37,
            created: 12_345,
            changed: 2,
            removed: 40,
            failed: 2,
            failures: vec![
                "route 10.5.4.0/24 via 10.5.4.0 dev flannel.1 onlink: File exists (os error 17)".to_owned(),
            ],
            causes: vec![cause(
                TaskName::Program,
                Code::KernelConflict,
                ROUTE,
                "route 10.5.4.0/24 via 10.5.4.0 dev flannel.1 onlink: File exists (os error 17)",
            )],
        },
        files: Files {
            subnet_file: "/run/flannel/subnet.env".to_owned(),
            written_time: Some(NOW - 3 * HOUR),
        },
        docker: Some(Docker {
            bridge: "docker0".to_owned(),
            options: vec!["--bip=10.5.34.1/24".to_owned()],
            addresses: vec!["10.5.3.1/24".parse().unwrap()],
            trouble: Some(DOCKER.to_owned()),
        }),
        peers: vec![
            Peer {
                subnet_v6: Some("fd00:5:0:1::/64".parse().unwrap()),
                public_ipv6: Some("fd77::12".parse().unwrap()),
                owner: Some("00000000000000000000000000000012".to_owned()),
                reason: Some("its last update is not followed: 10.5.7.9 is no usable public IP: inside the overlay network".to_owned()),
                refusal: Some(Refusal {
                    code: RefusalCode::PublicIp,
                    object: Some("10.5.7.9".to_owned()),
                }),
                changed_time: Some(NOW - 119),
                traffic: Some(Traffic {
                    rx_bytes: 1_234_567_890,
                    tx_bytes: 4_096,
                    rx_packets: Some(1_000_000),
                    tx_packets: Some(7),
                }),
                handshake_time: Some(NOW - 40),
                ..peer(1, 12)
            },
        ],
        clock: Clock {
            jumps: 2,
            last_time: Some(NOW - 10 * MINUTE),
            last_seconds: Some(-3_600),
        },
    }
}

/// Two tables, one of them full.
pub(crate) fn cloud() -> Cloud {
    let table = |id: &str, routes, complete| CloudTable {
        id: id.to_owned(),
        routes,
        complete,
    };
    Cloud {
        provider: "aws-vpc".to_owned(),
        wanted: vec!["10.5.34.0/24".parse().unwrap()],
        tables: vec![
            table("rtb-0a1b2c3d4e5f60718", 12, true),
            table("rtb-0a1b2c3d4e5f60719", 50, false),
        ],
        settled_time: Some(NOW - HOUR),
        next_seconds: 240,
        added: 2,
        replaced: 1,
        removed: 3,
        failures: 4,
        causes: vec![cause(
            TaskName::CloudRoutes,
            Code::CloudQuota,
            ["rtb-0a1b2c3d4e5f60719", "Routes per route table"],
            "rtb-0a1b2c3d4e5f60719: CreateRoute: the quota \"Routes per route table\" is used up",
        )],
    }
}

fn device(name: &str, rx_bytes: u64, tx_bytes: u64) -> Device {
    Device {
        name: name.to_owned(),
        present: true,
        kind: Some("vxlan".to_owned()),
        mtu: Some(1430),
        mac: Some("5e:11:22:33:44:55".to_owned()),
        traffic: Traffic {
            rx_bytes,
            tx_bytes,
            rx_packets: Some(rx_bytes / 1000),
            tx_packets: Some(tx_bytes / 1000),
        },
        tx_errors: 1,
        tx_dropped: 2,
        rx_errors: 3,
        rx_dropped: 4,
    }
}

/// The peer with 10.5.`number`.0/24 at 10.77.0.`host`.
pub(crate) fn peer(number: u8, host: u8) -> Peer {
    Peer {
        subnet: Some(format!("10.5.{number}.0/24").parse().unwrap()),
        subnet_v6: None,
        public_ip: Some(format!("10.77.0.{host}").parse().unwrap()),
        public_ipv6: None,
        backend: "vxlan".to_owned(),
        owner: Some(format!("{host:032}")),
        state: PeerState::Programmed,
        reason: None,
        refusal: None,
        since_time: NOW - 3 * HOUR,
        changed_time: None,
        traffic: None,
        handshake_time: None,
    }
}

/// Healthy; three peers, one of them flannel.
pub(crate) fn healthy() -> Status {
    let full = full();
    let mut device = device("flannel.1", 123_456_789, 987_654);
    (device.tx_errors, device.tx_dropped) = (0, 0);
    (device.rx_errors, device.rx_dropped) = (0, 0);
    Status {
        agent: Agent {
            network: None,
            settings_rejected: None,
            settings_pending: Vec::new(),
            ..full.agent
        },
        health: Health::new(State::Ready, Vec::new()),
        store: Store {
            servers: vec!["http://10.77.0.1:2379".to_owned()],
            server: Some("http://10.77.0.1:2379".to_owned()),
            trouble: None,
            history: History::default(),
            ..full.store
        },
        network: full.network.map(|network| Network {
            ipv6: None,
            rejected: None,
            ..network
        }),
        lease: full.lease.map(|lease| Lease {
            subnet_v6: None,
            public_ipv6: None,
            trouble: None,
            ..lease
        }),
        underlay: full.underlay.map(|underlay| Underlay {
            ipv6: None,
            ..underlay
        }),
        devices: vec![device],
        firewall: full.firewall.map(|firewall| Firewall {
            programmed: 1,
            ..firewall
        }),
        kernel: Kernel {
            created: 12,
            changed: 0,
            removed: 0,
            failed: 0,
            failures: Vec::new(),
            ..full.kernel
        },
        docker: full.docker.map(|docker| Docker {
            addresses: vec!["10.5.34.1/24".parse().unwrap()],
            trouble: None,
            ..docker
        }),
        peers: vec![
            peer(1, 12),
            Peer {
                changed_time: Some(NOW - 30),
                ..peer(2, 13)
            },
            Peer {
                owner: None,
                since_time: NOW - 5 * DAY,
                ..peer(200, 114)
            },
        ],
        clock: Clock::default(),
        cloud: None,
        ..full
    }
}

/// Both IP versions, refused and failed peers, and many faults. One peer tries to send escape sequences to the
/// terminal.
pub(crate) fn degraded() -> Status {
    let full = full();
    let dual = |number: u8| Peer {
        subnet_v6: Some(format!("fd00:5:0:{number:x}::/64").parse().unwrap()),
        public_ipv6: Some(format!("fd77::{number:x}").parse().unwrap()),
        ..peer(number, number)
    };
    let peers = full.peers.iter().cloned().chain([
        dual(3),
        Peer {
            state: PeerState::Failed,
            reason: Some(
                "route 10.5.4.0/24 via 10.5.4.0 dev flannel.1 onlink: File exists (os error 17)"
                    .to_owned(),
            ),
            ..dual(4)
        },
        Peer {
            state: PeerState::Refused,
            owner: Some("機械\x1b[2J-Nürnberg\u{202e}".to_owned()),
            reason: Some("its backend is \"host-gw\x07\"".to_owned()),
            ..dual(5)
        },
    ]);
    Status {
        peers: peers
            .map(|peer| Peer {
                traffic: None,
                handshake_time: None,
                ..peer
            })
            .collect(),
        ..full
    }
}

/// WireGuard over IPv6, with counters.
pub(crate) fn wireguard() -> Status {
    let healthy = healthy();
    let peer = |number: u8, traffic: (u64, u64), handshake| Peer {
        subnet: None,
        subnet_v6: Some(format!("fd00:5:0:{number:x}::/64").parse().unwrap()),
        public_ip: None,
        public_ipv6: Some(format!("2001:db8:77::{number:x}").parse().unwrap()),
        backend: "wireguard".to_owned(),
        traffic: Some(Traffic {
            rx_bytes: traffic.0,
            tx_bytes: traffic.1,
            rx_packets: None,
            tx_packets: None,
        }),
        handshake_time: handshake,
        ..peer(number, number)
    };
    Status {
        network: healthy.network.map(|network| Network {
            ipv4: None,
            ipv6: Some("fd00:5::/48".parse().unwrap()),
            backend: "wireguard".to_owned(),
            mtu: 1420,
            ..network
        }),
        lease: healthy.lease.map(|lease| Lease {
            subnet: None,
            subnet_v6: Some("fd00:5:0:22::/64".parse().unwrap()),
            public_ip: None,
            public_ipv6: Some("2001:db8:77::22".parse().unwrap()),
            reservation: true,
            ttl_seconds: None,
            left_seconds: None,
            ..lease
        }),
        devices: vec![Device {
            kind: Some("wireguard".to_owned()),
            mtu: Some(1420),
            mac: None,
            ..device("flannel-wg-v6", 1 << 20, 1 << 21)
        }],
        peers: vec![
            peer(1, (1_234_567_890, 98_765_432), Some(NOW - 71)),
            peer(2, (0, 148), None),
        ],
        ..healthy
    }
}

/// Nothing is known yet.
pub(crate) fn joining() -> Status {
    let full = full();
    Status {
        time: NOW,
        store: Store {
            server: None,
            history: History::default(),
            ..full.store
        },
        kernel: Kernel {
            interval_seconds: 300,
            ..Kernel::default()
        },
        files: Files {
            written_time: None,
            ..full.files
        },
        ..Status::joining(
            healthy().agent,
            vec![Cause::new(
                Code::StoreUnreachable,
                "waiting to join: failed to read /coreos.com/network/config: etcd gave no answer within 5 s",
            )],
        )
    }
}

/// No agent runs, and the caller is unprivileged.
pub(crate) fn stopped() -> Status {
    let healthy = healthy();
    Status {
        agent: Agent {
            pid: 0,
            started_time: 0,
            ..healthy.agent
        },
        health: Health::new(
            State::Stopped,
            vec![
                Cause::new(
                    Code::NoAgent,
                    "no agent answers on /run/selvage/agent.sock (systemctl status selvage says why)",
                ),
                Cause::new(Code::NotVisible, "only root may read the firewall's rules"),
            ],
        ),
        store: Store {
            server: None,
            trouble: Some("not asked, as the agent does not run".to_owned()),
            ..healthy.store
        },
        lease: healthy.lease.map(|lease| Lease {
            held: false,
            ttl_seconds: None,
            left_seconds: None,
            trouble: Some("by the subnet file; whether the store still has it is not known, and nothing extends it".to_owned()),
            ..lease
        }),
        firewall: None,
        kernel: Kernel {
            interval_seconds: 300,
            ..Kernel::default()
        },
        peers: vec![
            Peer { owner: None, since_time: 0, ..peer(1, 12) },
            Peer {
                owner: None,
                since_time: 0,
                public_ip: None,
                state: PeerState::Failed,
                reason: Some("no neighbour entry for 10.5.2.0 on flannel.1".to_owned()),
                ..peer(2, 13)
            },
        ],
        ..healthy
    }
}

/// Compares a text with a committed file. `UPDATE_GOLDEN=1` writes the file instead; review the diff then.
pub(crate) fn compare_with_golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/telemetry/status/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{} differs.\n--- expected\n{golden}\n--- found\n{text}",
        path.display()
    );
}
