//! The ways in which a version can be bad, one row each.

use std::time::Duration;

use super::super::Versions;

/// A version that must not stay, and what is to be said of it.
#[derive(Debug)]
pub(super) struct Bad {
    /// The case.
    pub name: &'static str,
    /// The counter of its boot entry: how many tries it has, and how many it had.
    pub counter: &'static str,
    /// Command that its UKI goes through.
    pub uki: &'static str,
    /// Shell that root of the installed version runs to break the other one; `$next` is the version, `$slot` its `/usr`.
    pub damage: &'static str,
    /// The same, to undo it.
    pub mend: &'static str,
    /// What goes wrong in its boots alone.
    pub fault: Option<Fault>,
    /// The code of the failure.
    pub code: &'static str,
    /// Part of its reason.
    pub reason: &'static str,
    /// How many of its boots come as far as the boot check.
    pub boots: u64,
    /// What its boots print, and how often at least.
    pub console: (&'static str, usize),
    /// From the reboot to the installed version's sshd.
    pub deadline: Duration,
}

/// A unit that runs in the boots of one version only. `/etc` is the same for both.
#[derive(Debug)]
pub(super) struct Fault {
    /// The target or service that wants it.
    pub wanted_by: &'static str,
    /// The units that wait for it.
    pub before: &'static str,
    /// Shell.
    pub run: &'static str,
}

/// Exchanges a bit of the block in which `selvage` begins: it is in no cache, for the installed version has its own. Doing it
/// once more undoes it. The first extent's place, in bytes, is the fourth column of filefrag(8).
const FLIP: &str = r#"
mkdir -p /run/next
mount -t erofs -o ro "$slot" /run/next
at=$(filefrag -b1 -v /run/next/bin/selvage | sed -n 's/^ *0: *[0-9]*\.\. *[0-9]*: *\([0-9]*\)\.\..*/\1/p')
umount /run/next
byte=$(od -A n -t u1 -j "$at" -N 1 "$slot")
printf "\\$(printf %03o $((byte ^ 1)))" | dd of="$slot" bs=1 seek="$at" conv=notrunc,fsync status=none
blockdev --flushbufs "$slot"
"#;

const QUICK: Duration = Duration::from_secs(600);
const SLOW: Duration = Duration::from_secs(900);

const PLAIN: Bad = Bad {
    name: "",
    // The last of three tries: those before it would show the same.
    counter: "+1-2",
    uki: "cat",
    damage: "",
    mend: "",
    fault: None,
    code: "never-came-up",
    reason: "none of its boots came as far as the boot check",
    boots: 0,
    console: ("", 0),
    deadline: QUICK,
};

/// What a machine without an agent shows, in the order in which it goes through them.
pub(super) const ALONE: &[Bad] = &[
    Bad {
        name: "bad_version::flipped_bit_in_usr",
        damage: FLIP,
        mend: FLIP,
        console: ("verity", 1),
        ..PLAIN
    },
    Bad {
        name: "bad_version::kernel_that_panics",
        counter: "+3-0",
        // As long as what it replaces: the length of the section stays. Without its initrd the kernel finds no disk.
        uki: "LC_ALL=C sed 's|rcupdate.rcu_expedited=1|rdinit=/nonexistent     |'",
        console: ("Kernel panic - not syncing: VFS", 3),
        ..PLAIN
    },
    Bad {
        name: "bad_version::userspace_that_hangs",
        fault: Some(Fault {
            wanted_by: "sysinit.target",
            before: "sysinit.target",
            run: "exec sleep infinity",
        }),
        code: "docker",
        reason: "selvage-test-fault.service does not finish starting",
        boots: 1,
        console: ("failed its boot check", 1),
        deadline: SLOW,
        ..PLAIN
    },
    Bad {
        name: "bad_version::kernel_that_hangs",
        // Once the watchdog runs and the boot is counted: a name is seen before it is on the disk.
        fault: Some(Fault {
            wanted_by: "sysinit.target",
            before: "",
            run: r#"
until [ "$(cat /sys/class/watchdog/watchdog0/state)" = active ] &&
      grep -Eq '"boots": ?1' /var/lib/selvage/update/state.json; do sleep 1; done
sync
echo 0 >/proc/sys/kernel/panic
echo c >/proc/sysrq-trigger"#,
        }),
        code: "cut-short",
        reason: "the machine hung, was reset or lost power",
        boots: 1,
        console: ("end Kernel panic - not syncing: sysrq triggered crash", 1),
        ..PLAIN
    },
    Bad {
        name: "bad_version::docker_that_does_not_start",
        fault: Some(Fault {
            wanted_by: "sysinit.target",
            before: "docker.service",
            run: "mount --bind /bin/false /usr/sbin/dockerd",
        }),
        code: "docker",
        reason: "Docker does not answer",
        boots: 1,
        console: ("failed its boot check", 1),
        deadline: SLOW,
        ..PLAIN
    },
    Bad {
        name: "bad_version::slot_of_zeros",
        damage: r#"blkdiscard -f -z "$slot" && blkdiscard -f -z "${slot}_verity""#,
        mend: r#"
dd if="$(echo "$staging"/*.usr.raw)" of="$slot" bs=4M conv=notrunc,fsync status=none
dd if="$(echo "$staging"/*.usr-verity.raw)" of="${slot}_verity" bs=4M conv=notrunc,fsync status=none"#,
        console: ("This version is on trial", 1),
        ..PLAIN
    },
];

/// What a machine of a cluster shows.
pub(super) const OF_A_CLUSTER: &[Bad] = &[Bad {
    name: "bad_version::agent_without_a_lease",
    fault: Some(Fault {
        wanted_by: "sysinit.target",
        before: "selvage.service",
        run: "mkdir -p /run/flannel && echo FLANNELD_IFACE=absent0 >/run/flannel/options.env",
    }),
    code: "agent",
    reason: "the agent is not ready",
    boots: 1,
    console: ("failed its boot check", 1),
    deadline: SLOW,
    ..PLAIN
}];

impl Fault {
    /// Shell that root runs to put it in place for the boots of `version`.
    pub(super) fn script(&self, version: &str) -> String {
        let Self {
            wanted_by,
            before,
            run,
        } = self;
        format!(
            "cat >/etc/selvage-test-fault <<'END'\n{run}\nEND\n\
             cat >/etc/systemd/system/{UNIT} <<'END'\n\
             [Unit]\nDescription=Fault for a Test\nDefaultDependencies=no\nAfter=local-fs.target\nBefore={before}\n\
             ConditionOSRelease=IMAGE_VERSION={version}\n\
             [Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=infinity\n\
             ExecStart=/bin/sh /etc/selvage-test-fault\nEND\n\
             mkdir -p /etc/systemd/system/{wanted_by}.wants\n\
             ln -sf ../{UNIT} /etc/systemd/system/{wanted_by}.wants/\n"
        )
    }
}

const UNIT: &str = "selvage-test-fault.service";

/// Shell that takes the fault away.
pub(super) const NO_FAULT: &str = "rm -f /etc/systemd/system/selvage-test-fault.service \
    /etc/systemd/system/*.wants/selvage-test-fault.service\n";

/// What scripts go by, and what they need: what the version is made of lies unpacked on the second disk.
pub(super) fn preamble(versions: &Versions) -> String {
    format!(
        "next={}\ninstalled={}\nslot=/dev/disk/by-partlabel/selvage_$next\nstaging=/run/spare/unpacked\n\
         mkdir -p /run/spare\n\
         mountpoint -q /run/spare || mount -o ro /dev/disk/by-id/virtio-spare /run/spare\n",
        versions.next, versions.installed
    )
}

/// Shell that gives the version a whole boot entry with `counter`, its UKI changed by the command `uki`.
pub(super) fn entry(counter: &str, uki: &str) -> String {
    format!(
        "cd /efi/EFI/Linux\nrm -f selvage_$next*.efi\n\
         {uki} <$staging/selvage_$next.efi >selvage_$next{counter}.efi\ncd /\nsync\n"
    )
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Command};

    use super::*;

    #[test]
    fn scripts_are_shell() {
        let fault = |bad: &Bad| {
            let fault = bad.fault.as_ref()?;
            Some(fault.script("2"))
        };
        let versions = Versions {
            installed: "1".into(),
            next: "2".into(),
        };
        for bad in ALONE.iter().chain(OF_A_CLUSTER) {
            let run = bad.fault.as_ref().map_or("", |fault| fault.run);
            let script = [
                &preamble(&versions),
                bad.damage,
                "\n",
                bad.mend,
                "\n",
                run,
                "\n",
                &fault(bad).unwrap_or_default(),
                NO_FAULT,
                &entry(bad.counter, bad.uki),
            ]
            .concat();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(script.as_bytes()).unwrap();
            let checked = Command::new("sh").arg("-n").arg(file.path()).output();
            let said = String::from_utf8(checked.unwrap().stderr).unwrap();
            assert_eq!(said, "", "{}", bad.name);
        }
    }

    #[test]
    fn the_changed_command_line_is_as_long_as_the_old_one() {
        let changes = ALONE.iter().filter_map(|bad| bad.uki.split_once("sed 's|"));
        let mut count = 0;
        for (_, change) in changes {
            let parts: Vec<_> = change.split('|').collect();
            assert_eq!(parts[0].len(), parts[1].len(), "{change}");
            count += 1;
        }
        assert_eq!(count, 1);
    }
}
