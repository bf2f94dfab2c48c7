//! Machines whose platform gives them a network: by QEMU's fw_cfg, on a drive of OpenStack's, on one of Proxmox VE's. Nobody
//! tells them of another: the configuration is fetched with that address, and the running system has it at each boot.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{configuration, has_the_address, no_dhcp_was_used, only};
use crate::{
    cli::Common,
    cluster::{Cluster, Node, Options},
    description,
    drive::{Drive, Kind},
    host::Host,
    progress::Progress,
    suite::{Names, Suite},
};

/// The cases here; all are too long for every change.
pub(super) const CASES: Names = &[
    "initrd_network::network_by_fw_cfg",
    "initrd_network::network_by_openstack_drive",
    "initrd_network::network_by_proxmox_drive",
    "initrd_network::network_with_a_bond_is_told_and_dhcp_used",
];

/// What QEMU calls its card, unless told otherwise.
const MAC: &str = "52:54:00:12:34:56";

/// The prefixes are none that QEMU gives by DHCP, so each address can only be from here. The cards are the first ones
/// behind the disks on the machine's PCI bus.
const BY_FW_CFG: &str = "\
network:
  version: 2
  ethernets:
    enp0s2:
      addresses: [10.0.2.15/25]
      routes: [{to: default, via: 10.0.2.2}]
      nameservers: {addresses: [10.0.2.3]}
";
const BOND: &str = "\
version: 2
ethernets: {enp0s2: {}}
bonds: {bond0: {interfaces: [enp0s2], addresses: [10.0.2.15/25]}}
";

/// A machine.
struct Given {
    case: &'static str,
    name: &'static str,
    /// What SMBIOS says, and where its service is; none: it is a machine of QEMU's.
    cloud: Option<&'static [&'static str]>,
    kernel_arguments: &'static str,
    prepare: fn(&mut Node),
    /// The card, its address and its name server.
    expected: [&'static str; 3],
    /// Where `selvage metadata show` has the network from.
    from: &'static str,
}

const OF_QEMU: &str = "ignition.config.url=http://10.0.2.4/elsewhere.ign";
const OF_CLOUD: &str = "ignition.config.url=http://169.254.169.254/elsewhere.ign";

const MACHINES: [Given; 4] = [
    Given {
        case: CASES[0],
        name: "given-fw-cfg",
        cloud: None,
        kernel_arguments: OF_QEMU,
        prepare: |node| node.network = Some(BY_FW_CFG.into()),
        expected: ["enp0s2", "10.0.2.15/25", "10.0.2.3"],
        from: "from opt/selvage/network of QEMU's fw_cfg; enp0s2 10.0.2.15/25",
    },
    Given {
        case: CASES[1],
        name: "given-openstack",
        cloud: Some(&["type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova"]),
        kernel_arguments: OF_CLOUD,
        prepare: |node| node.drive = Some(openstack_drive()),
        expected: ["enp0s3", "172.16.0.15/12", "172.16.0.3"],
        from: "from openstack/latest/network_data.json on the disk labelled config-2; 52:54:00:12:34:56 172.16.0.15/12",
    },
    Given {
        case: CASES[2],
        name: "given-proxmox",
        // As Proxmox VE's machines without UEFI: only the drive tells.
        cloud: Some(&["type=1,manufacturer=QEMU"]),
        kernel_arguments: OF_CLOUD,
        prepare: |node| node.drive = Some(proxmox_drive()),
        expected: ["enp0s2", "172.16.0.15/12", "172.16.0.3"],
        from: "from network-config on the disk labelled cidata; 52:54:00:12:34:56 172.16.0.15/12",
    },
    Given {
        case: CASES[3],
        name: "given-bond",
        cloud: None,
        kernel_arguments: OF_QEMU,
        prepare: |node| node.network = Some(BOND.into()),
        // What DHCP gives.
        expected: ["enp0s2", "10.0.2.15/24", ""],
        from: "not that of the platform: opt/selvage/network of QEMU's fw_cfg: bonds.bond0 is a bond: ",
    },
];

fn openstack_drive() -> Drive {
    let network = json!({
        "links": [{"ethernet_mac_address": MAC, "id": "tapcd9f6d46-4a", "mtu": null, "type": "ovs",
                   "vif_id": "cd9f6d46-4a3a-43ab-a466-994af9db96fc"}],
        "networks": [{"id": "network0", "link": "tapcd9f6d46-4a", "type": "ipv4", "ip_address": "172.16.0.15",
                      "netmask": "255.240.0.0", "network_id": "99e88329-f20d-4741-9593-25bf07847b16",
                      "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "172.16.0.2"}]}],
        "services": [{"address": "172.16.0.3", "type": "dns"}],
    });
    let metadata =
        json!({"uuid": "83679162-1378-4288-a2d4-70e13ec132aa", "hostname": "test.novalocal"});
    let files = [
        ("openstack/latest/network_data.json", network),
        ("openstack/latest/meta_data.json", metadata),
    ];
    Drive {
        kind: Kind::Disk,
        label: "config-2",
        files: files
            .map(|(name, contents)| (name.to_owned(), contents.to_string().into_bytes()))
            .into(),
    }
}

/// What `PVE/QemuServer/Cloudinit.pm` writes, with its own cloud-config, which is no configuration for us.
fn proxmox_drive() -> Drive {
    let network = format!(
        "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: '{MAC}'\n      subnets:\n      \
         - type: static\n        address: '172.16.0.15'\n        netmask: '255.240.0.0'\n        gateway: \
         '172.16.0.2'\n    - type: nameserver\n      address:\n      - '172.16.0.3'\n"
    );
    let files = [
        ("network-config", &*network),
        ("meta-data", "instance-id: 5e1bfb8ad4b3b5a6a1e2\n"),
        (
            "user-data",
            "#cloud-config\nhostname: given-proxmox\nmanage_etc_hosts: true\n",
        ),
        ("vendor-data", ""),
    ];
    Drive {
        kind: Kind::Cd,
        label: "cidata",
        files: files
            .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
            .into(),
    }
}

/// Boots the machines of the wanted cases, one after the other, and runs the cases.
///
/// # Errors
/// When a machine cannot be started.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
) -> Result<()> {
    for given in &MACHINES {
        if !suite.wants(given.case) {
            continue;
        }
        let progress = suite.progress;
        progress.step(format!(
            "boot a machine whose platform gives it a network ({})",
            given.name
        ));
        let mut cluster = start(given, host, common, dir).await?;
        suite
            .case(given.case, &mut cluster, async |cluster| {
                look(given, cluster, progress).await
            })
            .await;
        cluster.discard();
    }
    Ok(())
}

async fn start(given: &Given, host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = given.name.into();
        node.served = vec![("elsewhere.ign".into(), configuration(host).into_bytes())];
        (given.prepare)(node);
    }
    let options = Options {
        alone: true,
        cloud: given.cloud,
        kernel_arguments: given.kernel_arguments,
        ..Options::default()
    };
    Cluster::start(host, &dir.join(given.name), nodes, options).await
}

/// That anybody can log in shows that the configuration was fetched, with the address that the initrd had.
async fn look(given: &Given, cluster: &mut Cluster, progress: &Progress) -> Result<()> {
    let machine = only(cluster)?;
    machine.wait_for_ssh(progress).await?;
    let state = machine.settle(progress).await?;
    ensure!(state == "running", "the boot is {state:?}");
    let refused = given.case == CASES[3];
    // Once on the first boot, and once on a later one, whose initrd has no network.
    for is_later in [false, true] {
        if is_later {
            machine.reboot().await?;
            machine.wait_for_ssh(progress).await?;
        }
        let [card, address, server] = given.expected;
        if refused {
            let said = machine
                .ssh
                .run(&format!("ip -4 -o address show scope global dev {card}"))
                .await?;
            ensure!(said.contains(address), "no address of DHCP's: {said:?}");
        } else {
            has_the_address(machine, card, address, server).await?;
            // A CD may come after networkd has started, which then takes the address up a moment later.
            if !is_later || given.case != CASES[2] {
                no_dhcp_was_used(machine, card).await?;
            }
        }
        let shown = machine.ssh.run("sudo selvage metadata show").await?;
        let expected = format!("network: {}", given.from);
        ensure!(
            shown.lines().any(|line| line.starts_with(&expected)),
            "`selvage metadata show` has no {expected:?}: {shown}"
        );
        let told = machine
            .console
            .text()
            .contains(&format!("Network: {}", given.from));
        ensure!(
            told == refused,
            "on the console the network is told: {told}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use selvage::appliance::metadata::static_network::{Form, parse};

    use super::*;
    use crate::serve;

    #[test]
    fn machines_ask_where_the_file_is_served() {
        assert!(OF_QEMU.contains(&format!("http://{}/elsewhere.ign", serve::ADDRESS)));
        assert!(OF_CLOUD.contains(&format!("http://{}/elsewhere.ign", serve::METADATA_ADDRESS)));
        let cases: Vec<_> = MACHINES.iter().map(|given| given.case).collect();
        assert_eq!(cases, CASES);
    }

    #[test]
    fn documents_mean_what_the_cases_expect() {
        let document = |drive: Drive| drive.files.into_iter().next().unwrap().1;
        for (form, bytes, given) in [
            (
                Form::NetworkConfig,
                BY_FW_CFG.as_bytes().to_vec(),
                &MACHINES[0],
            ),
            (Form::NetworkData, document(openstack_drive()), &MACHINES[1]),
            (Form::NetworkConfig, document(proxmox_drive()), &MACHINES[2]),
        ] {
            let network = parse(form, &bytes).unwrap();
            let [(_, text)] = &network.files("a test")[..] else {
                panic!("{}: not one card", given.name);
            };
            let [_, address, server] = given.expected;
            for line in [format!("Address={address}"), format!("DNS={server}")] {
                assert!(text.lines().any(|is| is == line), "no {line} in {text}");
            }
            assert!(network.left_out.is_empty());
        }
        let error = parse(Form::NetworkConfig, BOND.as_bytes()).unwrap_err();
        assert!(MACHINES[3].from.contains("bonds.bond0 is a bond: "));
        assert!(error.to_string().starts_with("bonds.bond0 is a bond: "));
    }
}
