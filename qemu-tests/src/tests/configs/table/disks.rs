//! The configurations of the machines `disks` and `tpm`.

use super::{Ask, Config, ask, config};

/// Those of `disks`, merged in this order.
pub(super) const CONFIGS: &[Config] = &[
    config!(
        "partition_beside_image",
        "partition-beside-image",
        "coreos/fedora-coreos-docs modules/ROOT/pages/storage.adoc, a separate file system on the primary disk",
        PARTITION
    ),
    config!(
        "raid_of_two_disks",
        "raid",
        "coreos/fedora-coreos-docs modules/ROOT/pages/storage.adoc, a RAID-enabled data volume; coreos/coreos-installer \
         issue 1591",
        RAID
    ),
    config!(
        "luks_by_key_file",
        "luks-key-file",
        "coreos/ignition tests/positive/luks/creation.go",
        LUKS
    ),
    config!(
        "kernel_arguments",
        "kernel-arguments",
        "coreos/fedora-coreos-docs modules/ROOT/pages/kernel-args.adoc",
        KERNEL_ARGUMENTS
    ),
    config!(
        "newer_spec",
        "spec-3-5",
        "coreos/ignition docs/migrating-configs.md",
        NEWER_SPEC
    ),
];

/// That of the machine `tpm`.
pub(super) const TPM_CONFIGS: &[Config] = &[config!(
    "luks_by_tpm",
    "luks-tpm2",
    "coreos/ignition tests/positive/luks/creation.go; coreos/butane docs/examples.md",
    LUKS_TPM
)];

const PARTITION: &[Ask] = &[
    ask(
        "its file system, with what was written to it before the first boot was over",
        "findmnt -no FSTYPE /var/lib/data; cat /var/lib/data/hello",
        "xfs\nhello",
    ),
    ask(
        "the second slot and the root beside it, on the same disk",
        "disk=$(lsblk -ndpo PKNAME /dev/disk/by-partlabel/data); lsblk -nro PARTLABEL $disk | grep -cxE '_empty|selvage-root|data'",
        "4",
    ),
    ask(
        "the rest of the disk for the root",
        "test $(lsblk -nbdo SIZE /dev/disk/by-partlabel/selvage-root) -gt 1000000000 && echo much",
        "much",
    ),
];

const RAID: &[Ask] = &[
    ask(
        "an array of two disks, both in use",
        "md=/sys/class/block/$(basename $(readlink -f /dev/md/mirror))/md; cat $md/level $md/raid_disks $md/degraded",
        "raid1\n2\n0",
    ),
    ask(
        "its file system",
        "findmnt -no FSTYPE /opt/mirror; lsblk -ndo LABEL /dev/md/mirror",
        "btrfs\nmirror",
    ),
];

const LUKS: &[Ask] = &[
    ask(
        "an opened volume with a file system",
        "lsblk -nro TYPE,FSTYPE /dev/mapper/secret; findmnt -no SOURCE /srv",
        "crypt ext4\n/dev/mapper/secret",
    ),
    ask(
        "encryption below it",
        "lsblk -ndo FSTYPE /dev/disk/by-id/virtio-spare2",
        "crypto_LUKS",
    ),
    ask(
        "a key for later boots that only root reads",
        "sudo cut -d' ' -f1,4 /etc/crypttab; cat /etc/luks/secret 2>/dev/null || sudo test -s /etc/luks/secret && echo kept",
        "secret luks\nkept",
    ),
];

const LUKS_TPM: &[Ask] = &[
    ask(
        "an opened volume with a file system",
        "lsblk -nro TYPE,FSTYPE /dev/mapper/luks-tpm; findmnt -no SOURCE /mnt/tpm",
        "crypt xfs\n/dev/mapper/luks-tpm",
    ),
    ask(
        "the TPM as the only key",
        "sudo cryptsetup luksDump /dev/disk/by-id/virtio-spare | grep -cE '^  [0-9]+: (luks2|systemd-tpm2)$'",
        "2",
    ),
    ask(
        "no key file for it",
        "sudo grep ^luks-tpm /etc/crypttab | cut -d' ' -f3-; sudo ls /etc/luks/luks-tpm 2>/dev/null",
        "none luks,tpm2-device=auto",
    ),
];

const KERNEL_ARGUMENTS: &[Ask] = &[
    ask(
        "the arguments",
        "grep -ow -e mitigations=auto -e selvage.test=a /proc/cmdline",
        "mitigations=auto\nselvage.test=a",
    ),
    ask(
        "the add-on that they are in",
        "sudo ls /efi/loader/addons",
        "selvage-ignition.addon.efi",
    ),
];

const NEWER_SPEC: &[Ask] = &[
    ask(
        "its file",
        "stat -c %a /etc/newer.conf; sudo cat /etc/newer.conf",
        "600\nfrom 3.5.0",
    ),
    ask(
        "the record of all that was made",
        "selvage ignition report | grep -c -e ' /etc/newer.conf$' -e 'mirror of /dev' -e 'secret on /dev' -e 'xfs on /dev' \
         -e ' selvage.test=a$' -e ' data on /dev'",
        "6",
    ),
];
