//! Boots one machine by itself and measures from kernel start to Docker ready, on the first boot and on the second.

mod verity;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::{
    accel::Accelerator,
    cli::Common,
    cluster::{Cluster, Options},
    description, diagnose,
    host::Host,
    progress::Progress,
    report,
    timeline::{self, Timeline},
};

/// Runs the measurement, prints a table, and writes `bench/boot.json` below the build directory. Then come pairs of machines,
/// so many, that show what dm-verity costs.
///
/// # Errors
/// When a machine does not come up.
pub(crate) async fn run(common: &Common, verity_pairs: u8) -> Result<()> {
    let progress = Progress::new();
    let dir = common.target.join("bench");
    let host = Host::prepare(common, &common.target.join("bench-key"), &progress).await?;
    let nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    let mut cluster = Cluster::start(&host, &dir.join("boot"), nodes, Options::default()).await?;
    let measured = measure(&mut cluster, host.accelerator, &progress).await;
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
    if verity_pairs > 0 {
        result["verity"] = verity::run(&host, common, verity_pairs, &progress).await?;
    }
    let path = dir.join("boot.json");
    fs::write(&path, format!("{result:#}\n"))
        .with_context(|| format!("failed to write {}", path.display()))
}

async fn measure(
    cluster: &mut Cluster,
    accelerator: Accelerator,
    progress: &Progress,
) -> Result<[(&'static str, Timeline); 2]> {
    progress.step(format!("first boot under {accelerator}"));
    let first = boot(cluster, progress).await?;
    progress.step("second boot");
    for machine in &mut cluster.machines {
        machine.reboot().await?;
    }
    let second = boot(cluster, progress).await?;
    Ok([("first boot", first), ("second boot", second)])
}

async fn boot(cluster: &mut Cluster, progress: &Progress) -> Result<Timeline> {
    cluster.wait_for_ssh(progress).await?;
    cluster.settle(progress).await?;
    timeline::ask(&cluster.machines[0]).await
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
