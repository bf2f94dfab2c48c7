//! The demo of updates: three machines go to the next version in turn, under pings, and a page shows how.

use std::{fs, time::SystemTime};

use anyhow::{Context as _, Result};

use crate::{
    cli::Common,
    container, diagnose,
    fleet::{Fleet, history, rollout::Rollout},
    host::Host,
    page::update::UpdatePage,
    progress::{Progress, clock},
};

/// Runs it.
///
/// # Errors
/// When a machine does not come up or is not updated, the lock was held twice, or pings were lost.
pub(crate) async fn run(common: &Common) -> Result<()> {
    let progress = Progress::new();
    let dir = common.target.join("demo-update");
    let host = Host::prepare(common, &common.target.join("demo-key"), &progress).await?;
    progress.step("build the container image for the guests");
    let archive = container::build().await?;
    progress.step(format!("install three machines under {}", host.accelerator));
    let mut fleet = Fleet::start(&host, common, &dir).await?;
    let result = roll_out(&mut fleet, &archive, &progress).await;
    let rollout = match result {
        Ok(rollout) => rollout,
        Err(error) => {
            let kept = host.target.join("demo-update-failed");
            let machines = &mut fleet.cluster.machines;
            for line in diagnose::keep(machines, &kept, &format!("{error:#}")).await {
                progress.line(&line);
            }
            return Err(error);
        }
    };
    let record = dir.join("rollout.json");
    rollout.keep(&record)?;
    let page = UpdatePage {
        rollout: &rollout,
        accelerator: &host.accelerator.to_string(),
        took: progress.elapsed(),
    };
    let path = host.target.join("demo-update.html");
    fs::write(&path, page.html()).with_context(|| format!("failed to write {}", path.display()))?;
    progress.line(&format!("\n{}", rollout.table()));
    progress.line(&format!(
        "  The same as a time line: {}\n  What was recorded: {}\n",
        path.display(),
        record.display()
    ));
    progress.step("shut down");
    fleet.cluster.power_down().await;
    progress.line(&format!("  {} in all", clock(progress.elapsed()).trim()));
    rollout.check()
}

async fn roll_out(fleet: &mut Fleet, archive: &[u8], progress: &Progress) -> Result<Rollout> {
    fleet.cluster.wait_for_ssh(progress).await?;
    fleet.cluster.settle(progress).await?;
    fleet.wait_for_all(progress).await?;
    progress.step("start containers that ping each other twenty times a second");
    fleet.start_floods(archive).await?;
    let (installed, next) = (fleet.installed.clone(), fleet.next().to_owned());
    progress.step(format!("release {next}; the machines run {installed}"));
    let from = history::now();
    fleet.releases.publish(SystemTime::now(), 0).await?;
    let names = fleet.names();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    // They would ask in time; the index is known from a minute ago.
    fleet.check(&names).await?;
    fleet.follow_turns(progress, from).await
}
