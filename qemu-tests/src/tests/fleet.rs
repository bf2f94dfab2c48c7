//! Three machines that take turns at an update, and what stops them. First two of them are made to fail the new version's
//! boot check; the same machines then go there in turn, while containers on the others ping each other.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use selvage::{
    appliance::fleet::{records::NodeState, wave},
    base::time::rfc3339,
};
use serde_json::Value;

use crate::{
    cli::Common,
    container,
    fleet::{
        Fleet,
        history::{self, Change},
    },
    host::Host,
    machine::Machine,
    qmp,
    ssh::COMMAND_DEADLINE,
    suite::{Names, Suite},
    wait,
};

/// The cases here, in the order in which the machines go through them.
pub(super) const CASES: Names = &[
    "fleet::machines_wait_for_their_place_in_a_wave",
    "fleet::holder_that_never_returns_blocks_and_is_named",
    "fleet::version_that_failed_on_two_machines_is_tried_on_no_third",
    "fleet::machines_take_turns_and_no_ping_between_the_others_is_lost",
];

/// Ten boots, and two boot checks that fail.
pub(super) const EXTENDED: Names = CASES;

/// Seconds of a roll-out, the most that an index is published with. Between two of three places in it are hours, but for one
/// run in some thousands.
const ROLL_OUT: u64 = 99_999_999;
/// For a machine's word on an update: its timer comes every 20 s, but before the word it may have to download and unpack, on a
/// host where three machines do so at a time.
const WORD: Duration = Duration::from_secs(900);

/// Fails where the version is not the one that it came with, and leaves the boot loader no other try: that there are three
/// of them is for other tests.
const CHECK: &str = r#"#!/bin/sh
. /usr/lib/os-release
[ "$IMAGE_VERSION" = INSTALLED ] && exit
for entry in /efi/EFI/Linux/selvage_"$IMAGE_VERSION"+[1-9]*.efi; do
  [ ! -e "$entry" ] || mv "$entry" /efi/EFI/Linux/selvage_"$IMAGE_VERSION"+0-3.efi
done
echo the site of this machine wants another version
exit 1
"#;
const CHECK_PATH: &str = "/etc/selvage/boot-checks.d/50-site";

/// Boots the machines as often as the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    let mut result = Ok(());
    match Fleet::start(host, common, &dir.join("fleet")).await {
        Err(error) => result = Err(error),
        Ok(mut fleet) => {
            if let Err(error) = boots(suite, &mut fleet).await {
                suite.boot_failed("fleet", &mut fleet.cluster, &error).await;
                result = Err(error);
            }
            fleet.cluster.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn boots(suite: &mut Suite<'_>, fleet: &mut Fleet) -> Result<()> {
    let progress = suite.progress;
    progress.step("first boot of three machines by their firmware");
    let archive = container::build().await?;
    fleet.cluster.wait_for_ssh(progress).await?;
    fleet.cluster.settle(progress).await?;
    fleet.wait_for_all(progress).await?;
    let mut failed = Vec::new();
    if suite.wants_any(&CASES[..3]) {
        failed = bad_version(suite, fleet).await?;
    }
    if !suite.wants(CASES[3]) {
        return Ok(());
    }
    turns(suite, fleet, &failed, &archive).await
}

/// All machines go to the next version, those with it on which it `failed` before.
async fn turns(
    suite: &mut Suite<'_>,
    fleet: &mut Fleet,
    failed: &[String],
    archive: &[u8],
) -> Result<()> {
    let progress = suite.progress;
    progress.step("start containers that ping each other twenty times a second");
    fleet.start_floods(archive).await?;
    let from = history::now();
    progress.step("let all machines update themselves");
    let (names, next) = (fleet.names(), fleet.next().to_owned());
    if failed.is_empty() {
        fleet.releases.publish(SystemTime::now(), 0).await?;
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        fleet.check(&names).await?;
    }
    for name in failed {
        forgive(fleet.machine(name)?, &next).await?;
    }
    let reset = format!("sudo selvage fleet reset {next}");
    fleet.machine(&names[0])?.ssh.run(&reset).await?;
    let rollout = fleet.follow_turns(progress, from).await?;
    progress.line(&rollout.table());
    rollout.keep(&suite.dir.join("fleet.json"))?;
    suite
        .case(CASES[3], &mut fleet.cluster, async |cluster| {
            for machine in &cluster.machines {
                is_blessed(machine, &next).await?;
            }
            rollout.check()
        })
        .await;
    Ok(())
}

/// A machine and when it may start, the first one first.
#[derive(Debug)]
struct Place {
    name: String,
    offset: Duration,
}

/// The machines in the order of their places.
fn places(changes: &[Change], names: &[String], version: &str) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for name in names {
        let told = history::told(changes, name);
        let told = told.last().with_context(|| format!("no word of {name}"))?;
        let over = Duration::from_secs(ROLL_OUT);
        places.push(Place {
            name: name.clone(),
            offset: wave::offset(&told.node.machine_id, version, over),
        });
    }
    places.sort_by_key(|place| place.offset);
    Ok(places)
}

/// A date of the release so that the first `count` machines may start it now, and the others may not for long.
fn date(places: &[Place], count: usize) -> Result<SystemTime> {
    let [before, after] = [count - 1, count].map(|at| places.get(at));
    let (before, after) = before.zip(after).context("no such place")?;
    let half = (before.offset + after.offset) / 2;
    SystemTime::now()
        .checked_sub(half)
        .context("a date before all dates")
}

/// The new version fails on two machines; gives their names. Wave by wave, so that it is known who they are.
async fn bad_version(suite: &mut Suite<'_>, fleet: &mut Fleet) -> Result<Vec<String>> {
    let places = places(&fleet.changes(), &fleet.names(), fleet.next())?;
    let names: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
    let check = CHECK.replace("INSTALLED", &fleet.installed.clone());
    for name in &names[..2] {
        put_check(fleet.machine(name)?, &check).await?;
    }
    first_of_a_wave(suite, fleet, &places).await?;
    never_returns(suite, fleet, &places).await?;
    two_failures(suite, fleet, [names[0], names[1], names[2]]).await?;
    Ok(vec![names[0].to_owned(), names[1].to_owned()])
}

/// Ends when the first machine has the lock; the others wait for their place.
async fn first_of_a_wave(suite: &mut Suite<'_>, fleet: &mut Fleet, places: &[Place]) -> Result<()> {
    let (progress, first) = (suite.progress, &places[0].name);
    progress.step(format!("release {} for {first}", fleet.next()));
    let released = date(places, 1)?;
    fleet.releases.publish(released, ROLL_OUT).await?;
    let names: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
    fleet.check(&names).await?;
    let has_lock = |changes: &[Change]| history::holder(changes, first);
    fleet.watch(progress, "the first lock", has_lock).await?;
    suite
        .case(CASES[0], &mut fleet.cluster, async |cluster| {
            for place in &places[1..] {
                let start = rfc3339(released + place.offset);
                let machine = named(&cluster.machines, &place.name)?;
                says(machine, &format!("waits until {start}: other machines")).await?;
            }
            Ok(())
        })
        .await;
    Ok(())
}

/// Holds the first machine still while it goes down, until the second one has the lock.
async fn never_returns(suite: &mut Suite<'_>, fleet: &mut Fleet, places: &[Place]) -> Result<()> {
    let progress = suite.progress;
    let [first, second, third] = [0, 1, 2].map(|at| &*places[at].name);
    let goes_down = |changes: &[Change]| {
        history::holder(changes, first).filter(|holder| holder.state == NodeState::Rebooting)
    };
    fleet.watch(progress, "the first reboot", goes_down).await?;
    let (installed, next) = (fleet.installed.clone(), fleet.next().to_owned());
    progress.step(format!("stop {first}, and release {next} for {second}"));
    let monitor = fleet.machine(first)?.spec.qmp.clone();
    qmp::execute(&monitor, "stop").await?;
    fleet.releases.publish(date(places, 2)?, ROLL_OUT).await?;
    fleet.check(&[second, third]).await?;
    suite
        .case(CASES[1], &mut fleet.cluster, async |cluster| {
            let machine = named(&cluster.machines, second)?;
            says(machine, &format!("{first} has the lock")).await?;
            stuck_holder_is_named(machine, first, [&installed, &next]).await
        })
        .await;
    let unlock = format!("sudo selvage fleet unlock {first}");
    fleet.machine(third)?.ssh.run(&unlock).await?;
    let passed_on = |changes: &[Change]| history::holder(changes, second);
    fleet.watch(progress, "the second lock", passed_on).await?;
    qmp::execute(&monitor, "cont").await.map(drop)
}

/// Lets the third one start when the first two have fallen back; but for the breaker it would.
async fn two_failures(
    suite: &mut Suite<'_>,
    fleet: &mut Fleet,
    [first, second, third]: [&str; 3],
) -> Result<()> {
    let progress = suite.progress;
    let (installed, next) = (fleet.installed.clone(), fleet.next().to_owned());
    progress.step(format!("wait until {first} and {second} have fallen back"));
    let both = |changes: &[Change]| (history::failures(changes, &next) == 2).then_some(());
    fleet.watch(progress, "both failures", both).await?;
    // Not before: after one failure it would go there.
    fleet.releases.publish(SystemTime::now(), 0).await?;
    fleet.check(&[third]).await?;
    for name in [first, second] {
        let machine = fleet.machine(name)?;
        machine.wait_for_ssh(progress).await?;
        let console = machine.console.text_from(0);
        let words = format!("{next} failed, and this machine runs {installed} again: ");
        ensure!(
            console.contains(&words),
            "{name}: the console does not say {words:?}"
        );
    }
    let history = fleet.etcd.history().await?;
    suite
        .case(CASES[2], &mut fleet.cluster, async |cluster| {
            let machine = named(&cluster.machines, third)?;
            third_is_spared(machine, &next, [first, second]).await?;
            let holds = history::holds(&history);
            let tried: Vec<_> = holds.iter().map(|hold| &*hold.node).collect();
            ensure!(tried == [first, second], "the lock was held by {tried:?}");
            let most = history::most_holders(&history);
            ensure!(most == 1, "{most} machines had the lock at a time");
            Ok(())
        })
        .await;
    Ok(())
}

fn named<'a>(machines: &'a [Machine], name: &str) -> Result<&'a Machine> {
    let found = machines.iter().find(|machine| machine.name() == name);
    found.with_context(|| format!("no machine {name}"))
}

async fn put_check(machine: &Machine, check: &str) -> Result<()> {
    let script = format!(
        "sudo mkdir -p /etc/selvage/boot-checks.d && sudo tee {CHECK_PATH} >/dev/null && sudo chmod 755 {CHECK_PATH}"
    );
    let input = check.as_bytes();
    machine
        .ssh
        .feed(&script, input, COMMAND_DEADLINE)
        .await
        .map(drop)
}

/// Waits until the last run of the machine's timer ended with these words.
async fn says(machine: &Machine, words: &str) -> Result<()> {
    let what = format!("{}: selvage update says {words:?}", machine.name());
    wait::until(&what, WORD, || async {
        let journal = "sudo journalctl -u selvage-update -o cat -n 8 --no-pager";
        let said = machine.ssh.run(journal).await?;
        ensure!(said.contains(words), "{said}");
        Ok(())
    })
    .await
}

async fn stuck_holder_is_named(
    machine: &Machine,
    name: &str,
    versions: [&String; 2],
) -> Result<()> {
    let [installed, next] = versions;
    let said = machine.ssh.run("sudo selvage fleet status --json").await?;
    let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    let locked: Vec<_> = nodes
        .iter()
        .filter(|node| !node["lock"].is_null())
        .collect();
    let [node] = locked[..] else {
        bail!("not one machine has the lock: {said}")
    };
    let lock = &node["lock"];
    for (found, expected) in [
        (&node["node"], name),
        (&node["version"], installed),
        (&node["slot"], "a"),
        (&node["state"], "rebooting"),
        (&lock["version"], next),
        (&lock["state"], "rebooting"),
    ] {
        ensure!(*found == *expected, "{found}, not {expected}: {said}");
    }
    let clock: u64 = machine.ssh.run("date +%s").await?.parse()?;
    let since = lock["since"].as_u64().context("no time of the lock")?;
    ensure!(
        (1..3600).contains(&(clock + 2).saturating_sub(since)),
        "since {since}, and it is {clock}"
    );
    let text = machine.ssh.run("sudo selvage fleet status").await?;
    ensure!(
        text.contains("1 of 1 have the lock") && text.contains(&format!("for {next}")),
        "{text}"
    );
    Ok(())
}

async fn third_is_spared(machine: &Machine, next: &str, failed: [&str; 2]) -> Result<()> {
    says(machine, "is not started: it failed on ").await?;
    let script = "sudo selvage fleet status; [ $? = 2 ]";
    let said = machine.ssh.run(script).await?;
    let stopped = format!("version {next} is started nowhere any more");
    for words in [
        &*stopped,
        "the site of this machine wants another version",
        &format!("selvage fleet reset {next}"),
        failed[0],
        failed[1],
    ] {
        ensure!(said.contains(words), "no {words:?} in {said}");
    }
    let entries = machine.ssh.run("sudo ls /efi/EFI/Linux").await?;
    ensure!(!entries.contains(next), "it was installed: {entries}");
    Ok(())
}

/// Takes the cause of a failure away, and has the version tried once more at the machine's next turn.
async fn forgive(machine: &Machine, version: &str) -> Result<()> {
    // 3: it is there, but not for this machine.
    let script = format!(
        "sudo rm -f {CHECK_PATH}; sudo selvage update check; [ $? = 3 ] && \
         sudo selvage update apply --version {version}"
    );
    // The timer may be at it at the same time.
    let what = format!("{}: {version} is to be tried again", machine.name());
    wait::until(&what, WORD, || machine.ssh.run(&script))
        .await
        .map(drop)
}

async fn is_blessed(machine: &Machine, version: &str) -> Result<()> {
    let script = "sudo selvage update status --json || [ $? -le 2 ]";
    let said = machine.ssh.run(script).await?;
    let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let good = status["running"] == version && status["blessed"] == true;
    ensure!(good, "{}: {said}", machine.name());
    let entries = machine.ssh.run("sudo ls /efi/EFI/Linux").await?;
    let blessed = format!("selvage_{version}.efi");
    ensure!(entries.lines().any(|entry| entry == blessed), "{entries}");
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::fleet::history::tests::tell;

    #[test]
    fn dates_put_machines_before_and_after_their_place() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let changes: Vec<_> = names
            .iter()
            .map(|name| tell(1.0, name, "1", "a", "steady"))
            .collect();
        let places = places(&changes, &names, "2").unwrap();
        for count in [1, 2] {
            let date = date(&places, count).unwrap();
            let may: Vec<_> = places
                .iter()
                .map(|place| date + place.offset <= SystemTime::now())
                .collect();
            let expected: Vec<_> = (0..3).map(|at| at < count).collect();
            assert_eq!(may, expected);
        }
        assert!(date(&places, 3).is_err());
        assert!(super::places(&changes[1..], &names, "2").is_err());
    }
}
