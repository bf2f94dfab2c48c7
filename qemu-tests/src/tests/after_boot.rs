//! What a machine is expected to do once it runs, and again after a boot that nobody watches: one network card, a disk
//! that grows, a log that outlives a crash. Its configuration has hardly more than the key to log in with.

mod later;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::{first_boot, image_kernel, plain_docker, surface};
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    description,
    host::Host,
    machine::Machine,
    suite::{Names, Suite},
};

/// The cases here, in the order of the machine's boots; `later` has those that need another one.
pub(super) const CASES: Names = &[
    // First, for whatever stands on the console by now is the boot's.
    "after_boot::online_means_an_address",
    "after_boot::drop_in_changes_what_is_waited_for",
    "after_boot::nothing_of_ours_waits_in_vain",
    "after_boot::systemd_finds_no_fault_with_the_units",
    "after_boot::login_user_may_ping_and_use_sudo",
    "after_boot::only_known_sockets_listen",
    "after_boot::journal_is_on_the_disk_and_bounded",
    "after_boot::kernel_restarts_after_a_panic_at_any_time",
    "after_boot::advertised_default_route_outlives_a_restart_of_networkd",
    "after_boot::root_fills_a_disk_that_grew",
    "after_boot::journal_has_the_former_boot_and_ignition",
    "after_boot::container_addresses_do_not_outlive_a_boot",
    "after_boot::reset_leaves_a_journal_and_a_disk_that_grew_again",
    "after_boot::panicked_kernel_is_back_by_itself",
    "after_boot::what_a_power_cut_tore_is_mended",
];

/// Those that are too long for every change.
pub(super) const EXTENDED: Names = &[
    "after_boot::reset_leaves_a_journal_and_a_disk_that_grew_again",
    "after_boot::panicked_kernel_is_back_by_itself",
    "after_boot::what_a_power_cut_tore_is_mended",
];

/// The address that QEMU's user-mode network gives by DHCP.
const ADDRESS: &str = "10.0.2.15";
/// What the probe unit of the configuration saw when it was started after `network-online.target`.
const PROBE: &str = "/run/online-probe";

/// Boots the machine as often as the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let groups = [
        CASES,
        plain_docker::CASES,
        surface::CASES,
        image_kernel::CASES,
    ];
    if !groups.iter().any(|names| suite.wants_any(names)) {
        return;
    }
    let mut result = Ok(());
    match start(host, common, &dir.join("alone")).await {
        Err(error) => result = Err(error),
        Ok(mut cluster) => {
            if let Err(error) = boots(suite, host, common, &mut cluster).await {
                suite.boot_failed("alone", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    for names in groups {
        suite.close(names, result.as_ref().err());
    }
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "alone".into();
        node.ignition = configuration(&host.public_key);
    }
    let options = Options {
        alone: true,
        ..Options::default()
    };
    Cluster::start(host, dir, nodes, options).await
}

/// The key, a unit that wants the network as a user's would, and a drop-in that sorts before the image's own.
fn configuration(public_key: &str) -> String {
    let probe = format!(
        "[Unit]\nWants=network-online.target\nAfter=network-online.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/ip -4 -o address show\n\
         StandardOutput=file:{PROBE}\n[Install]\nWantedBy=multi-user.target\n"
    );
    let wait = "[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-networkd-wait-online \
                --any --ipv4 --timeout=119\n";
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [public_key]}]},
        "systemd": {"units": [
            {"name": "online-probe.service", "enabled": true, "contents": probe},
            {"name": "systemd-networkd-wait-online.service",
             "dropins": [{"name": "10-any.conf", "contents": wait}]},
        ]},
    })
    .to_string()
}

async fn boots(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    cluster: &mut Cluster,
) -> Result<()> {
    let progress = suite.progress;
    progress.step("first boot of a machine with one network card and hardly a configuration");
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    suite
        .case(CASES[0], cluster, async |cluster| {
            online(alone(cluster)?, &state).await
        })
        .await;
    suite.case(CASES[1], cluster, drop_in).await;
    suite.case(CASES[2], cluster, nothing_waits).await;
    suite.case(CASES[3], cluster, no_fault).await;
    suite.case(CASES[4], cluster, login_user).await;
    suite.case(CASES[5], cluster, sockets).await;
    suite.case(CASES[6], cluster, journal).await;
    suite.case(CASES[7], cluster, panic_settings).await;
    suite.case(CASES[8], cluster, advertised_route).await;
    plain_docker::run(suite, cluster, &state).await;
    surface::run(suite, cluster).await;
    image_kernel::run(suite, common, cluster).await;
    later::run(suite, host, cluster).await
}

fn alone(cluster: &mut Cluster) -> Result<&mut Machine> {
    let [machine] = &mut cluster.machines[..] else {
        bail!("not one machine")
    };
    Ok(machine)
}

/// The target is reached, with the address that it stands for, and no wait ended in failure.
async fn online(machine: &Machine, state: &str) -> Result<()> {
    first_boot::ended_well(machine, state).await?;
    let target = machine
        .ssh
        .run("systemctl is-active network-online.target docker.service")
        .await?;
    ensure!(
        target == "active\nactive",
        "network-online.target and docker.service are {target:?}"
    );
    let seen = machine.ssh.run(&format!("cat {PROBE}")).await?;
    ensure!(
        seen.contains(ADDRESS),
        "network-online.target was reached without {ADDRESS}: {seen:?}"
    );
    Ok(())
}

async fn drop_in(cluster: &mut Cluster) -> Result<()> {
    let said = alone(cluster)?
        .ssh
        .run("systemctl show -p LoadState,ActiveState,ExecStart systemd-networkd-wait-online.service")
        .await?;
    ensure!(
        said.contains("LoadState=loaded")
            && said.contains("ActiveState=active")
            && said.contains("--timeout=119"),
        "the configuration's drop-in has no effect: {said}"
    );
    Ok(())
}

/// Edits of packaged units that the boot's order rests on: the unit, its setting, the word that must not be there.
const NOT_WAITED_FOR: &[(&str, &str, &str)] = &[
    ("systemd-resolved.service", "Before", "sysinit.target"),
    ("systemd-timesyncd.service", "Before", "sysinit.target"),
    ("containerd.service", "After", "network.target"),
    ("docker.service", "After", "network-online.target"),
    ("docker.service", "Wants", "network-online.target"),
    ("etcd.service", "Wants", "network-online.target"),
    ("selvage.service", "After", "network-online.target"),
    ("selvage.service", "Wants", "network-online.target"),
];

async fn nothing_waits(cluster: &mut Cluster) -> Result<()> {
    let machine = alone(cluster)?;
    let script: Vec<_> = NOT_WAITED_FOR
        .iter()
        .map(|(unit, setting, _)| format!("systemctl show -p {setting} {unit}"))
        .collect();
    let said = machine.ssh.run(&script.join(" && ")).await?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(
        lines.len() == NOT_WAITED_FOR.len(),
        "not one answer for each question: {said}"
    );
    for ((unit, setting, word), line) in NOT_WAITED_FOR.iter().zip(lines) {
        let words = line
            .strip_prefix(&format!("{setting}="))
            .with_context(|| format!("{unit}: {line:?} is no {setting}="))?;
        ensure!(
            !words.split(' ').any(|known| known == *word),
            "{unit} has {word} in {setting}=: {words}"
        );
    }
    Ok(())
}

/// Unknown settings, units that cannot be read, cycles: the manager says each in a warning of its own.
async fn no_fault(cluster: &mut Cluster) -> Result<()> {
    let said = alone(cluster)?
        .ssh
        .run("journalctl -b -q --no-pager -o cat -p warning _PID=1")
        .await?;
    ensure!(said.is_empty(), "systemd complains:\n{said}");
    Ok(())
}

async fn login_user(cluster: &mut Cluster) -> Result<()> {
    let machine = alone(cluster)?;
    for script in ["ping -c 1 -W 5 127.0.0.1", "sudo -n true"] {
        machine.ssh.run(script).await?;
    }
    Ok(())
}

async fn sockets(cluster: &mut Cluster) -> Result<()> {
    let said = alone(cluster)?.ssh.run("sudo ss -H -lntup").await?;
    let found = said
        .lines()
        .map(|line| listener(line).with_context(|| format!("not understood: {line}")))
        .collect::<Result<Vec<_>>>()?;
    surface::sockets().compare(found.iter().map(String::as_str))
}

/// A line of `ss -H -lntup` as `protocol address:port program`, with interfaces (`%` and what follows) left out.
fn listener(line: &str) -> Option<String> {
    let mut columns = line.split_whitespace();
    let protocol = columns.next()?;
    let (address, port) = columns.nth(3)?.rsplit_once(':')?;
    let address = match address.split_once('%') {
        // [fe80::1]%enp0s2, or [fe80::1%enp0s2]
        Some((address, interface)) if interface.ends_with(']') => format!("{address}]"),
        Some((address, _)) => address.to_owned(),
        None => address.to_owned(),
    };
    // users:(("sshd",pid=1,fd=3))
    let program = line.split('"').nth(1).unwrap_or("kernel");
    Some(format!("{protocol} {address}:{port} {program}"))
}

async fn journal(cluster: &mut Cluster) -> Result<()> {
    let machine = alone(cluster)?;
    let said = machine
        .ssh
        .run("journalctl -b -q --no-pager -o cat -t systemd-journald")
        .await?;
    ensure!(
        said.lines()
            .any(|line| line.starts_with("System Journal (/var/log/journal/")),
        "the journal is not on the disk:\n{said}"
    );
    let limit = machine
        .ssh
        .run("systemd-analyze cat-config systemd/journald.conf | grep ^SystemMaxUse=")
        .await
        .context("the journal has no limit")?;
    let limit = limit.rsplit('=').next().unwrap_or_default();
    ensure!(
        said.contains(&format!("max {limit}")),
        "journald knows no limit of {limit}:\n{said}"
    );
    machine
        .ssh
        .run("journalctl -b -q --no-pager -o cat -t ignition | grep -q 'finished successfully'")
        .await
        .context("what Ignition said is not in this boot's journal")
        .map(drop)
}

/// By sysctl.d as an administrator would look for it, and on the command line for the time before that is read.
async fn panic_settings(cluster: &mut Cluster) -> Result<()> {
    let machine = alone(cluster)?;
    let seconds = machine.ssh.run("cat /proc/sys/kernel/panic").await?;
    ensure!(
        seconds.parse().is_ok_and(|seconds: i32| seconds > 0),
        "kernel.panic is {seconds}: a machine that panics stays dead"
    );
    machine
        .ssh
        .run("grep -Eq '(^| )panic=[1-9]' /proc/cmdline")
        .await
        .context("a machine that panics before sysctl.d is read stays dead")
        .map(drop)
}

/// QEMU's user-mode network advertises itself as an IPv6 router. Looked at every second for a minute: an advertisement that
/// comes by itself may be that far away.
async fn advertised_route(cluster: &mut Cluster) -> Result<()> {
    const ABSENT: &str = "ip -6 route show default | grep -q . && { systemctl restart systemd-networkd; \
        gone=0; worst=0; for _ in $(seq 60); do sleep 1; \
        if ip -6 route show default | grep -q .; then gone=0; else gone=$((gone + 1)); fi; \
        [ \"$gone\" -le \"$worst\" ] || worst=$gone; done; echo \"$worst\"; }";
    let machine = alone(cluster)?;
    let worst = machine.ssh.run(&format!("sudo sh -c '{ABSENT}'")).await?;
    let worst: u32 = worst
        .trim()
        .parse()
        .with_context(|| format!("there was no IPv6 default route to begin with: {worst:?}"))?;
    ensure!(
        worst <= 2,
        "the default route of a router advertisement was away for {worst} s after a restart of networkd"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_listeners_are_told_from_others() {
        let line = |protocol: &str, local: &str, program: &str| {
            format!("{protocol} UNCONN 0 0 {local} 0.0.0.0:* users:((\"{program}\",pid=7,fd=3))")
        };
        let listed = |line: &str| {
            let said = surface::sockets().compare([&*listener(line).unwrap_or_default()]);
            !said.is_err_and(|error| error.to_string().contains("not in the list"))
        };
        for known in [
            line("tcp", "[::]:22", "sshd"),
            line("udp", "127.0.0.53%lo:53", "systemd-resolve"),
            line("udp", "[fe80::1]%enp0s2:546", "systemd-network"),
            line("udp", "[fe80::1%enp0s2]:546", "systemd-network"),
            line("tcp", "127.0.0.1:40123", "containerd"),
        ] {
            assert!(listed(&known), "{known}");
        }
        for unknown in [
            line("udp", "0.0.0.0:5355", "systemd-resolve"),
            line("udp", "[::]:5353", "systemd-resolve"),
            line("tcp", "0.0.0.0:40123", "containerd"),
            line("tcp", "0.0.0.0:22", "dropbear"),
            "udp UNCONN 0 0 0.0.0.0:8472 0.0.0.0:*".into(),
        ] {
            assert!(!listed(&unknown), "{unknown}");
        }
        assert_eq!(listener(""), None);
    }

    #[test]
    fn the_configuration_is_one_that_the_image_takes() {
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f x";
        let report = selvage::appliance::ignition::check(&configuration(key));
        assert_eq!(report.errors(), 0, "{report:?}");
    }
}
