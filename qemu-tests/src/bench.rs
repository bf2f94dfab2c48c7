//! Boots one machine by itself and measures from kernel start to Docker ready, on the first boot and on the second.

mod anchor;
mod history;
mod pairs;
mod table_file;
mod verity;

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use selvage::base::time;
use serde_json::{Map, Value, json};

use crate::{
    accel::Accelerator,
    built::Built,
    cli::{Bench, Common},
    cluster::{Cluster, Options},
    description, diagnose,
    host::Host,
    progress::Progress,
    report,
    timeline::{self, Timeline},
};

/// Runs the measurement, prints a table, and writes `bench/boot.json` and a drawing of each boot below the build
/// directory. Then come the pairs of machines that are asked for.
///
/// # Errors
/// When a machine does not come up, or the history is asked for without pairs.
pub(crate) async fn run(common: &Common, asked: &Bench) -> Result<()> {
    ensure!(
        asked.history.is_none() || asked.anchor > 0,
        "the history has ratios to Debian: ask for pairs (--anchor)"
    );
    let progress = Progress::new();
    let dir = common.target.join("bench");
    let host = Host::prepare(common, &common.target.join("bench-key"), &progress).await?;
    let nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    let mut cluster = Cluster::start(&host, &dir.join("boot"), nodes, Options::default()).await?;
    let measured = measure(&mut cluster, host.accelerator, &dir, &progress).await;
    if let Err(error) = &measured {
        for line in diagnose::keep(
            &mut cluster.machines,
            &dir.join("failed"),
            &format!("{error:#}"),
        )
        .await
        {
            progress.line(&line);
        }
    }
    let boots = measured?;
    let cpus = cluster
        .machines
        .iter()
        .map(|machine| machine.spec.cpus)
        .max()
        .unwrap_or(0);
    progress.line(&format!(
        "\n  Seconds since kernel start; {}, {cpus} CPU\n\n{}",
        host.accelerator,
        table(&boots)
    ));
    cluster.power_down().await;
    let mut result =
        json!({ "accelerator": host.accelerator, "cpus": cpus, "seconds": seconds(&boots) });
    let mut pairs = pairs::Pairs::default();
    if asked.anchor > 0 {
        (pairs, result["anchor"]) = anchor::run(&host, common, asked.anchor, &progress).await?;
    }
    if asked.verity > 0 {
        result["verity"] = verity::run(&host, common, asked.verity, &progress).await?;
    }
    if let Some(change) = &asked.history {
        let entry = history::Entry {
            date: today(),
            version: &Built::of(&common.image)?.version,
            machine: format!("{}, {} CPUs", host.accelerator, Host::cpus(1)),
            pairs: &pairs,
            change,
        };
        history::add(&history::path(), &entry)?;
    }
    let path = dir.join("boot.json");
    fs::write(&path, format!("{result:#}\n"))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// The date, in UTC.
fn today() -> String {
    let now = time::rfc3339(SystemTime::now());
    now.split('T').next().unwrap_or_default().to_owned()
}

async fn measure(
    cluster: &mut Cluster,
    accelerator: Accelerator,
    dir: &Path,
    progress: &Progress,
) -> Result<[(&'static str, Timeline); 2]> {
    progress.step(format!("first boot under {accelerator}"));
    let first = boot(cluster, progress).await?;
    draw(cluster, &dir.join("first-boot.svg")).await?;
    progress.step("second boot");
    for machine in &mut cluster.machines {
        machine.reboot().await?;
    }
    let second = boot(cluster, progress).await?;
    draw(cluster, &dir.join("second-boot.svg")).await?;
    Ok([("first boot", first), ("second boot", second)])
}

async fn boot(cluster: &mut Cluster, progress: &Progress) -> Result<Timeline> {
    cluster.wait_for_ssh(progress).await?;
    cluster.settle(progress).await?;
    timeline::ask(&cluster.machines[0]).await
}

/// Keeps systemd's drawing of the boot: which unit started when, and for how long.
async fn draw(cluster: &Cluster, path: &Path) -> Result<()> {
    let drawing = cluster.machines[0].ssh.run("systemd-analyze plot").await?;
    fs::write(path, drawing).with_context(|| format!("failed to write {}", path.display()))
}

fn table(boots: &[(&str, Timeline)]) -> String {
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(
        Timeline::default()
            .milestones()
            .map(|(label, _)| label.to_owned()),
    );
    for (name, timeline) in boots {
        let mut row = vec![(*name).to_owned()];
        row.extend(timeline.milestones().map(|(_, time)| report::seconds(time)));
        rows.push(row);
    }
    report::table(&rows)
}

fn seconds(boots: &[(&str, Timeline)]) -> Value {
    let boot = |timeline: &Timeline| {
        let times = timeline.milestones().map(|(label, time)| {
            (
                label.to_owned(),
                json!(time.map(|t| Duration::as_secs_f64(&t))),
            )
        });
        Value::Object(times.collect::<Map<_, _>>())
    };
    Value::Object(
        boots
            .iter()
            .map(|(name, timeline)| ((*name).to_owned(), boot(timeline)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_is_null() {
        let timeline = Timeline {
            docker_ready: Some(Duration::from_millis(31_500)),
            ..Timeline::default()
        };
        let value = seconds(&[("first boot", timeline)]);
        assert_eq!(value["first boot"]["Docker ready"], 31.5);
        assert!(value["first boot"]["Ignition done"].is_null());
    }
}
