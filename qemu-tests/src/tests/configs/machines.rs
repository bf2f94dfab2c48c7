//! Boots the machines of these tests, few at a time, and runs the cases on them.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    CASES, Config, EXTENDED, access, look_at, refused, secure,
    table::{self, Kind},
    told,
};
use crate::{
    cli::Common,
    cluster::{Cluster, Node, Options},
    description,
    host::Host,
    machine::Machine,
    progress::Progress,
    ssh::COMMAND_DEADLINE,
    suite::Suite,
};

/// Machines that stop in their initrd; so many share the host's processors.
const SIDE_BY_SIDE: usize = 3;

/// Boots what the wanted cases need, and runs them.
pub(in crate::tests) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let mut result = Ok(());
    for machines in [
        run_shared(suite, host, common, dir).await,
        run_disk(suite, host, common, dir).await,
        run_disks(suite, host, common, dir).await,
        run_embedded(suite, host, common, dir).await,
        secure::run(suite, host, common, dir).await,
        run_refused(suite, host, common, dir).await,
    ] {
        result = result.and(machines);
    }
    for names in [CASES, EXTENDED] {
        suite.close(names, result.as_ref().err());
    }
}

/// A machine of the name with the configuration, one card, and everything that is served.
async fn start(
    host: &Host,
    common: &Common,
    dir: &Path,
    configs: &[(&str, String, String)],
    options: Options,
) -> Result<Cluster> {
    let Some(node) = description::nodes(&common.cluster, 1, &host.public_key)?.pop() else {
        bail!("the description has no node")
    };
    let nodes = configs
        .iter()
        .map(|(name, ignition, replacement)| Node {
            name: (*name).to_owned(),
            ignition: ignition.clone(),
            served: access::served(replacement),
            ..node.clone()
        })
        .collect();
    Cluster::start(
        host,
        dir,
        nodes,
        Options {
            alone: true,
            ..options
        },
    )
    .await
}

fn texts(configs: &[Config]) -> Vec<&'static str> {
    configs.iter().map(|config| config.text).collect()
}

fn wants(suite: &Suite<'_>, kind: &Kind) -> bool {
    suite.wants(kind.is_up) || kind.configs.iter().any(|config| suite.wants(config.case))
}

/// The machines `node`, `flatcar` and `told`. The first is up last, so the others are looked at meanwhile.
async fn run_shared(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) -> Result<()> {
    let node = wants(suite, &table::NODE) || suite.wants(CHECK);
    let flatcar = wants(suite, &table::FLATCAR);
    let told = suite.wants(told::CASE);
    if !(node || flatcar || told) {
        return Ok(());
    }
    suite
        .progress
        .step("boot machines with configurations as people write them");
    let start_if = async |wanted: bool, name: &'static str, texts: &[&str]| {
        if !wanted {
            return Ok(None);
        }
        let config = access::merged(texts, &host.public_key);
        let configs = [(name, config, String::new())];
        let dir = dir.join(name);
        start(host, common, &dir, &configs, Options::default())
            .await
            .map(Some)
    };
    // All started before any is waited for.
    let node = start_if(node, table::NODE.name, &texts(table::NODE.configs)).await?;
    let flatcar = start_if(flatcar, table::FLATCAR.name, &texts(table::FLATCAR.configs)).await?;
    let told = start_if(told, "told", &[told::CONFIG]).await?;
    if let Some(mut cluster) = told {
        match boot(suite, &mut cluster).await {
            Ok(()) => suite.case(told::CASE, &mut cluster, told::is_told).await,
            Err(error) => suite.close(&[told::CASE], Some(&error)),
        }
        cluster.discard();
    }
    if let Some(cluster) = flatcar {
        run_kind(suite, cluster, &table::FLATCAR).await;
    }
    if let Some(cluster) = node {
        run_kind(suite, cluster, &table::NODE).await;
    }
    Ok(())
}

/// The machine `disk`. It boots with a configuration that is replaced by another one, which it fetches.
async fn run_disk(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) -> Result<()> {
    let kind = &table::DISK;
    let Some((first, others)) = kind.configs.split_first().filter(|_| wants(suite, kind)) else {
        return Ok(());
    };
    suite
        .progress
        .step("boot a machine with a second disk and a replaced configuration");
    let replacement = access::merged(&texts(others), &host.public_key);
    let configs = [(kind.name, first.text.to_owned(), replacement)];
    let options = Options {
        spare_disks: 1,
        ..Options::default()
    };
    let cluster = start(host, common, &dir.join(kind.name), &configs, options).await?;
    run_kind(suite, cluster, kind).await;
    Ok(())
}

/// The machines `disks` and `tpm`. Only firmware starts one with the kernel arguments that it writes to its disk.
async fn run_disks(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) -> Result<()> {
    for (kind, again, spare_disks, tpm) in [
        (&table::DISKS, DISKS_AGAIN, 3, false),
        (&table::TPM, TPM_AGAIN, 1, true),
    ] {
        if !wants(suite, kind) && !suite.wants(again) {
            continue;
        }
        suite.progress.step(format!(
            "boot a machine with file systems on other disks ({})",
            kind.name
        ));
        let config = access::merged(&texts(kind.configs), &host.public_key);
        let configs = [(kind.name, config, String::new())];
        let options = Options {
            spare_disks,
            tpm,
            firmware: true,
            ..Options::default()
        };
        let cluster = start(host, common, &dir.join(kind.name), &configs, options).await?;
        run_kind(suite, cluster, kind).await;
    }
    Ok(())
}

/// The machine `embedded`. Firmware starts it, whose boot loader hands the configuration over.
async fn run_embedded(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
) -> Result<()> {
    let kind = &table::EMBEDDED;
    if !wants(suite, kind) {
        return Ok(());
    }
    suite
        .progress
        .step("boot a machine with its configuration in the image");
    let config = access::merged(&texts(kind.configs), &host.public_key);
    let configs = [(kind.name, config, String::new())];
    let options = Options {
        firmware: true,
        embedded: true,
        ..Options::default()
    };
    let cluster = start(host, common, &dir.join(kind.name), &configs, options).await?;
    run_kind(suite, cluster, kind).await;
    Ok(())
}

/// What the configurations of these machines ask for is there after another boot.
const DISKS_AGAIN: &str = "configs::disks_are_there_again";
const TPM_AGAIN: &str = "configs::tpm_opens_again";

async fn again(cluster: &mut Cluster, kind: &Kind, progress: &Progress) -> Result<()> {
    let Some(machine) = cluster.machines.first_mut() else {
        bail!("no machine")
    };
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    machine.settle(progress).await?;
    told::reported(machine).await?;
    look_at(machine, table::WELL).await?;
    for config in kind.configs {
        look_at(machine, config.asks).await?;
    }
    Ok(())
}

/// The case of kernel arguments, and what the console says when the machine restarts for them.
const ARGUMENTS: &str = "configs::kernel_arguments";
const RESTARTS: &str = "the machine restarts once for them";

fn restarted_once(machine: &Machine) -> Result<()> {
    let restarts = machine.console.text().matches(RESTARTS).count();
    ensure!(
        restarts == 1,
        "the machine restarted {restarts} times for its kernel arguments"
    );
    Ok(())
}

/// The machines that stop.
async fn run_refused(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
) -> Result<()> {
    let wanted: Vec<_> = refused::TABLE
        .iter()
        .filter(|refused| suite.wants(refused.case))
        .collect();
    for batch in wanted.chunks(SIDE_BY_SIDE) {
        suite
            .progress
            .step("boot machines with configurations that are refused");
        let configs: Vec<_> = batch
            .iter()
            .map(|refused| {
                let name = refused.case.rsplit("::").next().unwrap_or_default();
                (name, refused.text.to_owned(), String::new())
            })
            .collect();
        let options = Options {
            exit_on_reset: true,
            spare_disks: 1,
            ..Options::default()
        };
        let mut cluster = start(host, common, &dir.join("refused"), &configs, options).await?;
        refused::run(suite, &mut cluster, batch).await;
        cluster.discard();
    }
    Ok(())
}

async fn boot(suite: &Suite<'_>, cluster: &mut Cluster) -> Result<()> {
    let booted = async {
        cluster.wait_for_ssh(suite.progress).await?;
        cluster.settle(suite.progress).await.map(drop)
    };
    let booted = booted.await;
    if let Err(error) = &booted {
        let name = cluster.machines[0].name().to_owned();
        suite.boot_failed(&name, cluster, error).await;
    }
    booted
}

/// All cases of one machine that was started.
async fn run_kind(suite: &mut Suite<'_>, mut cluster: Cluster, kind: &Kind) {
    if let Err(error) = boot(suite, &mut cluster).await {
        let cases: Vec<_> = kind.configs.iter().map(|config| config.case).collect();
        suite.close(&cases, Some(&error));
        suite.close(&[kind.is_up], Some(&error));
        cluster.discard();
        return;
    }
    suite
        .case(kind.is_up, &mut cluster, async |cluster| {
            let machine = &cluster.machines[0];
            told::reported(machine).await?;
            look_at(machine, table::WELL).await
        })
        .await;
    for config in kind.configs {
        suite
            .case(config.case, &mut cluster, async |cluster| {
                let machine = &cluster.machines[0];
                look_at(machine, config.asks)
                    .await
                    .with_context(|| format!("in the shape of {}", config.shape))?;
                match config.case {
                    LOGINS => logins(machine).await,
                    ARGUMENTS => restarted_once(machine),
                    _ => Ok(()),
                }
            })
            .await;
    }
    let again_case = match kind.name {
        "disks" => Some(DISKS_AGAIN),
        "tpm" => Some(TPM_AGAIN),
        _ => None,
    };
    if let Some(case) = again_case {
        let progress = suite.progress;
        suite
            .case(case, &mut cluster, async |cluster| {
                again(cluster, kind, progress).await
            })
            .await;
    }
    if kind.is_up == table::NODE.is_up {
        suite
            .case(CHECK, &mut cluster, async |cluster| {
                check(&cluster.machines[0]).await
            })
            .await;
    }
    cluster.discard();
}

/// The case whose users log in.
const LOGINS: &str = "configs::users_and_groups";

/// Users log in by key and are administrators by their groups, without a password, as on Flatcar and Fedora CoreOS.
async fn logins(machine: &Machine) -> Result<()> {
    for user in access::USERS {
        let said = machine
            .ssh
            .run_as(user, "id -un; sudo -n id -un; echo ${BASH_VERSION%%.*}")
            .await?;
        ensure!(said == format!("{user}\nroot\n5"), "{user} says {said:?}");
    }
    // The group docker.
    machine
        .ssh
        .run_as(access::USERS[0], "docker ps -q")
        .await
        .map(drop)
}

/// What the image's own `selvage ignition check` says is what the boots do.
const CHECK: &str = "configs::check_agrees_with_the_boots";

async fn check(machine: &Machine) -> Result<()> {
    let kinds = [
        table::NODE,
        table::FLATCAR,
        table::DISK,
        table::DISKS,
        table::TPM,
        table::EMBEDDED,
    ];
    let good = kinds.iter().flat_map(|kind| kind.configs);
    let good = good.map(|config| (config.case, config.text, 0));
    let bad = refused::TABLE
        .iter()
        .map(|refused| (refused.case, refused.text, refused.checked));
    let all: Vec<_> = good.chain(bad).collect();
    let script: String = all
        .iter()
        .map(|(_, text, _)| format!("selvage ignition check /dev/stdin <<'END' 2>&1\n{text}\nEND\necho \"exit $?\"\necho '----8<----'\n"))
        .collect();
    let said = machine
        .ssh
        .feed("bash -s", script.as_bytes(), COMMAND_DEADLINE)
        .await?;
    let answers: Vec<_> = said.split("----8<----").map(str::trim).collect();
    ensure!(
        answers.len() > all.len(),
        "{} answers only: {said}",
        answers.len()
    );
    let mut differences = Vec::new();
    for ((case, _, status), answer) in all.iter().zip(answers) {
        if !answer.ends_with(&format!("exit {status}")) {
            differences.push(format!("- {case}: not exit {status}: {answer}"));
        }
    }
    let told = machine
        .ssh
        .feed(
            "selvage ignition check /dev/stdin 2>&1 || true",
            told::CONFIG.as_bytes(),
            COMMAND_DEADLINE,
        )
        .await?;
    for name in told::NAMED.into_iter().chain([told::UNREAD]) {
        if !told.contains(name) {
            differences.push(format!("- {}: does not name {name}: {told}", told::CASE));
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}
