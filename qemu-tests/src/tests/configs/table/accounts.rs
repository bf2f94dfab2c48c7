//! Users and groups of the machine `node`.

use super::{Ask, ask};

/// The hash of all the passwords here.
const HASH: &str = "$6$selvageconfigs$BUqdZ3Owm64H/nthm2EMDD0QKZE45rc8qj11GR7fRQIbbTBTZ4UwNCza05/lFfny5TxVAFkH26CJ74WhvLNT1/";

/// What `users.ign` asks for.
pub(super) const USERS: &[Ask] = &[
    ask(
        "a group with a gid",
        "getent group marketing | cut -d: -f3",
        "9000",
    ),
    ask(
        "a group",
        "getent group engineering | cut -d: -f1",
        "engineering",
    ),
    ask(
        "core's password",
        "sudo getent shadow core | cut -d: -f2",
        HASH,
    ),
    ask(
        "core in a group made by the same configuration",
        "id -nG core | tr ' ' '\\n' | grep -x engineering",
        "engineering",
    ),
    ask(
        "core still in the groups that the image gives it",
        "id -nG core | tr ' ' '\\n' | grep -x -e adm -e docker -e sudo -e systemd-journal -e wheel | sort | paste -sd ' '",
        "adm docker sudo systemd-journal wheel",
    ),
    ask(
        "a user's password",
        "sudo getent shadow mira | cut -d: -f2",
        HASH,
    ),
    ask(
        "a user's groups",
        "id -nG mira | tr ' ' '\\n' | sort | paste -sd ' '",
        "docker mira sudo",
    ),
    ask(
        "a shell that people expect",
        "getent passwd mira | cut -d: -f7",
        "/bin/bash",
    ),
    ask("a home", "stat -c '%U %G' /home/mira", "mira mira"),
    ask(
        "what a home begins with",
        "sudo ls -A /home/mira | grep -x .bashrc",
        ".bashrc",
    ),
    ask(
        "a user's key",
        "sudo grep -c ' mira@example.net$' /home/mira/.ssh/authorized_keys",
        "1",
    ),
    ask(
        "nobody else reads or writes the keys",
        "sudo stat -c '%U %G %a' /home/mira/.ssh /home/mira/.ssh/authorized_keys",
        "mira mira 700\nmira mira 600",
    ),
    ask("a uid", "id -u tomas", "1200"),
    ask("a primary group", "id -gn tomas", "engineering"),
    ask(
        "two more groups",
        "id -nG tomas | tr ' ' '\\n' | sort | paste -sd ' '",
        "engineering marketing wheel",
    ),
    ask(
        "another shell, a full name, and the home's path",
        "getent passwd lea | cut -d: -f5-7",
        "Lea, on call:/home/lea:/bin/sh",
    ),
    ask(
        "no home where none is wanted",
        "test -e /home/lea || echo none",
        "none",
    ),
    ask(
        "a group that Debian has",
        "id -nG lea | tr ' ' '\\n' | grep -x plugdev",
        "plugdev",
    ),
    ask(
        "no password, and none to guess",
        "sudo getent shadow deploy | cut -d: -f2 | grep -c '^[*!]'",
        "1",
    ),
    ask(
        "a rule for sudo",
        "sudo stat -c '%U %a' /etc/sudoers.d/deploy; sudo -l -U deploy | grep -o 'NOPASSWD: .*'",
        "root 440\nNOPASSWD: /usr/bin/systemctl",
    ),
];

/// What `system-user.ign` asks for.
pub(super) const SYSTEM_USER: &[Ask] = &[
    ask(
        "a uid of the system's",
        "test \"$(id -u collector)\" -lt 1000 && echo yes",
        "yes",
    ),
    ask(
        "its group",
        "id -g collector; id -gn collector",
        "710\nmetrics",
    ),
    ask(
        "no login",
        "getent passwd collector | cut -d: -f7",
        "/usr/sbin/nologin",
    ),
    ask(
        "directories of its own, by name",
        "sudo stat -c '%U %G %a' /var/lib/collector /var/lib/collector/spool",
        "collector metrics 750\ncollector metrics 770",
    ),
    ask(
        "a file that its group reads",
        "stat -c '%U %G %a' /etc/collector.conf",
        "root metrics 640",
    ),
    ask(
        "a unit that runs as it",
        "systemctl is-active collector.service",
        "active",
    ),
    ask(
        "what that unit wrote",
        "sudo stat -c '%U' /var/lib/collector/spool/started; sudo cat /var/lib/collector/spool/started",
        "collector\ninterval = 30",
    ),
];
