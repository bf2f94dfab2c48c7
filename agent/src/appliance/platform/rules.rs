//! Which facts mean which platform.
//!
//! From the special to the general: a cloud says who it is in SMBIOS; a disk with a config tells what wrote it; a bare
//! hypervisor is the last resort. Sources: cloud-init's `ds-identify`, systemd's `detect-virt`, and the documentation of
//! the platforms.

use super::Facts;

/// A platform, and what it is known by: one of these is enough.
pub(super) struct Rule {
    pub(super) platform: &'static str,
    signs: &'static [Sign],
}

/// What a machine is known by.
enum Sign {
    /// A field of SMBIOS has this value.
    Is(&'static str, &'static str),
    /// A field of SMBIOS starts so.
    Starts(&'static str, &'static str),
    /// A field of SMBIOS ends so.
    Ends(&'static str, &'static str),
    /// Two fields of SMBIOS have these values.
    Both([(&'static str, &'static str); 2]),
    /// QEMU hands over a config.
    FwCfg,
    /// A disk has this label.
    Label(&'static str),
    /// The kernel names this hypervisor.
    Hypervisor(&'static str),
    /// There is a hypervisor, and a PCI device of this vendor.
    Pci(&'static str),
}

use Sign::{Both, Ends, FwCfg, Hypervisor, Is, Label, Pci, Starts};

const fn rule(platform: &'static str, signs: &'static [Sign]) -> Rule {
    Rule { platform, signs }
}

/// The rules, of which the first that holds counts.
pub(super) const RULES: &[Rule] = &[
    // Whatever else QEMU claims to be, somebody gave it a config for us.
    rule("qemu", &[FwCfg]),
    rule(
        "aws",
        &[
            Is("sys_vendor", "Amazon EC2"),
            // The older machines, which run Xen.
            Ends("bios_version", ".amazon"),
        ],
    ),
    rule("gcp", &[Is("product_name", "Google Compute Engine")]),
    // Azure's own constant; all other Microsoft machines are Hyper-V, below.
    rule(
        "azure",
        &[Is("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77")],
    ),
    rule("aliyun", &[Is("product_name", "Alibaba Cloud ECS")]),
    rule(
        "akamai",
        &[Is("sys_vendor", "Akamai"), Is("sys_vendor", "Linode")],
    ),
    rule("cloudstack", &[Starts("product_name", "CloudStack")]),
    rule("digitalocean", &[Is("sys_vendor", "DigitalOcean")]),
    rule("exoscale", &[Starts("product_name", "Exoscale")]),
    rule("hetzner", &[Is("sys_vendor", "Hetzner")]),
    rule(
        "ibmcloud",
        &[
            Starts("chassis_vendor", "IBM:Cloud Compute Server"),
            Is("chassis_asset_tag", "ibmcloud"),
        ],
    ),
    rule(
        "kubevirt",
        &[
            Is("product_family", "KubeVirt"),
            Is("sys_vendor", "KubeVirt"),
            Is("product_name", "OpenShift Virtualization"),
        ],
    ),
    rule("nutanix", &[Is("sys_vendor", "Nutanix")]),
    rule("oraclecloud", &[Is("chassis_asset_tag", "OracleCloud.com")]),
    rule("scaleway", &[Is("sys_vendor", "Scaleway")]),
    rule("upcloud", &[Is("sys_vendor", "UpCloud")]),
    rule("vultr", &[Is("sys_vendor", "Vultr")]),
    rule(
        "openstack",
        &[
            Is("product_name", "OpenStack Nova"),
            Is("product_name", "OpenStack Compute"),
            Is("chassis_asset_tag", "OpenStack Nova"),
            Is("chassis_asset_tag", "OpenStack Compute"),
            Is("chassis_asset_tag", "OpenTelekomCloud"),
            Is("chassis_asset_tag", "HUAWEICLOUD"),
            Is("chassis_asset_tag", "SAP CCloud VM"),
            Is("chassis_asset_tag", "Samsung Cloud Platform"),
        ],
    ),
    rule(
        "vmware",
        &[Starts("sys_vendor", "VMware"), Starts("bios_vendor", "VMW")],
    ),
    rule(
        "virtualbox",
        &[
            Is("product_name", "VirtualBox"),
            Is("sys_vendor", "innotek GmbH"),
        ],
    ),
    rule(
        "hyperv",
        &[Both([
            ("sys_vendor", "Microsoft Corporation"),
            ("product_name", "Virtual Machine"),
        ])],
    ),
    // What is left says only that it is QEMU, or nothing; a disk with a config says more.
    rule("openstack", &[Label("config-2"), Label("CONFIG-2")]),
    rule(
        "proxmoxve",
        &[
            Label("cidata"),
            Label("CIDATA"),
            Starts("bios_vendor", "Proxmox"),
        ],
    ),
    rule(
        "qemu",
        &[
            Is("sys_vendor", "QEMU"),
            Is("product_name", "KVM"),
            Is("bios_vendor", "Bochs"),
            Hypervisor("kvm"),
        ],
    ),
    rule("hyperv", &[Hypervisor("microsoft")]),
    // Machines without SMBIOS, by the vendors of their devices: VMware, VirtualBox, virtio.
    rule("vmware", &[Pci("0x15ad")]),
    rule("virtualbox", &[Pci("0x80ee")]),
    rule("qemu", &[Pci("0x1af4"), Pci("0x1b36")]),
];

impl Rule {
    /// The reason, if one of the signs is there.
    pub(super) fn holds(&self, facts: &Facts) -> Option<String> {
        self.signs.iter().find_map(|sign| sign.shows(facts))
    }
}

impl Sign {
    fn shows(&self, facts: &Facts) -> Option<String> {
        let field = |name: &str| facts.smbios.get(name).map_or("", String::as_str);
        let smbios = |name: &str| format!("SMBIOS {name} is {:?}", field(name));
        match self {
            Is(name, value) => (field(name) == *value).then(|| smbios(name)),
            Starts(name, start) => field(name).starts_with(start).then(|| smbios(name)),
            Ends(name, end) => field(name).ends_with(end).then(|| smbios(name)),
            Both(pairs) => pairs
                .iter()
                .all(|(name, value)| field(name) == *value)
                .then(|| {
                    let [one, other] = pairs.map(|(name, _)| smbios(name));
                    format!("{one} and {other}")
                }),
            FwCfg => facts
                .fw_cfg
                .then(|| "QEMU's fw_cfg has opt/com.coreos/config".to_owned()),
            Label(label) => {
                (facts.labels.contains(*label)).then(|| format!("a disk has the label {label}"))
            }
            Hypervisor(name) => (facts.hypervisor.as_deref() == Some(name))
                .then(|| format!("the hypervisor is {name}")),
            Pci(vendor) => (facts.hypervisor.is_some() && facts.pci.contains(*vendor))
                .then(|| format!("a virtual machine with a PCI device of vendor {vendor}")),
        }
    }
}
