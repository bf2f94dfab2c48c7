use super::*;

/// A machine: its platform, its hypervisor, and its SMBIOS.
type Machine = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// Machines as `dmidecode` or `/sys/class/dmi/id` shows them, retyped from public places.
const MACHINES: &[Machine] = &[
    // dmesg of a t3.micro in a bug report of the kernel's: "DMI: Amazon EC2 t3.micro/, BIOS 1.0 10/16/2017".
    (
        "aws",
        "kvm",
        &[
            ("sys_vendor", "Amazon EC2"),
            ("product_name", "t3.micro"),
            ("bios_vendor", "Amazon EC2"),
            ("chassis_asset_tag", "Amazon EC2"),
        ],
    ),
    // AWS's documentation, "Identify EC2 instances": Xen machines.
    (
        "aws",
        "xen",
        &[
            ("sys_vendor", "Xen"),
            ("product_name", "HVM domU"),
            ("bios_vendor", "Xen"),
            ("bios_version", "4.11.amazon"),
        ],
    ),
    // Xen at home, as XCP-ng shows it: no cloud.
    (
        "metal",
        "xen",
        &[
            ("sys_vendor", "Xen"),
            ("product_name", "HVM domU"),
            ("bios_version", "4.13.5-9"),
        ],
    ),
    (
        "gcp",
        "kvm",
        &[
            ("sys_vendor", "Google"),
            ("product_name", "Google Compute Engine"),
            ("bios_vendor", "Google"),
        ],
    ),
    // Azure and Hyper-V differ in one field.
    (
        "azure",
        "microsoft",
        &[
            ("sys_vendor", "Microsoft Corporation"),
            ("product_name", "Virtual Machine"),
            ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
        ],
    ),
    (
        "hyperv",
        "microsoft",
        &[
            ("sys_vendor", "Microsoft Corporation"),
            ("product_name", "Virtual Machine"),
            ("product_version", "Hyper-V UEFI Release v4.1"),
            ("chassis_asset_tag", "5249-0211-9893-6519-6478-1297-63"),
        ],
    ),
    // A laptop of the same maker.
    (
        "metal",
        "",
        &[
            ("sys_vendor", "Microsoft Corporation"),
            ("product_name", "Surface Pro 7"),
        ],
    ),
    (
        "aliyun",
        "kvm",
        &[
            ("sys_vendor", "Alibaba Cloud"),
            ("product_name", "Alibaba Cloud ECS"),
        ],
    ),
    // dmidecode in an issue of netdata's: product "vServer", version "20171111".
    (
        "hetzner",
        "kvm",
        &[
            ("sys_vendor", "Hetzner"),
            ("product_name", "vServer"),
            ("product_version", "20171111"),
            ("bios_vendor", "Hetzner"),
        ],
    ),
    (
        "digitalocean",
        "kvm",
        &[
            ("sys_vendor", "DigitalOcean"),
            ("product_name", "Droplet"),
            ("product_version", "20171212"),
        ],
    ),
    (
        "vultr",
        "kvm",
        &[("sys_vendor", "Vultr"), ("product_name", "VHP")],
    ),
    (
        "scaleway",
        "kvm",
        &[("sys_vendor", "Scaleway"), ("product_name", "SCW-DEV1-S")],
    ),
    (
        "upcloud",
        "kvm",
        &[("sys_vendor", "UpCloud"), ("product_name", "Server")],
    ),
    (
        "akamai",
        "kvm",
        &[
            ("sys_vendor", "Linode"),
            ("product_name", "Compute Instance"),
        ],
    ),
    (
        "akamai",
        "kvm",
        &[
            ("sys_vendor", "Akamai"),
            ("product_name", "Compute Instance"),
        ],
    ),
    (
        "exoscale",
        "kvm",
        &[
            ("sys_vendor", "Exoscale"),
            ("product_name", "Exoscale Compute Platform"),
        ],
    ),
    (
        "oraclecloud",
        "kvm",
        &[
            ("sys_vendor", "QEMU"),
            ("product_name", "Standard PC (i440FX + PIIX, 1996)"),
            ("chassis_asset_tag", "OracleCloud.com"),
        ],
    ),
    (
        "ibmcloud",
        "kvm",
        &[
            ("sys_vendor", "QEMU"),
            ("chassis_vendor", "IBM:Cloud Compute Server 1.0:cx2-2x4"),
        ],
    ),
    (
        "openstack",
        "kvm",
        &[
            ("sys_vendor", "OpenStack Foundation"),
            ("product_name", "OpenStack Nova"),
            ("product_version", "27.1.1"),
        ],
    ),
    (
        "openstack",
        "kvm",
        &[("sys_vendor", "RDO"), ("product_name", "OpenStack Compute")],
    ),
    // cloud-init's tests of ds-identify.
    (
        "openstack",
        "xen",
        &[
            ("sys_vendor", "Xen"),
            ("chassis_asset_tag", "OpenTelekomCloud"),
        ],
    ),
    (
        "cloudstack",
        "kvm",
        &[
            ("sys_vendor", "Apache Software Foundation"),
            ("product_name", "CloudStack KVM Hypervisor"),
        ],
    ),
    (
        "nutanix",
        "kvm",
        &[("sys_vendor", "Nutanix"), ("product_name", "AHV")],
    ),
    (
        "kubevirt",
        "kvm",
        &[
            ("sys_vendor", "KubeVirt"),
            ("product_name", "None"),
            ("product_family", "KubeVirt"),
        ],
    ),
    (
        "vmware",
        "unknown",
        &[
            ("sys_vendor", "VMware, Inc."),
            ("product_name", "VMware7,1"),
            ("bios_vendor", "VMware, Inc."),
        ],
    ),
    (
        "virtualbox",
        "kvm",
        &[
            ("sys_vendor", "innotek GmbH"),
            ("product_name", "VirtualBox"),
            ("board_vendor", "Oracle Corporation"),
        ],
    ),
    // A forum's dmidecode of a guest with OVMF.
    (
        "proxmoxve",
        "kvm",
        &[
            ("sys_vendor", "QEMU"),
            ("product_name", "Standard PC (Q35 + ICH9, 2009)"),
            ("bios_vendor", "Proxmox distribution of EDK II"),
            ("bios_version", "4.2025.02"),
        ],
    ),
    (
        "qemu",
        "unknown",
        &[
            ("sys_vendor", "QEMU"),
            ("product_name", "Standard PC (Q35 + ICH9, 2009)"),
            ("bios_vendor", "EFI Development Kit II / OVMF"),
        ],
    ),
    (
        "qemu",
        "kvm",
        &[("sys_vendor", "Red Hat"), ("product_name", "KVM")],
    ),
    // Hetzner's dedicated servers are other makers' machines.
    (
        "metal",
        "",
        &[
            ("sys_vendor", "FUJITSU"),
            ("product_name", "D3417-B2"),
            ("bios_vendor", "FUJITSU // American Megatrends Inc."),
        ],
    ),
    (
        "metal",
        "",
        &[
            ("sys_vendor", "Supermicro"),
            ("product_name", "SYS-5039MC-H8TRF"),
            ("chassis_asset_tag", "To be filled by O.E.M."),
        ],
    ),
    ("metal", "", &[]),
    ("metal", "unknown", &[]),
    ("qemu", "kvm", &[]),
];

fn facts(hypervisor: &str, smbios: &[(&str, &str)]) -> Facts {
    let field = |(name, value): &(&str, &str)| {
        assert!(facts::SMBIOS.contains(name), "{name} is not read");
        ((*name).to_owned(), (*value).to_owned())
    };
    Facts {
        smbios: smbios.iter().map(field).collect(),
        hypervisor: (!hypervisor.is_empty()).then(|| hypervisor.to_owned()),
        ..Facts::default()
    }
}

#[test]
fn platforms_are_known_by_their_firmware() {
    for (platform, hypervisor, smbios) in MACHINES {
        let found = detect(&facts(hypervisor, smbios));
        assert_eq!(found.id, *platform, "{smbios:?}: {}", found.reason);
    }
}

/// The units of keys and check-in have conditions on SMBIOS, so that other machines start no program.
#[test]
fn units_start_where_the_platform_has_what_they_fetch() {
    let unit = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../units/system");
        std::fs::read_to_string(path.join(name)).unwrap()
    };
    let starts = |unit: &str, smbios: &[(&str, &str)]| {
        unit.lines().any(|line| {
            let Some(condition) = line.strip_prefix("ConditionFirmware=|smbios-field(") else {
                return false;
            };
            let (field, rest) = condition.split_once(' ').unwrap();
            let (operator, value) = rest.split_once(' ').unwrap();
            let value = value.strip_suffix(')').unwrap().trim_matches('"');
            let known = smbios.iter().find(|(name, _)| *name == field);
            known.is_some_and(|(_, is)| match operator {
                "=" => *is == value,
                "$=" => is.starts_with(value.strip_suffix('*').unwrap()),
                _ => panic!("{operator}"),
            })
        })
    };
    let names = unit("selvage-hostname.service");
    let keys = unit("coreos-metadata-sshkeys@.service");
    let check_in = unit("selvage-check-in.service");
    for (platform, _, smbios) in MACHINES {
        let has_keys = crate::appliance::metadata::has_keys(platform);
        // The older machines of EC2 have nothing that a condition of systemd's can tell.
        let is_xen_of_ec2 = *platform == "aws" && smbios[0].1 == "Xen";
        let expected = has_keys && !is_xen_of_ec2 && *platform != "proxmoxve";
        assert_eq!(starts(&keys, smbios), expected, "{platform} {smbios:?}");
        if starts(&names, smbios) {
            assert!(has_keys, "{platform} has no metadata: {smbios:?}");
        }
        let wants = ["azure", "scaleway"].contains(platform);
        assert_eq!(starts(&check_in, smbios), wants, "{platform} {smbios:?}");
    }
    let has_label = |unit: &str, label: &str| {
        let line = format!("ConditionPathExists=|/dev/disk/by-label/{label}");
        unit.lines().any(|l| l == line)
    };
    for (label, has_name) in [
        ("config-2", false),
        ("CONFIG-2", false),
        ("cidata", true),
        ("CIDATA", true),
    ] {
        assert!(has_label(&keys, label), "{label}");
        assert_eq!(has_label(&names, label), has_name, "{label}");
    }
    for platform in ["proxmoxve", "packet"] {
        let line = format!("ConditionKernelCommandLine=|ignition.platform.id={platform}");
        assert!(keys.lines().any(|l| l == line), "{platform}");
    }
}

#[test]
fn disks_tell_what_a_bare_qemu_does_not() {
    let qemu = [("sys_vendor", "QEMU")];
    for (label, platform) in [
        ("config-2", "openstack"),
        ("CONFIG-2", "openstack"),
        ("cidata", "proxmoxve"),
        ("CIDATA", "proxmoxve"),
        ("IGNITION", "qemu"),
    ] {
        let mut facts = facts("kvm", &qemu);
        facts.labels.insert(label.to_owned());
        assert_eq!(detect(&facts).id, platform, "{label}");
        // A cloud that uses such disks, too.
        let nutanix = [("sys_vendor", "Nutanix")];
        facts.smbios = self::facts("kvm", &nutanix).smbios;
        assert_eq!(detect(&facts).id, "nutanix", "{label}");
    }
}

#[test]
fn devices_tell_a_machine_without_smbios_only_where_there_is_a_hypervisor() {
    for (vendor, platform) in [
        ("0x1af4", "qemu"),
        ("0x15ad", "vmware"),
        ("0x80ee", "virtualbox"),
        ("0x8086", "metal"),
    ] {
        let mut facts = facts("unknown", &[]);
        facts.pci.insert(vendor.to_owned());
        assert_eq!(detect(&facts).id, platform, "{vendor}");
        facts.hypervisor = None;
        assert_eq!(detect(&facts).id, "metal", "{vendor}");
    }
}

#[test]
fn what_the_command_line_or_a_config_of_qemus_says_counts_most() {
    let mut facts = facts("kvm", &[("sys_vendor", "Hetzner")]);
    facts.fw_cfg = true;
    assert_eq!(detect(&facts).id, "qemu");
    facts.argument = Some(("flatcar.oem.id".into(), "ec2".into()));
    let found = detect(&facts);
    assert_eq!(found.id, "aws");
    assert_eq!(
        found.reason,
        "flatcar.oem.id=ec2 on the kernel command line"
    );
    // Ignition has the last word on a name that nobody knows.
    facts.argument = Some(("ignition.platform.id".into(), "moon".into()));
    assert_eq!(detect(&facts).id, "moon");
}

#[test]
fn the_reason_names_the_fact() {
    let found = detect(&facts("kvm", &[("sys_vendor", "Hetzner")]));
    assert_eq!(found.reason, "SMBIOS sys_vendor is \"Hetzner\"");
    let hyperv = [
        ("sys_vendor", "Microsoft Corporation"),
        ("product_name", "Virtual Machine"),
    ];
    assert_eq!(
        detect(&facts("", &hyperv)).reason,
        "SMBIOS sys_vendor is \"Microsoft Corporation\" and SMBIOS product_name is \"Virtual Machine\""
    );
}
