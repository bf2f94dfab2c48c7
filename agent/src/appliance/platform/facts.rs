//! The facts that tell a platform, read from `/proc`, `/sys` and `/dev`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The arguments that name the platform, the strongest first: Ignition's, Flatcar's, CoreOS's.
const ARGUMENTS: [&str; 3] = ["ignition.platform.id", "flatcar.oem.id", "coreos.oem.id"];

/// The fields of SMBIOS that rules use, by their names in `/sys/class/dmi/id`.
pub(super) const SMBIOS: [&str; 9] = [
    "bios_vendor",
    "bios_version",
    "board_vendor",
    "chassis_asset_tag",
    "chassis_vendor",
    "product_family",
    "product_name",
    "product_version",
    "sys_vendor",
];

/// A snapshot of what tells the platform.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The argument of the kernel command line that names the platform, and its value.
    pub argument: Option<(String, String)>,
    /// Fields of SMBIOS by their names in `/sys/class/dmi/id`, without white space around them; empty ones are absent.
    pub smbios: BTreeMap<String, String>,
    /// The hypervisor, as far as the kernel tells: `kvm`, `microsoft`, `xen`, or `unknown` when only the processor says
    /// that there is one.
    pub hypervisor: Option<String>,
    /// The labels of the disks' file systems.
    pub labels: BTreeSet<String>,
    /// Whether QEMU hands over a config (`opt/com.coreos/config`).
    pub fw_cfg: bool,
    /// The vendors of the PCI devices, as in `/sys`: `0x1af4`.
    pub pci: BTreeSet<String>,
}

impl Facts {
    /// Reads them below `root`. What cannot be read is absent.
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let field = |name: &str| {
            let value = text(&format!("sys/class/dmi/id/{name}")).trim().to_owned();
            (!value.is_empty()).then(|| (name.to_owned(), value))
        };
        let vendor = |device: String| {
            let vendor = text(&format!("sys/bus/pci/devices/{device}/vendor"));
            vendor.trim().to_owned()
        };
        Self {
            argument: argument(&text("proc/cmdline")),
            smbios: SMBIOS.into_iter().filter_map(field).collect(),
            hypervisor: hypervisor(
                &text("sys/hypervisor/type"),
                &text("sys/devices/system/clocksource/clocksource0/available_clocksource"),
                &text("proc/cpuinfo"),
            ),
            labels: (names(&root.join("dev/disk/by-label")).into_iter())
                .map(|name| unescaped(&name))
                .collect(),
            fw_cfg: root
                .join("sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config")
                .exists(),
            pci: (names(&root.join("sys/bus/pci/devices")).into_iter())
                .map(vendor)
                .collect(),
        }
    }
}

/// The strongest argument that is there and not empty; of several with one name the last counts.
fn argument(command_line: &str) -> Option<(String, String)> {
    ARGUMENTS.into_iter().find_map(|name| {
        let mut words = command_line.split_ascii_whitespace().rev();
        let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        (!value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    })
}

/// What systemd-detect-virt takes from CPUID, the kernel has already turned into clocks and flags.
fn hypervisor(kind: &str, clocks: &str, processor: &str) -> Option<String> {
    let has_clock = |start: &str| {
        clocks
            .split_ascii_whitespace()
            .any(|name| name.starts_with(start))
    };
    let is_guest = || {
        processor.lines().any(|line| {
            line.starts_with("flags") && line.split_ascii_whitespace().any(|f| f == "hypervisor")
        })
    };
    let name = if kind.trim() == "xen" {
        "xen"
    } else if has_clock("kvm-clock") {
        "kvm"
    } else if has_clock("hyperv_clocksource") {
        "microsoft"
    } else if is_guest() {
        "unknown"
    } else {
        return None;
    };
    Some(name.to_owned())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// A label from the name of udev's link, in which a space is `\x20`.
fn unescaped(name: &str) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("\\x") {
        text.push_str(before);
        match after.get(..2).map(|digits| u8::from_str_radix(digits, 16)) {
            Some(Ok(byte)) if byte.is_ascii() => {
                text.push(char::from(byte));
                rest = &after[2..];
            }
            _ => {
                text.push_str("\\x");
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignitions_argument_counts_more_than_the_older_ones_and_the_last_of_them() {
        for (line, expected) in [
            ("quiet ignition.platform.id=aws\n", Some("aws")),
            (
                "ignition.platform.id=aws ignition.platform.id=metal",
                Some("metal"),
            ),
            (
                "flatcar.oem.id=vmware ignition.platform.id=aws",
                Some("aws"),
            ),
            ("flatcar.oem.id=ec2 coreos.oem.id=gce", Some("ec2")),
            ("coreos.oem.id=digitalocean", Some("digitalocean")),
            ("ignition.platform.id= xignition.platform.id=aws", None),
            ("ignition.platform.identity=aws", None),
        ] {
            let value = argument(line).map(|(_, value)| value);
            assert_eq!(value.as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn hypervisors_are_told_by_clocks_and_flags() {
        let flags = "model name\t: x\nflags\t\t: fpu vme hypervisor lahf_lm\n";
        for (kind, clocks, processor, expected) in [
            ("xen\n", "xen tsc hpet acpi_pm\n", flags, Some("xen")),
            ("", "kvm-clock tsc acpi_pm\n", flags, Some("kvm")),
            (
                "",
                "hyperv_clocksource_tsc_page acpi_pm",
                flags,
                Some("microsoft"),
            ),
            ("", "tsc hpet acpi_pm", flags, Some("unknown")),
            ("", "tsc hpet acpi_pm", "flags\t\t: fpu vme\n", None),
            ("", "", "", None),
        ] {
            let found = hypervisor(kind, clocks, processor);
            assert_eq!(found.as_deref(), expected, "{kind}{clocks}");
        }
    }

    #[test]
    fn facts_are_read_as_the_kernel_and_udev_write_them() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/class/dmi/id/sys_vendor", "Hetzner\n");
        write("sys/class/dmi/id/product_version", "\n");
        write("sys/bus/pci/devices/0000:00:01.0/vendor", "0x1af4\n");
        write("dev/disk/by-label/EFI\\x20x\\xzz", "");
        write("dev/disk/by-label/config-2", "");
        let facts = Facts::read(root.path());
        let smbios = [("sys_vendor".to_owned(), "Hetzner".to_owned())];
        assert_eq!(facts.smbios, smbios.into());
        assert_eq!(facts.pci, ["0x1af4".to_owned()].into());
        let labels = ["EFI x\\xzz", "config-2"].map(str::to_owned);
        assert_eq!(facts.labels, labels.into());
        assert_eq!((facts.fw_cfg, facts.argument), (false, None));
        assert_eq!(Facts::read(&root.path().join("no")), Facts::default());
    }
}
