//! Machines in a directory: where a network is found, which of several counts, and what networkd gets of it.

mod arguments;
mod documents;
mod hostile;

use super::*;
use crate::appliance::metadata::tests::site_of_vmware;

/// A card with a static address, as netplan's documentation has it.
const NETPLAN: &str = "\
network:
  version: 2
  renderer: networkd
  ethernets:
    enp3s0:
      addresses: [10.10.10.2/24]
      routes: [{to: default, via: 10.10.10.1}]
";

/// A machine in a directory with these files, and what VMware's host says.
fn machine(files: &[(&str, &str)], guestinfo: &[(&str, &str)]) -> (tempfile::TempDir, Site) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let mut site = site_of_vmware(guestinfo);
    root.path().clone_into(&mut site.root);
    (root, site)
}

/// The files that networkd has, by name.
fn given(root: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(root.join(FILES)).into_iter().flatten();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let text = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect()
}

/// The error with its causes.
fn chain(error: &Error) -> String {
    crate::base::logging::chain(error)
}

const OF_FW_CFG: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/selvage/network/raw";
const OF_OPENSTACK: &str = "dev/disk/by-label/config-2/openstack/latest/network_data.json";
const OF_NOCLOUD: &str = "dev/disk/by-label/cidata/network-config";

/// A document of OpenStack's with one address.
const DATA: &str = r#"{"links": [{"id": "a", "type": "ovs", "ethernet_mac_address": "fa:16:3e:dd:50:9a"}],
    "networks": [{"link": "a", "type": "ipv4", "ip_address": "192.0.2.5", "netmask": "255.255.255.0"}]}"#;
/// A document of Proxmox VE's, likewise.
const CONFIG: &str = "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      \
                      mac_address: 'bc:24:11:00:00:01'\n      subnets:\n      - type: static\n        \
                      address: '198.51.100.7'\n        netmask: '255.255.255.0'\n";

#[test]
fn the_first_place_that_has_a_network_counts() {
    let kargs = (
        "guestinfo.afterburn.initrd.network-kargs",
        "no arguments at all",
    );
    let metadata = ("guestinfo.metadata", NETPLAN);
    let all = [
        (OF_FW_CFG, NETPLAN),
        (OF_OPENSTACK, DATA),
        (OF_NOCLOUD, CONFIG),
    ];
    for (platform, files, guestinfo, from, address) in [
        (
            "qemu",
            &all[..],
            &[kargs][..],
            "opt/selvage/network of QEMU's fw_cfg",
            "10.10.10.2/24",
        ),
        (
            "vmware",
            &all[1..],
            &[metadata],
            "network in VMware's guestinfo.metadata",
            "10.10.10.2/24",
        ),
        (
            "openstack",
            &all[1..],
            &[metadata],
            "openstack/latest/network_data.json on the disk labelled config-2",
            "192.0.2.5/24",
        ),
        // The drive is this machine's, whatever the kernel command line calls the platform.
        (
            "metal",
            &all[2..],
            &[],
            "network-config on the disk labelled cidata",
            "198.51.100.7/24",
        ),
    ] {
        let (root, site) = machine(files, guestinfo);
        // In the initrd, and in the system that it starts.
        for _ in 0..2 {
            let outcome = write(platform, &site).unwrap().unwrap();
            assert_eq!(outcome.from.as_deref(), Some(from));
            assert!(outcome.gives[0].ends_with(address), "{outcome}");
        }
        let files = given(root.path());
        let [(name, text)] = &files.into_iter().collect::<Vec<_>>()[..] else {
            panic!("{platform}: not one file");
        };
        assert_eq!(name, "72-platform-00.network");
        assert!(text.starts_with(&format!("# From {from}.\n")), "{text}");
        assert!(text.contains(&format!("\nAddress={address}\n")), "{text}");
    }
}

#[test]
fn a_file_that_is_the_same_is_not_written_again() {
    let (root, site) = machine(&[(OF_NOCLOUD, CONFIG)], &[]);
    write("proxmoxve", &site).unwrap();
    let path = root.path().join(FILES).join("72-platform-00.network");
    let before = fs::metadata(&path).unwrap();
    write("proxmoxve", &site).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
}

#[test]
fn files_of_an_earlier_document_go_and_those_of_others_stay() {
    let two = CONFIG.to_owned()
        + "    - type: physical\n      name: eth1\n      mac_address: 'bc:24:11:00:00:02'\n      \
           subnets:\n      - type: dhcp4\n";
    let (root, site) = machine(
        &[
            (OF_NOCLOUD, &two),
            ("run/systemd/network/70-enp0s2.network", "x"),
        ],
        &[],
    );
    write("proxmoxve", &site).unwrap();
    assert_eq!(given(root.path()).len(), 3);
    fs::write(root.path().join(OF_NOCLOUD), CONFIG).unwrap();
    write("proxmoxve", &site).unwrap();
    let names: Vec<_> = given(root.path()).into_keys().collect();
    assert_eq!(names, ["70-enp0s2.network", "72-platform-00.network"]);
    // A drive that asks for nothing more.
    fs::write(root.path().join(OF_NOCLOUD), "version: 1\nconfig: []\n").unwrap();
    assert_eq!(write("proxmoxve", &site).unwrap(), None);
    assert_eq!(given(root.path()).len(), 1);
}

#[test]
fn the_kernel_command_line_counts_more() {
    let (root, site) = machine(
        &[
            ("proc/cmdline", "quiet ip=dhcp\n"),
            (OF_FW_CFG, NETPLAN),
            (OF_OPENSTACK, "{"),
        ],
        &[],
    );
    assert_eq!(write("qemu", &site).unwrap(), None);
    assert!(given(root.path()).is_empty());
    // Neither of these gives an address.
    for line in ["zip=1 ipv6.disable=0\n", "nameserver=10.0.0.1\n"] {
        fs::write(root.path().join("proc/cmdline"), line).unwrap();
        assert!(write("qemu", &site).unwrap().is_some(), "{line}");
    }
}

#[test]
fn where_there_is_nothing_or_nothing_of_use_dhcp_remains() {
    for (files, guestinfo) in [
        (&[][..], &[][..]),
        (&[(OF_NOCLOUD, "")], &[]),
        (&[(OF_NOCLOUD, "{}")], &[]),
        // cloud-init's documentation of how its network is switched off.
        (&[(OF_NOCLOUD, "network:\n  config: disabled\n")], &[]),
        // Proxmox VE's for a guest without `ipconfig0`.
        (
            &[(
                OF_NOCLOUD,
                "version: 1\nconfig:\n    - type: nameserver\n      address:\n      - '1.1.1.1'\n",
            )],
            &[],
        ),
        (&[("dev/disk/by-label/cidata/meta-data", "a: b")], &[]),
        (
            &[(
                "dev/disk/by-label/config-2/openstack/latest/meta_data.json",
                "{}",
            )],
            &[],
        ),
        (&[(OF_OPENSTACK, "{}")], &[]),
        (&[], &[("guestinfo.metadata", "local-hostname: cloud-vm\n")]),
    ] {
        let (root, site) = machine(files, guestinfo);
        assert_eq!(write("vmware", &site).unwrap(), None, "{files:?}");
        assert!(given(root.path()).is_empty());
    }
}

#[test]
fn what_cannot_be_used_names_place_and_key_and_networkd_has_nothing_of_it() {
    let large = "#".repeat(LARGEST + 1);
    for (path, text, expected) in [
        (
            OF_FW_CFG,
            &*large,
            "opt/selvage/network of QEMU's fw_cfg: it is larger than 256.0 KiB",
        ),
        (
            OF_FW_CFG,
            "version: 3",
            "fw_cfg: version is \"3\": expected 1 or 2",
        ),
        (OF_FW_CFG, "ethernets: {}", "fw_cfg: version is missing"),
        (OF_FW_CFG, "a: [", "fw_cfg: bad YAML"),
        (OF_FW_CFG, "{", "fw_cfg: bad JSON"),
        (
            OF_NOCLOUD,
            "version: 2\nethernets: {eth0: {mtu: 12}}",
            "network-config on the disk labelled cidata: ethernets.eth0.mtu is \"12\": expected a number of bytes from 68 to 65535",
        ),
        (
            OF_OPENSTACK,
            r#"{"links": [{"id": "a", "type": "bond", "bond_links": []}]}"#,
            "network_data.json on the disk labelled config-2: links.0 is a bond: only cards themselves are set up",
        ),
        // Proxmox VE's `citype: configdrive2`.
        (
            "dev/disk/by-label/config-2/openstack/latest/meta_data.json",
            r#"{"uuid": "x", "network_config": { "content_path": "/content/0000" }}"#,
            "openstack/content/0000 on the disk labelled config-2: it is a file for /etc/network/interfaces",
        ),
    ] {
        let (root, site) = machine(&[(path, text)], &[]);
        let error = chain(&write("qemu", &site).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(given(root.path()).is_empty());
    }
}

#[test]
fn vmwares_network_may_be_a_text_with_an_encoding() {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD.encode(NETPLAN);
    let of = |encoding: &str, network: &str| {
        format!("instance-id: cloud-vm\nnetwork: {network}\n{encoding}")
    };
    for (metadata, is_good) in [
        (of("network.encoding: base64\n", &base64), true),
        (of("network.encoding: b64\n", &base64), true),
        (of("network.encoding: gzip+base64\n", &base64), false),
        (of("", &base64), false),
    ] {
        let (root, site) = machine(&[], &[("guestinfo.metadata", &metadata)]);
        let written = write("vmware", &site);
        assert_eq!(written.is_ok(), is_good, "{written:?}");
        assert_eq!(given(root.path()).len(), usize::from(is_good));
        if let Err(error) = written {
            let text = chain(&error);
            assert!(
                text.starts_with("network in VMware's guestinfo.metadata: "),
                "{text}"
            );
        }
    }
}

#[test]
fn the_outcome_is_kept_and_told_once() {
    let (root, site) = machine(&[(OF_NOCLOUD, CONFIG)], &[]);
    assert_eq!(Outcome::of_this_boot(root.path()), None);
    let outcome = write("proxmoxve", &site).unwrap().unwrap();
    assert!(!outcome.is_lacking());
    assert!(outcome.keep(root.path()).unwrap());
    assert!(!outcome.keep(root.path()).unwrap());
    assert_eq!(Outcome::of_this_boot(root.path()), Some(outcome.clone()));
    assert_eq!(
        outcome.to_string(),
        "from network-config on the disk labelled cidata; bc:24:11:00:00:01 198.51.100.7/24"
    );
    let refused = Outcome {
        refused: Some("x\u{1b}[2J".to_owned()),
        ..Outcome::default()
    };
    assert!(refused.is_lacking() && refused.keep(root.path()).unwrap());
    assert_eq!(
        refused.to_string(),
        "not that of the platform: x\u{fffd}[2J"
    );
}
