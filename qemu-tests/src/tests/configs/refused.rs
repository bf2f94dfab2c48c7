//! Configurations that this image cannot do: the console says why, and the machine stays where it is.

use futures_util::future::join_all;

use super::super::broken_ignition;
use crate::{cluster::Cluster, suite::Suite};

/// One of them.
#[derive(Debug)]
pub(super) struct Refused {
    /// Its case.
    pub case: &'static str,
    /// The configuration.
    pub text: &'static str,
    /// What the console has to say.
    causes: &'static [&'static str],
    /// The exit status of `selvage ignition check`: 0 where only the machine knows.
    pub checked: u8,
}

macro_rules! refused {
    ($case:literal, $file:literal, $causes:expr) => {
        refused!($case, $file, $causes, 78)
    };
    ($case:literal, $file:literal, $causes:expr, $checked:literal) => {
        Refused {
            case: concat!("configs::refused_", $case),
            text: include_str!(concat!("../../../configs/refused/", $file, ".ign")),
            causes: $causes,
            checked: $checked,
        }
    };
}

/// All of them.
pub(super) const TABLE: &[Refused] = &[
    refused!(
        "unknown_group",
        "unknown-group",
        &["netadmins", "does not exist"]
    ),
    refused!("uid_twice", "uid-twice", &["9002", "not unique"]),
    refused!("uid_of_core", "uid-of-core", &["1000", "not unique"]),
    refused!("gid_twice", "gid-twice", &["700", "already exists"]),
    refused!("unknown_owner", "unknown-owner", &["dnsmasq"]),
    // These machines are started without firmware.
    refused!(
        "kernel_arguments",
        "kernel-arguments",
        &["kernelArguments cannot be applied", "flatcar.autologin"],
        0
    ),
    refused!(
        "partitions",
        "partitions",
        &["is the disk of the image", "cannot be wiped"]
    ),
    refused!("xfs", "xfs", &["mkfs.xfs"]),
    refused!("raid", "raid", &["mdadm"]),
    refused!("luks", "luks", &["no client of Tang servers"]),
    refused!(
        "newer_spec",
        "newer-spec",
        &["storage.luks[0].discard", "cryptsetup refresh"]
    ),
    refused!(
        "newer_remote",
        "newer-remote",
        &["unsupported config version", "selvage ignition translate"],
        0
    ),
    refused!("wrong_hash", "wrong-hash", &["hash verification failed"], 0),
    refused!(
        "below_usr",
        "below-usr",
        &["/usr/bin/public-ipv4.sh", "read-only file system"]
    ),
];

/// Judges machines of a cluster that was started with these configurations, in their order.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster, refused: &[&Refused]) {
    let outcomes = join_all(
        cluster
            .machines
            .iter_mut()
            .zip(refused)
            .map(|(machine, refused)| broken_ignition::stops_and_stays(machine, refused.causes)),
    )
    .await;
    // They say it again each minute, and the slowest may have taken longer than that.
    for machine in &mut cluster.machines {
        let _ = machine.console.check();
    }
    for (refused, outcome) in refused.iter().zip(outcomes) {
        suite.case(refused.case, cluster, async |_| outcome).await;
    }
}
