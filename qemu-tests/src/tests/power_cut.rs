//! A machine whose power is cut at any moment from its first boot through an update to its blessing.
//!
//! One machine's life is recorded: every write and every flush of its disk. Then the disk is put into the states that
//! power cuts would have left, each is judged without a boot, and some are booted. What is found names the seed of
//! its cut; `--cuts 1 --seed N --recorded` repeats it.

mod boot;
mod esp;
mod gpt;
mod judge;
mod record;
mod root;
mod slot;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, OpenOptions},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use self::{
    judge::{Finding, Judge, Kind},
    record::Recording,
};
use crate::{
    cli::{Common, PowerCuts},
    cluster::Cluster,
    disk::DISK_BYTES,
    host::Host,
    progress::clock,
    suite::{Names, Suite},
    write_log::{
        WriteLog,
        cut::{self, Chance, Cut, Layout, Moment, Phase},
        replay::{self, Replay},
    },
};

/// The cases here, in the order in which they run.
pub(super) const CASES: Names = &[
    "power_cut::a_machine_is_updated_while_its_writes_are_logged",
    "power_cut::each_cut_leaves_a_disk_that_is_whole",
    "power_cut::machines_boot_after_a_cut",
];

/// All: a recording, hundreds of disks, and a dozen boots.
pub(super) const EXTENDED: Names = CASES;

/// The first block of a partition or of the disk: super blocks, and the first table of partitions.
const ANCHOR_BYTES: u64 = 4096;

/// Findings of one kind that the console shows; the file has all.
const SHOWN: usize = 8;

/// A cut that was judged.
#[derive(Debug)]
struct Judged {
    cut: Cut,
    phase: String,
    findings: Vec<Finding>,
}

/// Runs the wanted cases.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    cuts: &PowerCuts,
    dir: &Path,
) {
    if !suite.wants_any(CASES) {
        return;
    }
    let dir = dir.join("power-cut");
    // No case here leaves a machine running to the next.
    let mut none = Cluster {
        machines: Vec::new(),
        nodes: Vec::new(),
        switch: None,
    };
    let progress = suite.progress;
    let mut recorded = Recording::read(&dir, common).await;
    suite
        .case(CASES[0], &mut none, async |_| {
            if !cuts.recorded {
                progress.step("record the writes of a machine from its first boot to its blessing");
                let made = record::record(host, common, &dir, progress).await;
                recorded = match made {
                    Ok(()) => Recording::read(&dir, common).await,
                    Err(error) => Err(error),
                };
            }
            recorded
                .as_ref()
                .map(drop)
                .map_err(|error| anyhow::anyhow!("{error:#}"))
        })
        .await;
    let result = match recorded {
        Err(error) => Err(error),
        Ok(recording) => judge_and_boot(suite, &mut none, host, cuts, &dir, &recording).await,
    };
    suite.close(CASES, result.as_ref().err());
}

async fn judge_and_boot(
    suite: &mut Suite<'_>,
    none: &mut Cluster,
    host: &Host,
    options: &PowerCuts,
    dir: &Path,
    recording: &Recording,
) -> Result<()> {
    let log = WriteLog::open(&recording.log)?;
    let phases = recording.phases(&log);
    ensure!(
        phases.iter().all(|phase| !phase.entries.is_empty()),
        "nothing was written in one of {phases:?}: the recording is not one of an update"
    );
    if !suite.wants_any(&CASES[1..]) {
        return Ok(());
    }
    let cuts = choose(&log, &phases, &layout(host, dir, &log)?, options);
    let progress = suite.progress;
    progress.step(format!("judge the disk after {} power cuts", cuts.len()));
    let started = Instant::now();
    let judged = judge(host, dir, recording, &log, cuts, &phases, &|done| {
        progress.tell("judged", &done.to_string());
    })?;
    let (report, bad) = report(&judged, log.entries.len());
    fs::write(dir.join("findings.txt"), &report).context("failed to write findings.txt")?;
    let summary = report.lines().next().unwrap_or_default();
    let took = clock(started.elapsed());
    progress.line(&format!("    {summary}, {}", took.trim()));
    suite
        .case(CASES[1], none, async |_| {
            ensure!(bad.is_empty(), "{}", bad.join("\n"));
            Ok(())
        })
        .await;
    suite
        .case(CASES[2], none, async |_| {
            let chosen = to_boot(&judged, options.boots);
            let chosen: Vec<_> = chosen
                .iter()
                .filter_map(|index| judged.get(*index))
                .collect();
            boot::all(host, dir, recording, &log, &chosen, progress).await
        })
        .await;
    Ok(())
}

/// The cuts, in the order of the log.
fn choose(log: &WriteLog, phases: &[Phase], layout: &Layout, options: &PowerCuts) -> Vec<Cut> {
    let mut cuts: Vec<_> = (0..options.cuts)
        .map(|index| {
            let seed = options.seed.wrapping_add(index);
            let mut chance = Chance::new(seed);
            let moment = cut::moment(log, phases, layout, seed, &mut chance);
            Cut::new(log, seed, moment, &mut chance)
        })
        .collect();
    cuts.sort_by_key(|cut| (cut.durable, cut.position));
    cuts
}

/// What is where on the disk in the end: the root partition has most of the writes.
fn layout(host: &Host, dir: &Path, log: &WriteLog) -> Result<Layout> {
    let mut replay = first_disk(host, dir, log)?;
    let end = Moment {
        position: log.entries.len(),
        torn: None,
    };
    replay.cut(&Cut::new(log, 0, end, &mut Chance::new(0)))?;
    let partitions = gpt::partitions(&replay.disk, DISK_BYTES)
        .context("the recording ends with a disk without partitions")?;
    let root = partitions
        .iter()
        .find(|partition| partition.name == "selvage-root");
    let starts = partitions.iter().map(|partition| partition.bytes.start);
    Ok(Layout {
        common: root
            .context("the recording ends without a root partition")?
            .bytes
            .clone(),
        anchors: starts
            .chain([0])
            .map(|start| start..start + ANCHOR_BYTES)
            .collect(),
    })
}

fn judge(
    host: &Host,
    dir: &Path,
    recording: &Recording,
    log: &WriteLog,
    cuts: Vec<Cut>,
    phases: &[Phase],
    tell: &dyn Fn(usize),
) -> Result<Vec<Judged>> {
    let mut replay = first_disk(host, dir, log)?;
    let mut judge = Judge::new(log, dir, recording.known.clone(), DISK_BYTES);
    let mut judged = Vec::new();
    for cut in cuts {
        replay.cut(&cut)?;
        let findings = (judge.judge(&replay.disk, &cut))
            .with_context(|| format!("failed to judge the cut of seed {}", cut.seed))?;
        let phase = phase_of(phases, cut.position);
        judged.push(Judged {
            cut,
            phase,
            findings,
        });
        tell(judged.len());
    }
    for file in ["disk.raw", "esp", "root"] {
        // The next run writes it anew.
        let _ = fs::remove_file(dir.join(file));
    }
    Ok(judged)
}

/// The disk as it was installed, in the size of the machine's.
fn first_disk<'a>(host: &Host, dir: &Path, log: &'a WriteLog) -> Result<Replay<'a>> {
    let path = dir.join("disk.raw");
    let image = &host.artifacts.disk;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path);
    let disk = disk.and_then(|disk| {
        disk.set_len(DISK_BYTES)?;
        let image = fs::File::open(image)?;
        let whole = 0..image.metadata()?.len();
        replay::copy(&image, &whole, &disk, 0)?;
        Ok(disk)
    });
    let disk =
        disk.with_context(|| format!("failed to copy {} to {}", image.display(), path.display()))?;
    Ok(Replay::new(log, disk))
}

fn phase_of(phases: &[Phase], position: usize) -> String {
    let last = position.saturating_sub(1);
    let found = phases.iter().find(|phase| phase.entries.contains(&last));
    found.map_or_else(|| "the end".to_owned(), |phase| phase.name.clone())
}

/// All findings as a text whose first line sums them up, and the lines of those that no boot mends.
fn report(judged: &[Judged], entries: usize) -> (String, Vec<String>) {
    let mut by_kind: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
    for judged in judged {
        for finding in &judged.findings {
            let line = format!("{}: {finding}", name(judged, entries));
            by_kind.entry(finding.kind).or_default().push(line);
        }
    }
    let mut text = format!("{} cuts", judged.len());
    for (kind, lines) in &by_kind {
        let mended = if kind.is_mended() {
            ", for a boot to show that it is mended"
        } else {
            ""
        };
        let _ = write!(text, "; {kind}: {}{mended}", lines.len());
    }
    if by_kind.is_empty() {
        text.push_str("; nothing found");
    }
    for line in by_kind.values().flatten() {
        let _ = write!(text, "\n{line}");
    }
    let bad = by_kind.iter().filter(|(kind, _)| !kind.is_mended());
    let bad = bad.flat_map(|(kind, lines)| {
        let more = lines.len().saturating_sub(SHOWN);
        let more = (more > 0).then(|| format!("{kind}: {more} more in findings.txt"));
        lines.iter().take(SHOWN).cloned().chain(more)
    });
    (text + "\n", bad.collect())
}

fn name(judged: &Judged, entries: usize) -> String {
    let Cut {
        seed,
        position,
        durable,
        pieces,
        torn,
    } = &judged.cut;
    let torn = torn.map_or(String::new(), |piece| {
        format!(
            ", write {} torn at {}+{}",
            piece.entry, piece.from, piece.length
        )
    });
    format!(
        "seed {seed}, entry {position} of {entries} ({}), flushed up to {durable}, {} later writes there{torn}",
        judged.phase,
        pieces.len()
    )
}

/// Which cuts are booted: `count`, of all phases in turn, and one for each finding that is mended later.
fn to_boot(judged: &[Judged], count: usize) -> BTreeSet<usize> {
    let mut by_phase: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, judged) in judged.iter().enumerate() {
        by_phase.entry(&judged.phase).or_default().push(index);
    }
    // By their seeds, not by their place in the log: else all of a phase would be from its start.
    for indices in by_phase.values_mut() {
        indices.sort_by_key(|index| judged.get(*index).map(|judged| judged.cut.seed));
    }
    let longest = by_phase.values().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|turn| {
        by_phase
            .values()
            .filter_map(move |indices| indices.get(turn).copied())
    });
    let mut chosen: BTreeSet<_> = in_turn.take(count).collect();
    let mended: BTreeSet<(Kind, &str)> = (judged.iter())
        .flat_map(|judged| &judged.findings)
        .filter(|finding| finding.kind.is_mended())
        .map(|finding| (finding.kind, finding.what.as_str()))
        .collect();
    for (kind, what) in mended {
        let is_it = |finding: &Finding| finding.kind == kind && finding.what == what;
        chosen.extend(
            judged
                .iter()
                .position(|judged| judged.findings.iter().any(is_it)),
        );
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(seed: u64, phase: &str, findings: &[(Kind, &str)]) -> Judged {
        Judged {
            cut: Cut {
                seed,
                position: 5,
                durable: 3,
                pieces: Vec::new(),
                torn: None,
            },
            phase: phase.into(),
            findings: (findings.iter())
                .map(|(kind, what)| Finding::new(*kind, *what))
                .collect(),
        }
    }

    #[test]
    fn findings_are_counted_and_named_and_only_those_that_stay_are_bad() {
        let all = [
            judged(7, "apply", &[(Kind::Esp, "torn"), (Kind::HostKey, "empty")]),
            judged(8, "apply", &[]),
        ];
        let (text, bad) = report(&all, 9);
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("2 cuts; ESP: 1; host key: 1, for a boot to show that it is mended")
        );
        assert_eq!(lines.count(), 2);
        assert_eq!(
            bad,
            ["seed 7, entry 5 of 9 (apply), flushed up to 3, 0 later writes there: ESP: torn"]
        );
        let (text, bad) = report(&all[1..], 9);
        assert_eq!((text.as_str(), bad.len()), ("1 cuts; nothing found\n", 0));
        let many = vec![(Kind::State, "x"); 20];
        assert_eq!(report(&[judged(1, "apply", &many)], 9).1.len(), SHOWN + 1);
    }

    #[test]
    fn boots_are_spread_over_the_phases_and_show_each_mending() {
        let all: Vec<_> = (0..30)
            .map(|index| {
                let phase = ["a", "b", "c"][usize::try_from(index / 10).unwrap()];
                let kind = if index == 29 {
                    Kind::RootSuperBlock
                } else {
                    Kind::Esp
                };
                let finding = [(kind, "torn")];
                judged(index, phase, if index >= 28 { &finding } else { &[] })
            })
            .collect();
        assert_eq!(to_boot(&all, 6), BTreeSet::from([0, 1, 10, 11, 20, 21, 29]));
        assert_eq!(to_boot(&all[..1], 6), BTreeSet::from([0]));
    }
}
