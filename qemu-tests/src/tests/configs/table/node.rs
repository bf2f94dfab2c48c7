//! The configurations of the machine `node`.

use super::{
    Ask, Config,
    accounts::{SYSTEM_USER, USERS},
    ask, config,
};

/// Merged in this order.
pub(super) const CONFIGS: &[Config] = &[
    config!(
        "users_and_groups",
        "users",
        "coreos/fedora-coreos-docs modules/ROOT/pages/authentication.adoc; \
         flatcar/flatcar-docs docs/setup/customization/adding-users.md and \
         docs/provisioning/config-transpiler/examples.md",
        USERS
    ),
    config!(
        "system_user",
        "system-user",
        "coreos/butane docs/examples.md; coreos/fedora-coreos-docs modules/ROOT/pages/managing-files.adoc",
        SYSTEM_USER
    ),
    config!(
        "files",
        "files",
        "coreos/fedora-coreos-docs modules/ROOT/pages/managing-files.adoc; \
         flatcar/flatcar-docs docs/provisioning/config-transpiler/examples.md",
        FILES
    ),
    config!(
        "time_zone",
        "time-zone",
        "coreos/fedora-coreos-docs modules/ROOT/pages/time-zone.adoc",
        TIME_ZONE
    ),
    config!(
        "kernel_settings",
        "kernel-settings",
        "flatcar/flatcar-docs docs/setup/customization/other-settings.md; \
         coreos/fedora-coreos-docs modules/ROOT/pages/sysctl.adoc; \
         poseidon/typhoon bare-metal/flatcar-linux/kubernetes/butane/controller.yaml",
        KERNEL_SETTINGS
    ),
    config!(
        "units",
        "units",
        "flatcar/flatcar-docs docs/setup/systemd/getting-started.md, timers.md and \
         docs/container-runtimes/customizing-docker.md; \
         coreos/fedora-coreos-docs modules/ROOT/pages/tutorial-services.adoc",
        UNITS
    ),
    config!(
        "mounts",
        "mounts",
        "flatcar/flatcar-docs docs/setup/storage/mounting-storage.md and adding-swap.md",
        MOUNTS
    ),
    config!(
        "autologin",
        "autologin",
        "coreos/fedora-coreos-docs modules/ROOT/pages/tutorial-autologin.adoc",
        AUTOLOGIN
    ),
    config!(
        "docker_daemon",
        "docker-daemon",
        "flatcar/flatcar-docs docs/container-runtimes/customizing-docker.md and switching-to-unified-cgroups.md",
        DOCKER_DAEMON
    ),
    config!(
        "etcd",
        "etcd",
        "poseidon/typhoon bare-metal/flatcar-linux/kubernetes/butane/controller.yaml (etcd.env); \
         coreos/fedora-coreos-docs modules/ROOT/pages/running-containers.adoc",
        ETCD
    ),
    config!(
        "no_updates",
        "no-updates",
        "poseidon/typhoon bare-metal/flatcar-linux/kubernetes/butane/controller.yaml; \
         flatcar/flatcar-docs docs/setup/releases/update-strategies.md",
        NO_UPDATES
    ),
    config!(
        "kubernetes_node",
        "kubernetes-node",
        "poseidon/typhoon bare-metal/flatcar-linux/kubernetes/butane/controller.yaml",
        KUBERNETES_NODE
    ),
    config!(
        "remote_merge",
        "remote-merge",
        "coreos/fedora-coreos-docs modules/ROOT/pages/remote-ign.adoc",
        REMOTE_MERGE
    ),
];

const FILES: &[Ask] = &[
    ask(
        "a directory",
        "stat -c '%F %U %G %a' /opt/tools",
        "directory root root 755",
    ),
    ask(
        "a directory with owners by number",
        "stat -c '%u %g %a' /srv/data",
        "500 501 770",
    ),
    ask(
        "a file with owners by number",
        "sudo stat -c '%u %g %a' /srv/data/owned; sudo cat /srv/data/owned",
        "500 501 644\nHello, world!",
    ),
    ask(
        "a compressed file",
        "sort -u /etc/issue.d/40-room.issue; wc -l </etc/issue.d/40-room.issue",
        "Welcome to the machine room.\n8",
    ),
    ask(
        "a compressed file by HTTP with a hash",
        "stat -c '%a' /opt/tools/transmogrify; /opt/tools/transmogrify cat",
        "555\ntransmogrified cat",
    ),
    ask(
        "a line more in a file of the image's",
        "getent ahostsv4 registry.example.net | cut -d ' ' -f1 | sort -u; getent ahostsv4 localhost | cut -d ' ' -f1 | sort -u",
        "192.0.2.7\n127.0.0.1",
    ),
    ask(
        "a file in pieces",
        "cat /etc/tools.list",
        "first\nsecond\nthird",
    ),
    ask("an empty file", "stat -c '%s %a' /etc/empty.flag", "0 644"),
    ask(
        "another file in the place of the image's",
        "cat /etc/motd",
        "Property of example.net.",
    ),
    ask(
        "a link, in a directory that the image fills itself",
        "readlink /opt/bin/transmogrify; /opt/bin/transmogrify dog",
        "/opt/tools/transmogrify\ntransmogrified dog",
    ),
    ask(
        "a hard link",
        "sudo stat -c '%h' /srv/data/owned; sudo cat /srv/data/again",
        "2\nHello, world!",
    ),
    ask(
        "a link with owners",
        "stat -c '%u %g %N' /srv/current",
        "500 501 '/srv/current' -> 'data'",
    ),
    ask(
        "what the image itself puts beside",
        "readlink /opt/bin/flanneld",
        "/usr/bin/flanneld",
    ),
];

const TIME_ZONE: &[Ask] = &[
    ask(
        "the link",
        "readlink /etc/localtime",
        "../usr/share/zoneinfo/Europe/Berlin",
    ),
    ask(
        "the system's word",
        "timedatectl show -P Timezone",
        "Europe/Berlin",
    ),
    ask(
        "a program's idea of the time",
        "date -d 2026-01-15T12:00Z '+%H:%M %Z'; date -d 2026-07-15T12:00Z '+%H:%M %Z'",
        "13:00 CET\n14:00 CEST",
    ),
];

const KERNEL_SETTINGS: &[Ask] = &[
    ask("a module", "lsmod | grep -c '^nf_conntrack '", "1"),
    ask(
        "a setting of that module's",
        "cat /proc/sys/net/netfilter/nf_conntrack_max",
        "131072",
    ),
    ask("a setting", "cat /proc/sys/kernel/sysrq", "0"),
    ask(
        "another one",
        "cat /proc/sys/fs/inotify/max_user_watches",
        "16184",
    ),
    ask(
        "the log-in manager's setting",
        "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager InhibitDelayMaxUSec",
        "t 45000000",
    ),
    ask(
        "time servers",
        "timedatectl show-timesync -P SystemNTPServers",
        "ntp1.example.net ntp2.example.net",
    ),
    ask(
        "a message of the day",
        "cat /etc/motd.d/pi.conf",
        "This machine computes Pi.",
    ),
];

const UNITS: &[Ask] = &[
    ask(
        "a unit that says something once",
        "systemctl is-enabled hello.service; sudo journalctl -b -q -o cat -u hello.service | grep -c 'Good morning'",
        "enabled\n1",
    ),
    ask(
        "a script of the first boot, after the network",
        "systemctl is-active note-first-boot.service network-online.target; grep -c 'set up 20' /etc/issue.d/50-note.issue; \
         stat -c %U /var/lib/note-first-boot",
        "active\nactive\n1\nroot",
    ),
    ask(
        "two instances of a template",
        "cut -d: -f2 /run/announced-7001 /run/announced-7002",
        "7001\n7002",
    ),
    ask(
        "a timer",
        "systemctl is-active stamp.timer; systemctl show -P NextElapseUSecRealtime stamp.timer | grep -c :",
        "active\n1",
    ),
    ask(
        "what it starts",
        "for i in $(seq 30); do test -s /var/lib/stamps && break; sleep 1; done; grep -q 20 /var/lib/stamps && echo written",
        "written",
    ),
    ask(
        "an option for Docker by a drop-in that sorts early",
        "docker info -f '{{.Debug}}'",
        "true",
    ),
    ask(
        "a proxy for Docker",
        "docker info -f '{{.HTTPProxy}}'",
        "http://proxy.example.net:3128",
    ),
    ask(
        "a drop-in of a unit of the system's",
        "systemctl show -P Environment systemd-timesyncd.service | grep -o 'SYSTEMD_LOG_LEVEL=[a-z]*'",
        "SYSTEMD_LOG_LEVEL=warning",
    ),
    ask(
        "a drop-in of a template",
        "systemctl show -P TTYVTDisallocate getty@tty1.service",
        "no",
    ),
];

const MOUNTS: &[Ask] = &[
    ask(
        "a file system in memory",
        "findmnt -no FSTYPE /var/cache/scratch; stat -c %a /var/cache/scratch; df -m --output=size /var/cache/scratch | tail -n 1 | tr -d ' '",
        "tmpfs\n1777\n16",
    ),
    ask(
        "a directory under another name",
        "systemctl is-active var-www.mount; cat /var/www/seed",
        "active\nseed",
    ),
    ask(
        "a file to swap to",
        "grep -c '^/var/vm/swapfile1 ' /proc/swaps; cat /proc/sys/vm/swappiness",
        "1\n10",
    ),
];

const AUTOLOGIN: &[Ask] = &[
    ask("a host name", "cat /proc/sys/kernel/hostname", "tutorial"),
    ask(
        "core on the serial console",
        "ps -t ttyS0 -o user=,comm= | grep -c '^core  *bash$'",
        "1",
    ),
    ask(
        "a setting of log-in shells",
        "bash -lc 'echo $SYSTEMD_PAGER'",
        "cat",
    ),
];

const DOCKER_DAEMON: &[Ask] = &[
    ask(
        "Docker's log driver",
        "docker info -f '{{.LoggingDriver}}'",
        "json-file",
    ),
    ask(
        "Docker's driver of control groups",
        "docker info -f '{{.CgroupDriver}}'",
        "systemd",
    ),
    ask(
        "Docker's interface on a port",
        "curl -sS http://127.0.0.1:2375/version | grep -c ApiVersion",
        "1",
    ),
    ask(
        "a limit of containerd's",
        "systemctl show -P LimitNOFILE containerd.service",
        "524288",
    ),
];

const ETCD: &[Ask] = &[
    ask("etcd", "systemctl is-active etcd.service", "active"),
    ask(
        "its name and directory",
        "etcdctl member list | cut -d, -f3 | tr -d ' '; sudo ls /var/lib/etcd-data",
        "node1\nmember",
    ),
    ask(
        "the network that was to be published",
        "etcdctl get --print-value-only /coreos.com/network/config | tr -d ' \\n' | grep -o '\"Network\":\"[^\"]*\"'",
        "\"Network\":\"10.32.0.0/16\"",
    ),
    ask(
        "a lease in it, on the one card",
        ". /run/flannel/subnet.env; echo $FLANNEL_NETWORK; \
         etcdctl get --print-value-only --prefix /coreos.com/network/subnets/ | grep -o '\"PublicIP\":\"[^\"]*\"'",
        "10.32.0.0/16\n\"PublicIP\":\"10.0.2.15\"",
    ),
    ask(
        "Docker on the leased subnet",
        ". /run/flannel/subnet.env; ip -4 -o addr show dev docker0 | grep -c \" $FLANNEL_SUBNET \"",
        "1",
    ),
];

const NO_UPDATES: &[Ask] = &[
    ask(
        "masks of units that are not here",
        "systemctl is-enabled update-engine.service locksmithd.service zincati.service",
        "masked\nmasked\nmasked",
    ),
    ask(
        "masks by links, one over a link of the image's",
        "systemctl is-enabled apt-daily.timer systemd-networkd-persistent-storage.service",
        "masked\nmasked",
    ),
    ask(
        "the file of the updater",
        "cat /etc/flatcar/update.conf",
        "SERVER=disabled\nREBOOT_STRATEGY=off",
    ),
];

const KUBERNETES_NODE: &[Ask] = &[
    ask(
        "a unit that waits for a file",
        "systemctl is-active kubelet.path kubelet.service",
        "active\nactive",
    ),
    ask(
        "a unit that another one's [Install] requires",
        "systemctl is-active wait-for-dns.service; systemctl show -P Requires kubelet.service | grep -o wait-for-dns.service",
        "active\nwait-for-dns.service",
    ),
    ask(
        "what it did before it started, with the tools of a common system",
        "cat /run/kubelet-ready; stat -c %F /etc/kubernetes/manifests; stat -c %U /opt/bootstrap/auth/done",
        "1\ndirectory\nroot",
    ),
    ask(
        "a file for root alone",
        "stat -c '%U %a' /etc/kubernetes/kubeconfig",
        "root 600",
    ),
];

const REMOTE_MERGE: &[Ask] = &[
    ask(
        "a file of the fetched configuration",
        "cat /etc/fetched-by-http",
        "fetched",
    ),
    ask("its unit", "systemctl is-active fetched.service", "active"),
    ask(
        "the rest of the configuration",
        "sudo grep -c '\"userConfigProvided\": true' /etc/.ignition-result.json",
        "1",
    ),
];
