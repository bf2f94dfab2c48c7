//! Next versions that are bad, each in another way: the machine that tries one falls back by itself, says why everywhere,
//! and leaves that version alone from then on.
//!
//! One machine goes through many: the version that it has fallen back to prepares the other slot for the next case.

mod index;
mod table;

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{ENTRIES, Versions, fill, one, runs, status, update};
use crate::{
    built::{self, Built},
    cli::Common,
    cluster::{self, Cluster, Node, Options},
    description,
    host::Host,
    machine::Machine,
    progress::Progress,
    serve,
    suite::{Names, Suite},
    wait,
};
use table::{Bad, Fault};

/// The cases here, in the order in which they run. Each has a boot that fails at least, so all are left to `test --all`.
pub(in crate::tests) const CASES: Names = &[
    "bad_version::flipped_bit_in_usr",
    "bad_version::kernel_that_panics",
    "bad_version::userspace_that_hangs",
    "bad_version::kernel_that_hangs",
    "bad_version::docker_that_does_not_start",
    "bad_version::slot_of_zeros",
    "bad_version::two_bad_boots_and_a_good_one",
    "bad_version::both_bad_stays_up",
    "bad_version::agent_without_a_lease",
];
const TWO_BAD_BOOTS: &str = CASES[6];
const BOTH_BAD: &str = CASES[7];

/// From a boot that takes commands to the verdict on it, or on the version that it has fallen back from.
const JUDGEMENT: Duration = Duration::from_secs(420);
/// For unpacking a version into a slot.
const PREPARATION: Duration = Duration::from_secs(420);
/// Says which version this boot is of, with an end: one version may begin as another does.
const RUNNING: &str = ". /usr/lib/os-release; echo \"version $IMAGE_VERSION;\"";
/// The boot entry that the boot loader has counted and started.
const COUNTED: &str = "tr -d '\\0' </sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// What the timer's unit would go by, were it told to update by itself.
const SETTINGS: &str = "/etc/selvage-test.toml";
/// The boot check need not be as patient as with a machine that nobody waits for.
const PATIENCE: &str =
    "[Service]\nExecStart=\nExecStart=/usr/bin/selvage boot-check --patience 60 --limit 300\n";

/// Boots the machines as often as the wanted cases need, and runs them.
pub(in crate::tests) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let alone = CASES.len() - table::OF_A_CLUSTER.len();
    for (name, cases, is_alone) in [
        ("bad-version", &CASES[..alone], true),
        ("bad-agent", &CASES[alone..], false),
    ] {
        if !suite.wants_any(cases) {
            continue;
        }
        let mut result = Ok(());
        match start(host, common, &dir.join(name), is_alone).await {
            Err(error) => result = Err(error),
            Ok((mut cluster, versions)) => {
                if let Err(error) = boots(suite, &mut cluster, &versions, is_alone).await {
                    suite.boot_failed(name, &mut cluster, &error).await;
                    result = Err(error);
                }
                cluster.discard();
            }
        }
        suite.close(cases, result.as_ref().err());
    }
}

async fn start(
    host: &Host,
    common: &Common,
    dir: &Path,
    is_alone: bool,
) -> Result<(Cluster, Versions)> {
    let installed = Built::of(&common.image)?;
    let next = Built::of(&common.target.join("image-next"))?;
    let index = index::signed(&next).await?;
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        configure(node, &host.public_key, &index, is_alone)?;
    }
    let options = Options {
        alone: is_alone,
        firmware: true,
        spare_disks: 1,
        watchdog: true,
        ..Options::default()
    };
    let prepared = cluster::prepare(host, dir, &nodes, options).await?;
    for (spec, _) in &prepared {
        let disk = spec.spare_disks.first().context("no second disk")?;
        let scratch = dir.join("spare");
        unpack(&next, &scratch.join("unpacked")).await?;
        fill(disk, &next, &scratch).await?;
    }
    let versions = Versions {
        installed: installed.version,
        next: next.version,
    };
    Ok((Cluster::start_prepared(host, nodes, prepared)?, versions))
}

/// Leaves the files of an update unpacked in a directory, under their names without `.zst`.
async fn unpack(built: &Built, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    for (_, packed) in built.named() {
        let name = packed.file_stem().context("a file without a name")?;
        built::unpack(&packed, &dir.join(name)).await?;
    }
    Ok(())
}

/// Adds what the cases need to the node's configuration.
fn configure(node: &mut Node, ssh_key: &str, index: &index::Signed, is_alone: bool) -> Result<()> {
    let mut config: Value = if is_alone {
        description::only_a_login(ssh_key)
    } else {
        serde_json::from_str(&node.ignition).context("the rendered configuration is not JSON")?
    };
    let settings = format!(
        "[update]\nserver = \"http://{}/\"\nauto = \"apply\"\n",
        serve::ADDRESS
    );
    let files = [
        (SETTINGS, settings.as_bytes()),
        (
            "/etc/selvage/update-keys.d/served.pem",
            index.key.as_bytes(),
        ),
    ];
    for (path, contents) in files {
        let contents: String = contents.iter().map(|byte| format!("%{byte:02X}")).collect();
        let source = format!("data:,{contents}");
        add(
            &mut config["storage"]["files"],
            json!({"path": path, "mode": 0o644, "contents": {"source": source}}),
        )?;
    }
    add(
        &mut config["systemd"]["units"],
        json!({
            "name": "selvage-boot-check.service",
            "dropins": [{"name": "50-test.conf", "contents": PATIENCE}],
        }),
    )?;
    node.ignition = config.to_string();
    node.served.clone_from(&index.served);
    Ok(())
}

/// Adds to a list of the configuration that may not be there yet.
fn add(list: &mut Value, item: Value) -> Result<()> {
    if list.is_null() {
        *list = json!([]);
    }
    let list = list.as_array_mut().context("not a list")?;
    list.push(item);
    Ok(())
}

async fn boots(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    versions: &Versions,
    is_alone: bool,
) -> Result<()> {
    let progress = suite.progress;
    progress.step("first boot of a machine that will be given bad versions");
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    ensure!(state == "running", "{state}");
    let machine = one(cluster)?;
    update(machine, versions).await?;
    let health = machine.ssh.run("sudo selvage boot-check --show").await?;
    let health: Value = serde_json::from_str(&health).context("the health is not JSON")?;
    let wanted = if is_alone { "docker_ok" } else { "agent_ready" };
    ensure!(health[wanted] == true, "before the update: {health}");
    let table = if is_alone {
        table::ALONE
    } else {
        table::OF_A_CLUSTER
    };
    for bad in table {
        if !suite.wants(bad.name) {
            continue;
        }
        progress.step(bad.name);
        runs(one(cluster)?, &versions.installed).await?;
        suite
            .case(bad.name, cluster, async |cluster| {
                falls_back(one(cluster)?, versions, bad, &health, progress).await
            })
            .await;
    }
    if is_alone && suite.wants(TWO_BAD_BOOTS) {
        progress.step(TWO_BAD_BOOTS);
        suite
            .case(TWO_BAD_BOOTS, cluster, async |cluster| {
                third_try_is_good(one(cluster)?, versions, &health, progress).await
            })
            .await;
    }
    if is_alone && suite.wants(BOTH_BAD) {
        progress.step(BOTH_BAD);
        suite
            .case(BOTH_BAD, cluster, async |cluster| {
                stays_up(one(cluster)?, versions, &health, progress).await
            })
            .await;
    }
    Ok(())
}

/// Runs a script as root.
async fn root(machine: &Machine, script: &str) -> Result<String> {
    machine
        .ssh
        .feed("sudo sh -eu", script.as_bytes(), PREPARATION)
        .await
}

/// Makes the version one that was installed just now with that counter: its boot entry, the state, and what breaks it.
async fn arm(
    machine: &Machine,
    versions: &Versions,
    health: &Value,
    entry: &str,
    damage: &str,
    fault: Option<&Fault>,
) -> Result<()> {
    let path = "/var/lib/selvage/update/state.json";
    let state = root(machine, &format!("cat {path} || echo '{{}}'")).await?;
    let mut state: Value = serde_json::from_str(&state).context("the state is not JSON")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    state["failed"] = json!([]);
    state["pending"] = json!({
        "version": versions.next, "applied_at": now.as_secs(), "from": versions.installed, "health_before": health,
    });
    let script = [
        &table::preamble(versions),
        table::NO_FAULT,
        &fault.map_or(String::new(), |fault| fault.script(&versions.next)),
        damage,
        "\n",
        entry,
        &format!("cat >{path} <<'END'\n{state}\nEND\nsync\n"),
    ]
    .concat();
    root(machine, &script).await.map(drop)
}

async fn falls_back(
    machine: &mut Machine,
    versions: &Versions,
    bad: &Bad,
    health: &Value,
    progress: &Progress,
) -> Result<()> {
    let entry = table::entry(bad.counter, bad.uki);
    arm(
        machine,
        versions,
        health,
        &entry,
        bad.damage,
        bad.fault.as_ref(),
    )
    .await?;
    let from = machine.console.len();
    machine.reboot().await?;
    let installed = format!("version {};", versions.installed);
    machine
        .wait_through_failures(RUNNING, &installed, bad.deadline, progress)
        .await?;
    // The boots that failed said so; having been seen, that is as it should be.
    machine.console.check()?;
    let judged = judged(machine, versions, bad, from).await;
    let mend = [&table::preamble(versions), bad.mend].concat();
    root(machine, &mend).await.context("failed to undo it")?;
    judged
}

/// The failure is known everywhere, with its reason, and the version is left alone.
async fn judged(machine: &Machine, versions: &Versions, bad: &Bad, from: u64) -> Result<()> {
    let next = &versions.next;
    let status = wait::until("there is a verdict", JUDGEMENT, || async {
        let status = status(machine).await?;
        ensure!(status["pending"].is_null(), "{status}");
        Ok(status)
    })
    .await?;
    let failed = status["failed"].as_array().and_then(|failed| failed.last());
    let failed = failed.with_context(|| format!("nothing failed: {status}"))?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    ensure!(
        failed["version"] == **next
            && failed["code"] == bad.code
            && failed["boots"] == bad.boots
            && reason.contains(bad.reason),
        "not {} with {:?}: {failed}",
        bad.code,
        bad.reason
    );
    ensure!(status["fell_back"] == true, "{status}");
    let entries = machine.ssh.run(ENTRIES).await?;
    let tried = format!("selvage_{next}+0-3.efi");
    ensure!(
        entries.lines().any(|entry| entry == tried),
        "its tries are not used up: {entries}"
    );
    is_told(machine, versions, bad.code, reason).await?;
    is_left_alone(machine, next, reason).await?;
    let (said, times) = bad.console;
    let console = machine.console.text_from(from);
    let count = console
        .lines()
        .filter(|line| line.contains(said) && !said.is_empty())
        .count();
    ensure!(
        count >= times,
        "the console says {said:?} {count} times, not {times}"
    );
    Ok(())
}

/// People, the log, the console and the metrics have the reason.
async fn is_told(machine: &Machine, versions: &Versions, code: &str, reason: &str) -> Result<()> {
    let Versions { installed, next } = versions;
    let metric =
        format!("selvage_update_failed_timestamp_seconds{{version=\"{next}\",code=\"{code}\"}}");
    for (command, expected) in [
        (
            "sudo selvage update status || test $? = 1",
            format!(": {reason} ({code})"),
        ),
        (
            "sudo journalctl -b --no-pager -o cat -u selvage-boot-check.service",
            format!("{next} failed, and this machine runs {installed} again: {reason}"),
        ),
        (
            "sudo cat /run/issue.d/50-selvage-update.issue",
            format!("Update {next} failed, and this machine has fallen back: "),
        ),
        ("sudo cat /var/lib/selvage/update/metrics.prom", metric),
    ] {
        let said = machine.ssh.run(command).await?;
        ensure!(
            said.contains(&expected),
            "`{command}` has no {expected:?}:\n{said}"
        );
    }
    Ok(())
}

/// With a release server that has just this version, nothing tries it again by itself.
async fn is_left_alone(machine: &Machine, next: &str, reason: &str) -> Result<()> {
    let before = machine.ssh.run(ENTRIES).await?;
    for command in ["apply", "auto"] {
        let said = machine
            .ssh
            .run(&format!(
                "sudo selvage update {command} --config {SETTINGS} 2>&1; echo status $?"
            ))
            .await?;
        let expected =
            format!("version {next} is available, but it failed on this machine ({reason})");
        let is_refused = command != "apply" || said.ends_with("status 3");
        ensure!(
            said.contains(&expected) && is_refused,
            "selvage update {command} does not say {expected:?}: {said}"
        );
    }
    let after = machine.ssh.run(ENTRIES).await?;
    if before != after {
        bail!("the boot entries were {before}, and are {after}");
    }
    Ok(())
}

/// Two boots that panic use up tries; the third is blessed, and nothing is held against the version.
async fn third_try_is_good(
    machine: &mut Machine,
    versions: &Versions,
    health: &Value,
    progress: &Progress,
) -> Result<()> {
    let fault = Fault {
        wanted_by: "sysinit.target",
        before: "sysinit.target",
        run: r#"
boots=$(cat /var/lib/selvage-test-boots || echo 0)
[ "$boots" -lt 2 ] || exit 0
echo $((boots + 1)) >/var/lib/selvage-test-boots
sync
echo c >/proc/sysrq-trigger"#,
    };
    let entry = table::entry("+3-0", "cat");
    arm(machine, versions, health, &entry, "", Some(&fault)).await?;
    let from = machine.console.len();
    machine.reboot().await?;
    let next = format!("version {};", versions.next);
    machine
        .wait_through_failures(RUNNING, &next, Duration::from_secs(600), progress)
        .await?;
    machine.console.check()?;
    let panics = "Kernel panic - not syncing: sysrq triggered crash";
    let count = machine.console.text_from(from).matches(panics).count();
    ensure!(count == 2, "{count} boots panicked, not 2");
    let counted = machine.ssh.run(COUNTED).await?;
    ensure!(
        counted.ends_with("+0-3.efi"),
        "not the third try: {counted}"
    );
    let blessed = format!("selvage_{}.efi", versions.next);
    wait::until("the version is blessed", JUDGEMENT, || async {
        let entries = machine.ssh.run(ENTRIES).await?;
        ensure!(entries.lines().any(|entry| entry == blessed), "{entries}");
        Ok(())
    })
    .await?;
    let status = status(machine).await?;
    ensure!(
        status["running"] == *versions.next
            && status["blessed"] == true
            && status["pending"].is_null()
            && status["failed"] == json!([]),
        "{status}"
    );
    Ok(())
}

/// With no version that works, the machine tries what it has, and then stays where it can be repaired.
async fn stays_up(
    machine: &mut Machine,
    versions: &Versions,
    health: &Value,
    progress: &Progress,
) -> Result<()> {
    let fault = Fault {
        wanted_by: "multi-user.target",
        before: "",
        run: "exit 1",
    };
    // The other one failed before.
    let entry = format!(
        "{}mv /efi/EFI/Linux/selvage_$installed.efi /efi/EFI/Linux/selvage_$installed+0-3.efi\nsync\n",
        table::entry("+1-2", "cat")
    );
    arm(machine, versions, health, &entry, "", Some(&fault)).await?;
    machine.reboot().await?;
    machine
        .wait_through_failures(COUNTED, "+0-4.efi", Duration::from_secs(1200), progress)
        .await?;
    machine.console.check()?;
    let boot = machine
        .ssh
        .run("cat /proc/sys/kernel/random/boot_id")
        .await?;
    let said = wait::until(
        "the machine says that it stays up",
        JUDGEMENT,
        || async {
            let log = machine
                .ssh
                .run("sudo journalctl -b --no-pager -o cat -u selvage-boot-check.service -u selvage-next-try.service")
                .await?;
            ensure!(log.matches("stays up for repair").count() == 2, "{log}");
            Ok(log)
        },
    )
    .await?;
    ensure!(said.contains("selvage-test-fault.service failed"), "{said}");
    // Nothing is left that would end this boot.
    let jobs = machine
        .ssh
        .run("systemctl list-jobs --no-legend --no-pager")
        .await?;
    ensure!(jobs.is_empty(), "jobs are left: {jobs}");
    let status = status(machine).await?;
    let finding = &status["pending"]["finding"];
    ensure!(
        finding["code"] == "failed-unit" && status["pending"]["boots"] == 2,
        "{status}"
    );
    machine.console.check()?;
    let now = machine
        .ssh
        .run("cat /proc/sys/kernel/random/boot_id")
        .await?;
    ensure!(now == boot, "it has booted again");
    Ok(())
}
