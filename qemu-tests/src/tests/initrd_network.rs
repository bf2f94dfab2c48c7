//! Machines whose configuration is somewhere on the network: it is fetched with the address that the kernel command line
//! or the platform gives, and where it does not come the console says what was tried.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    console::Console,
    description,
    host::Host,
    machine::Machine,
    progress::Progress,
    suite::{Names, Suite},
    wait,
};

mod given;

/// The cases here.
pub(super) const CASES: Names = &[
    "initrd_network::address_by_ip_is_used_for_the_configuration",
    "initrd_network::address_by_ip_holds_in_later_boots",
    "initrd_network::console_says_that_no_dhcp_server_answers",
    "initrd_network::console_says_that_the_server_refuses",
    "initrd_network::console_says_that_the_name_is_unknown",
    "initrd_network::configuration_that_comes_late_is_fetched",
    given::CASES[0],
    given::CASES[1],
    given::CASES[2],
    given::CASES[3],
];

/// Those that are too long for every change.
pub(super) const EXTENDED: Names = &[
    "initrd_network::address_by_ip_holds_in_later_boots",
    "initrd_network::console_says_that_no_dhcp_server_answers",
    "initrd_network::console_says_that_the_server_refuses",
    "initrd_network::console_says_that_the_name_is_unknown",
    "initrd_network::configuration_that_comes_late_is_fetched",
    given::CASES[0],
    given::CASES[1],
    given::CASES[2],
    given::CASES[3],
];

/// The command lines of the machines. The prefix is not the one that QEMU gives by DHCP, so the address can only be
/// from here; `enp0s2` is the first card of the machine's PCI bus.
const STATIC: &str = "ip=10.0.2.15::10.0.2.2:255.255.255.128::enp0s2:none nameserver=10.0.2.3 \
                      ignition.config.url=http://10.0.2.4/elsewhere.ign";
const NO_DHCP: &str = "ignition.config.url=http://192.0.2.1/absent.ign?token=secret";
/// A port of the host's loopback that nobody listens on (tcpmux).
const REFUSED: &str = "ip=dhcp ignition.config.url=http://10.0.2.2:1/refused.ign";
/// A name that never exists (RFC 6761).
const NO_NAME: &str = "ip=dhcp ignition.config.url=http://absent.invalid/config.ign";
/// Served only after the first report.
const LATE: &str = "ip=dhcp ignition.config.url=http://10.0.2.4/late.ign";

/// From QEMU's start to the first report; this machine shares the host with others that boot.
const REPORT_DEADLINE: Duration = Duration::from_secs(240);
/// From the first report to the second.
const AGAIN_DEADLINE: Duration = Duration::from_secs(120);
/// What the first report may have waited for, by the machine's own clock.
const FIRST_REPORT_SECONDS: u32 = 45;
/// How a report begins.
const REPORT: &str = "Ignition is still waiting for its config after ";

/// The machines that were started, or why one was not.
pub(super) type Started = Result<Vec<(usize, Cluster)>>;

/// Starts the machines of the wanted cases.
///
/// # Errors
/// When one cannot be started.
pub(super) async fn start(suite: &Suite<'_>, host: &Host, common: &Common, dir: &Path) -> Started {
    let machines = [
        (0, "static", STATIC),
        (2, "no-dhcp", NO_DHCP),
        (3, "refused", REFUSED),
        (4, "no-name", NO_NAME),
    ];
    let mut started = Vec::new();
    for (case, name, kernel_arguments) in machines {
        // The second case goes on with the first one's machine.
        let wanted = suite.wants(CASES[case]) || (case == 0 && suite.wants(CASES[1]));
        if !wanted {
            continue;
        }
        let options = Options {
            alone: case != 2,
            unanswered: case == 2,
            internet: matches!(case, 3 | 4),
            exit_on_reset: case != 0,
            kernel_arguments,
            ..Options::default()
        };
        let cluster = start_one(suite, host, common, &dir.join(name), options).await?;
        started.push((case, cluster));
    }
    Ok(started)
}

async fn start_one(
    suite: &Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
    options: Options,
) -> Result<Cluster> {
    let name = dir.file_name().context("no name")?.to_string_lossy();
    suite.progress.step(format!(
        "boot a machine whose configuration is elsewhere ({name})"
    ));
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = name.clone().into_owned();
        node.served = vec![("elsewhere.ign".into(), configuration(host).into_bytes())];
    }
    Cluster::start(host, dir, nodes, options).await
}

fn configuration(host: &Host) -> String {
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [host.public_key]}]},
    })
    .to_string()
}

/// Runs the cases on the machines that [`start`] gave, and then the last one.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
    started: Started,
) {
    let progress = suite.progress;
    let mut result = Ok(());
    match started {
        Err(error) => result = Err(error),
        Ok(started) => {
            for (case, mut cluster) in started {
                let ran = match case {
                    0 => static_address(suite, &mut cluster, progress).await,
                    2 => {
                        suite.case(CASES[2], &mut cluster, no_dhcp).await;
                        Ok(())
                    }
                    4 => {
                        suite.case(CASES[4], &mut cluster, no_name).await;
                        Ok(())
                    }
                    _ => {
                        suite.case(CASES[3], &mut cluster, refused).await;
                        Ok(())
                    }
                };
                if let Err(error) = ran {
                    suite.boot_failed("static", &mut cluster, &error).await;
                    result = Err(error);
                }
                cluster.discard();
            }
        }
    }
    if suite.wants(CASES[5]) {
        let ran = run_late(suite, host, common, &dir.join("late")).await;
        result = result.and(ran);
    }
    let ran = given::run(suite, host, common, dir).await;
    result = result.and(ran);
    suite.close(CASES, result.as_ref().err());
}

async fn static_address(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    progress: &Progress,
) -> Result<()> {
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    suite
        .case(CASES[0], cluster, async |cluster| {
            ensure!(state == "running", "the boot is {state:?}");
            has_the_address_of_ip(only(cluster)?).await
        })
        .await;
    suite
        .case(CASES[1], cluster, async |cluster| {
            let machine = only(cluster)?;
            machine.reboot().await?;
            machine.wait_for_ssh(progress).await?;
            has_the_address_of_ip(machine).await
        })
        .await;
    Ok(())
}

async fn has_the_address_of_ip(machine: &Machine) -> Result<()> {
    has_the_address(machine, "enp0s2", "10.0.2.15/25", "10.0.2.3").await?;
    no_dhcp_was_used(machine, "enp0s2").await
}

/// The card has this address and no other, and this name server.
async fn has_the_address(machine: &Machine, card: &str, address: &str, server: &str) -> Result<()> {
    let said = machine
        .ssh
        .run(&format!("ip -4 -o address show scope global dev {card}"))
        .await?;
    ensure!(
        said.contains(address) && said.lines().count() == 1,
        "{card} does not have {address} alone: {said:?}"
    );
    let said = machine.ssh.run(&format!("resolvectl dns {card}")).await?;
    ensure!(said.contains(server), "no name server: {said:?}");
    Ok(())
}

/// Nobody has asked for an address by DHCP in this boot.
async fn no_dhcp_was_used(machine: &Machine, card: &str) -> Result<()> {
    // Nor in the initrd, whose journal may be under another machine id.
    let networkd = machine
        .ssh
        .run("sudo journalctl --merge -q -o cat _COMM=systemd-network _BOOT_ID=$(tr -d - </proc/sys/kernel/random/boot_id)")
        .await?;
    ensure!(
        networkd.contains(&format!("{card}: Link UP")) && !networkd.contains("DHCPv4 address"),
        "DHCP was asked in spite of the static address: {networkd}"
    );
    Ok(())
}

fn only(cluster: &mut Cluster) -> Result<&mut Machine> {
    let [machine] = &mut cluster.machines[..] else {
        bail!("not one machine")
    };
    Ok(machine)
}

async fn no_dhcp(cluster: &mut Cluster) -> Result<()> {
    let report = reported_twice(only(cluster)?).await?;
    let card = "enp0s2: carrier, no address; waiting for DHCP for ";
    for part in [
        "source: http://192.0.2.1/absent.ign\n",
        card,
        "DNS servers: none",
    ] {
        ensure!(
            report.contains(part),
            "{part:?} is not in the report:\n{report}"
        );
    }
    Ok(())
}

async fn refused(cluster: &mut Cluster) -> Result<()> {
    let report = reported_twice(only(cluster)?).await?;
    for part in [
        "source: http://10.0.2.2:1/refused.ign\n",
        "enp0s2: carrier, DHCPv4 address 10.0.2.15/24, gateway 10.0.2.2",
        "DNS servers: 10.0.2.3",
        "10.0.2.2:1: connect: connection refused",
    ] {
        ensure!(
            report.contains(part),
            "{part:?} is not in the report:\n{report}"
        );
    }
    Ok(())
}

async fn no_name(cluster: &mut Cluster) -> Result<()> {
    let report = reported_twice(only(cluster)?).await?;
    for part in [
        "source: http://absent.invalid/config.ign\n",
        "DNS servers: 10.0.2.3",
        "lookup absent.invalid",
    ] {
        ensure!(
            report.contains(part),
            "{part:?} is not in the report:\n{report}"
        );
    }
    Ok(())
}

/// Ignition takes a 404 for final after five minutes, so this machine cannot wait for other cases as the others do.
async fn run_late(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) -> Result<()> {
    let options = Options {
        alone: true,
        exit_on_reset: true,
        kernel_arguments: LATE,
        ..Options::default()
    };
    let mut cluster = start_one(suite, host, common, dir, options).await?;
    let (config, progress) = (configuration(host), suite.progress);
    suite
        .case(CASES[5], &mut cluster, async |cluster| {
            late(cluster, &config, progress).await
        })
        .await;
    cluster.discard();
    Ok(())
}

/// The server says 404 until the machine has reported that, and then has the file.
async fn late(cluster: &mut Cluster, config: &str, progress: &Progress) -> Result<()> {
    let machine = only(cluster)?;
    let console = machine.console.path().to_owned();
    wait::until("a report on the console", REPORT_DEADLINE, || async {
        let text = Console::new(console.clone()).text();
        ensure!(text.contains(REPORT), "no report on the console");
        ensure!(
            text.contains("last error: GET result: Not Found"),
            "the report does not say what the server answered"
        );
        Ok(())
    })
    .await?;
    let disk = machine.spec.disk.parent().context("no directory")?;
    let file = disk.join("served/late.ign");
    std::fs::write(&file, config).with_context(|| format!("failed to write {}", file.display()))?;
    machine.wait_for_ssh(progress).await?;
    let state = machine.settle(progress).await?;
    ensure!(state == "running", "the boot is {state:?}");
    Ok(())
}

/// The first report on the console, which must be timely; a second one shows that the machine stays and goes on.
async fn reported_twice(machine: &mut Machine) -> Result<String> {
    let console = machine.console.path().to_owned();
    let reports = |count: usize| {
        let text = Console::new(console.clone()).text();
        let reports: Vec<_> = text.split(REPORT).skip(1).map(str::to_owned).collect();
        // Whole, that is with its last line.
        match reports.get(count - 1) {
            Some(report) if report.contains("last error: ") && report.ends_with('\n') => {
                Ok(reports[0].clone())
            }
            _ => bail!("{} reports on the console", reports.len()),
        }
    };
    let report = wait::until("a report on the console", REPORT_DEADLINE, || async {
        reports(1)
    })
    .await?;
    let seconds = report.split(' ').next().unwrap_or_default();
    ensure!(
        seconds.parse::<u32>().context("no number of seconds")? <= FIRST_REPORT_SECONDS,
        "the first report came after {seconds} s"
    );
    wait::until("a second report", AGAIN_DEADLINE, || async { reports(2) }).await?;
    ensure!(
        machine.is_running(),
        "the machine reset itself while it waited"
    );
    // Ignition gives up in the end, on a busy host before this is read; that much may be on the console then too.
    let gives_up = ["Ignition failed", "dependency failed", "unit failed"];
    let mut hits = machine.console.check()?;
    hits.retain(|hit| !gives_up.contains(&hit.meaning));
    ensure!(hits.is_empty(), "bad messages on the console: {hits:?}");
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve;

    #[test]
    fn the_static_machine_asks_where_the_file_is_served() {
        assert!(STATIC.contains(&format!("http://{}/elsewhere.ign", serve::ADDRESS)));
    }
}
