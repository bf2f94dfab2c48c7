//! Providers that attach a drive, beside a service or alone: OpenStack, Proxmox VE; and a CD of somebody's own.

use anyhow::Result;
use serde_json::json;

use super::{ADDRESS, BY_HTTP, Cloud, End, Files, Given, Up, files, with_key};
use crate::drive::{Drive, Kind};

const NOVA: &[&str] = &["type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova"];
/// As Proxmox VE's machines are with SeaBIOS: only the drive tells what they run on.
const PLAIN: &[&str] = &["type=1,manufacturer=QEMU,product=Standard PC (Q35 + ICH9,, 2009)"];

const IS_NOVA: &str = "platform: openstack (SMBIOS product_name is \"OpenStack Nova\")";
const IS_PROXMOX: &str = "platform: proxmoxve (a disk has the label cidata)";

/// These machines.
pub(super) const CLOUDS: &[Cloud] = &[
    Cloud {
        case: "platforms::openstack_by_http",
        name: "openstack",
        smbios: NOVA,
        given: openstack_service,
        sata: false,
        ends: End::Up(Up {
            shows: &[IS_NOVA, BY_HTTP, "COREOS_OPENSTACK_IPV4_LOCAL=172.16.0.15"],
            prints: &[("stat -c %F /etc/from-http", "regular empty file")],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::openstack_by_drive",
        name: "openstack-drive",
        smbios: NOVA,
        given: openstack_disk,
        sata: false,
        ends: End::Up(Up {
            shows: &[
                IS_NOVA,
                "source: the disk labelled config-2",
                "COREOS_OPENSTACK_IPV4_LOCAL=172.16.0.15",
            ],
            prints: &[("stat -c %F /etc/from-drive", "regular empty file")],
            reports: &[],
        }),
    },
    // Nobody knows beforehand which of them answers first; it must be one of them, and not a part of each.
    Cloud {
        case: "platforms::openstack_by_both_at_once",
        name: "openstack-both",
        smbios: NOVA,
        given: openstack_both,
        sata: false,
        ends: End::Up(Up {
            shows: &[IS_NOVA, "COREOS_OPENSTACK_IPV4_LOCAL=172.16.0.15"],
            prints: &[
                ("ls /etc/from-drive /etc/from-http 2>/dev/null | wc -l", "1"),
                (
                    "sudo selvage metadata show | grep -cxE 'source: (the disk labelled config-2|http://169.254.169.254)'",
                    "1",
                ),
                ("findmnt -rno TARGET /dev/sr0", ""),
            ],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::proxmox_by_its_drive",
        name: "proxmox",
        smbios: PLAIN,
        given: proxmox,
        sata: false,
        ends: End::Up(Up {
            shows: &[
                IS_PROXMOX,
                "source: the disk labelled cidata",
                "AFTERBURN_PROXMOXVE_IPV4=172.16.0.15",
            ],
            prints: &[
                ("stat -c %F /etc/from-user-data", "regular empty file"),
                ("findmnt -rno TARGET /dev/sr0", ""),
            ],
            reports: &[],
        }),
    },
    // Its keys and names are used, and the config is in the vendor data (`cicustom`). No key is in there.
    Cloud {
        case: "platforms::proxmox_beside_its_own_cloud_config",
        name: "proxmox-own",
        smbios: PLAIN,
        given: proxmox_own,
        sata: true,
        ends: End::Up(Up {
            shows: &[IS_PROXMOX, "source: the disk labelled cidata"],
            prints: &[
                ("stat -c %F /etc/from-vendor-data", "regular empty file"),
                ("cat /etc/hostname", "guest-101"),
            ],
            reports: &[],
        }),
    },
    Cloud {
        case: "platforms::config_on_a_labelled_cd",
        name: "labelled",
        smbios: &["type=1,manufacturer=Example,product=Server"],
        given: labelled,
        sata: false,
        ends: End::Up(Up {
            shows: &["source: none", "SELVAGE_METADATA_PLATFORM=qemu"],
            prints: &[
                ("stat -c %F /etc/from-cd", "regular empty file"),
                ("findmnt -rno TARGET /dev/sr0", ""),
            ],
            reports: &[],
        }),
    },
];

/// By OpenStack's "Metadata" (nova, user guide), which has EC2's documents as well.
fn openstack_service(public_key: &str) -> Result<Given> {
    let uuid = "d8e02d56-2648-49a3-bf97-6be8f1204f38";
    let served = files(&[
        (
            "openstack/latest/user_data",
            with_key(public_key, "/etc/from-http"),
        ),
        (
            "openstack/2012-08-10/meta_data.json",
            json!({"uuid": uuid, "hostname": "test.novalocal"}).to_string(),
        ),
        ("latest/meta-data/local-ipv4", ADDRESS.to_owned()),
        ("latest/meta-data/hostname", "test.novalocal".to_owned()),
    ]);
    Ok(Given {
        served,
        ..Given::default()
    })
}

/// By OpenStack's "Config drives" (nova, administrator guide).
fn on_config_drive(public_key: &str) -> Files {
    files(&[
        (
            "openstack/latest/user_data",
            with_key(public_key, "/etc/from-drive"),
        ),
        (
            "openstack/latest/meta_data.json",
            json!({"uuid": "83679162-1378-4288-a2d4-70e13ec132aa", "hostname": "test.novalocal"})
                .to_string(),
        ),
        (
            "ec2/latest/meta-data.json",
            json!({"instance-id": "i-022da7a2", "local-ipv4": ADDRESS}).to_string(),
        ),
    ])
}

fn config_drive(public_key: &str, kind: Kind) -> Option<Drive> {
    Some(Drive {
        kind,
        label: "config-2",
        files: on_config_drive(public_key),
    })
}

fn openstack_disk(public_key: &str) -> Result<Given> {
    Ok(Given {
        drive: config_drive(public_key, Kind::Disk),
        ..Given::default()
    })
}

fn openstack_both(public_key: &str) -> Result<Given> {
    Ok(Given {
        drive: config_drive(public_key, Kind::Cd),
        ..openstack_service(public_key)?
    })
}

/// What Proxmox VE writes of the network (`PVE::QemuServer::Cloudinit`, `nocloud_network`): the address that DHCP gives,
/// too, for the card that the machine has.
const NETWORK: &str = "\
version: 1
config:
    - type: physical
      name: eth0
      mac_address: '52:54:00:12:34:56'
      subnets:
      - type: static
        address: '172.16.0.15'
        netmask: '248.0.0.0'
        gateway: '172.16.0.2'
    - type: nameserver
      address:
      - '172.16.0.3'
      search:
      - 'example.org'
";

/// What it writes of the user (`qm cloudinit dump 101 user`).
const OWN: &str = "\
#cloud-config
hostname: guest-101
manage_etc_hosts: true
fqdn: guest-101.example.org
user: core
ssh_authorized_keys:
  - PUBLIC-KEY
chpasswd:
  expire: False
users:
  - default
package_upgrade: true
";

fn no_cloud(documents: &[(&str, String)]) -> Given {
    let mut on_it = files(&[
        (
            "meta-data",
            "instance-id: 1f5b58a94c1aa2a2ae5c5f3a1d58a8ac0f1a9c6e\n".to_owned(),
        ),
        ("network-config", NETWORK.to_owned()),
    ]);
    on_it.extend(files(documents));
    Given {
        drive: Some(Drive {
            kind: Kind::Cd,
            label: "cidata",
            files: on_it,
        }),
        ..Given::default()
    }
}

fn proxmox(public_key: &str) -> Result<Given> {
    let config = with_key(public_key, "/etc/from-user-data");
    Ok(no_cloud(&[("user-data", config)]))
}

fn proxmox_own(public_key: &str) -> Result<Given> {
    Ok(no_cloud(&[
        ("user-data", OWN.replace("PUBLIC-KEY", public_key)),
        ("vendor-data", super::config("/etc/from-vendor-data")),
    ]))
}

fn labelled(public_key: &str) -> Result<Given> {
    Ok(Given {
        drive: Some(Drive {
            kind: Kind::Cd,
            label: "IGNITION",
            files: files(&[("ignition/config.ign", with_key(public_key, "/etc/from-cd"))]),
        }),
        ..Given::default()
    })
}
