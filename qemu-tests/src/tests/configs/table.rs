//! The configurations that boot, by the machine that they share, and what each asks for.

mod accounts;
mod disk;
mod disks;
mod embedded;
mod flatcar;
mod node;

use super::{Ask, Config, ask};

/// A machine and what it is made from.
#[derive(Debug)]
pub(super) struct Kind {
    /// Its name.
    pub name: &'static str,
    /// The case that says that its boot ended well.
    pub is_up: &'static str,
    /// Its configurations.
    pub configs: &'static [Config],
}

/// A machine with one card, which DHCP configures: most that a configuration can ask for, and a whole overlay node.
pub(super) const NODE: Kind = Kind {
    name: "node",
    is_up: "configs::node_is_up",
    configs: node::CONFIGS,
};
/// A machine with one card of static address that comes from Flatcar, with etcd, flannel and Docker as its documents
/// say.
pub(super) const FLATCAR: Kind = Kind {
    name: "flatcar",
    is_up: "configs::flatcar_is_up",
    configs: flatcar::CONFIGS,
};
/// A machine with a second disk, and a configuration that is another one's in its place.
pub(super) const DISK: Kind = Kind {
    name: "disk",
    is_up: "configs::disk_is_up",
    configs: disk::CONFIGS,
};
/// A machine with three more disks and firmware: what the stages before files and units do, and kernel arguments.
pub(super) const DISKS: Kind = Kind {
    name: "disks",
    is_up: "configs::disks_are_up",
    configs: disks::CONFIGS,
};
/// A machine with one more disk, firmware and a TPM.
pub(super) const TPM: Kind = Kind {
    name: "tpm",
    is_up: "configs::tpm_is_up",
    configs: disks::TPM_CONFIGS,
};
/// A machine that finds its configuration on its boot partition, where `selvage image embed` has put it, and nowhere
/// else.
pub(super) const EMBEDDED: Kind = Kind {
    name: "embedded",
    is_up: "configs::embedded_is_up",
    configs: embedded::CONFIGS,
};
/// All of them.
#[cfg(test)]
pub(super) const MACHINES: [Kind; 6] = [NODE, FLATCAR, DISK, DISKS, TPM, EMBEDDED];

/// A configuration of `qemu-tests/configs/`, its case, and where its shape is from.
macro_rules! config {
    ($case:literal, $file:literal, $shape:literal, $asks:expr) => {
        Config {
            case: concat!("configs::", $case),
            shape: $shape,
            text: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/configs/",
                $file,
                ".ign"
            )),
            asks: $asks,
        }
    };
}
use config;

/// What every machine is to be, whatever it was asked for.
pub(super) const WELL: &[Ask] = &[
    ask(
        "the boot ended well",
        "systemctl is-system-running",
        "running",
    ),
    ask(
        "no unit failed",
        "systemctl list-units --failed --plain --no-legend --no-pager",
        "",
    ),
    // One that fails and is started again, for ever, is among these.
    ask(
        "no unit is still to start",
        "systemctl list-units --state=activating --plain --no-legend --no-pager",
        "",
    ),
];
