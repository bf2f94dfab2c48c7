//! The configurations of the machine `disk`.

use super::{Ask, Config, ask, config};

/// The first is what the machine boots with; the others are what it is replaced by, merged in this order.
pub(super) const CONFIGS: &[Config] = &[
    config!(
        "remote_replace",
        "remote-replace",
        "coreos/fedora-coreos-docs modules/ROOT/pages/remote-ign.adoc",
        REMOTE_REPLACE
    ),
    config!(
        "data_disk",
        "data-disk",
        "studioph/iaas 94-57-a5-ec-6e-d9/templates/butane.tpl, with the unit that Butane makes of with_mount_unit; \
         flatcar/flatcar-docs docs/setup/storage/mounting-storage.md",
        DATA_DISK
    ),
    config!(
        "etcd_environment",
        "etcd-environment",
        "flatcar/flatcar-docs docs/provisioning/config-transpiler/examples.md",
        ETCD_ENVIRONMENT
    ),
    config!(
        "time_zone_overwrite",
        "time-zone-overwrite",
        "coreos/fedora-coreos-docs modules/ROOT/pages/time-zone.adoc",
        TIME_ZONE_OVERWRITE
    ),
    config!(
        "usr_local",
        "usr-local",
        "coreos/fedora-coreos-docs modules/ROOT/pages/tutorial-services.adoc and managing-files.adoc",
        USR_LOCAL
    ),
];

const REMOTE_REPLACE: &[Ask] = &[
    ask(
        "nothing of what was replaced",
        "ls /etc/replaced 2>/dev/null",
        "",
    ),
    ask(
        "the key of the configuration in its place",
        "grep -c selvage-harness ~core/.ssh/authorized_keys",
        "1",
    ),
];

const DATA_DISK: &[Ask] = &[
    ask(
        "a file system with a label on the second disk",
        "lsblk -no FSTYPE,LABEL /dev/disk/by-id/virtio-spare | tr -s ' '",
        "ext4 ephemeral1",
    ),
    ask(
        "Docker's data there",
        "findmnt -no FSTYPE /var/lib/docker; sudo ls /var/lib/docker | grep -x overlay2",
        "ext4\noverlay2",
    ),
    ask("Docker", "systemctl is-active docker.service", "active"),
];

const ETCD_ENVIRONMENT: &[Ask] = &[
    ask(
        "etcd by Flatcar's name",
        "systemctl is-active etcd-member.service",
        "active",
    ),
    ask(
        "its name, from a variable",
        "etcdctl member list | cut -d, -f3 | tr -d ' '",
        "infra0",
    ),
];

const TIME_ZONE_OVERWRITE: &[Ask] = &[
    ask(
        "the link",
        "readlink /etc/localtime",
        "/usr/share/zoneinfo/Asia/Kolkata",
    ),
    ask(
        "the system's word",
        "timedatectl show -P Timezone",
        "Asia/Kolkata",
    ),
    ask(
        "a program's idea of the time",
        "date -d 2026-01-15T12:00Z '+%H:%M %Z'",
        "17:30 IST",
    ),
];

const USR_LOCAL: &[Ask] = &[ask(
    "a program, and a link to it, where programs of a host's own are looked for",
    "stat -c %a /usr/local/bin/public-ipv4.sh; /usr/local/bin/ipv4",
    "755\n192.0.2.80",
)];
