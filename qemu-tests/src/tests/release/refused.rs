//! Indexes and versions that a machine does not take, and a time at which it does not.

use anyhow::{Result, ensure};

use super::{
    guest::{DIRECTORY, Guest, SERVER},
    site::Site,
};

/// An index that another key signed: nothing but the index is asked for, and nothing is written.
pub(super) async fn signature(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    let before = (guest.slots().await?, guest.entries().await?);
    site.sign("other.key").await?;
    site.asked()?;
    for command in ["check", "apply"] {
        let words = [&*format!(
            "the signature of {SERVER}/stable.json is not by one of the keys test.pem"
        )];
        guest.update(command).await?.expect(1, &words)?;
    }
    ensure!(
        site.downloads()? == 0,
        "files of the release were asked for"
    );
    let files = guest.files().await?;
    ensure!(files.is_empty(), "it left {files:?}");
    let after = (guest.slots().await?, guest.entries().await?);
    ensure!(before == after, "the disk was {before:?} and is {after:?}");
    site.publish(|_| {}).await?;
    guest.update("check").await?.expect(2, &[site.version()?])
}

/// An older index, rightly signed, also once the state is lost.
pub(super) async fn replay(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    let old = site.signed()?;
    site.publish(|release| release["notes"] = "Line 2 of 2".into())
        .await?;
    guest.update("check").await?.expect(2, &["Line 2 of 2"])?;
    site.replay(&old)?;
    for lost in ["true", &format!("rm {DIRECTORY}/state.json")] {
        guest.root(lost).await?;
        for command in ["check", "apply"] {
            let said = guest.update(command).await?;
            said.expect(1, &["was accepted before", "roll-back attack"])?;
        }
    }
    let status = guest.update("status").await?;
    status.expect(1, &["roll-back attack"])?;
    let files = guest.files().await?;
    ensure!(files.is_empty(), "it left {files:?}");
    site.publish(|_| {}).await?;
    guest.update("check").await?.expect(2, &[site.version()?])
}

/// A version that the index does not have, one beside the pin, and one for machines that are newer than this.
pub(super) async fn versions(guest: Guest<'_>, site: &mut Site, running: &str) -> Result<()> {
    let next = site.version()?.to_owned();
    site.asked()?;
    let unknown = guest.update("apply --version 0.0.1").await?;
    unknown.expect(
        1,
        &["the channel stable has no version 0.0.1: it has", &next],
    )?;

    guest.update("pin").await?.expect(0, &[running])?;
    for command in ["check", "apply"] {
        let said = guest.update(command).await?;
        said.expect(3, &[&next, &format!("pinned to {running}"), "unpin"])?;
    }
    guest.update("unpin").await?.expect(0, &[])?;

    site.publish(|release| release["from"] = next.clone().into())
        .await?;
    let words = [&*format!("can be installed from version {next} on")];
    guest.update("apply").await?.expect(3, &words)?;
    let said = guest.update(&format!("apply --version {next}")).await?;
    let from = format!("can be installed from {next} on, and this machine runs {running}");
    said.expect(1, &[&from, "install an older release first"])?;
    ensure!(
        site.downloads()? == 0,
        "files of the release were asked for"
    );
    site.publish(|_| {}).await?;
    guest.update("check").await?.expect(2, &[&next])
}

/// A window that opens in some hours: what is downloaded waits for it, and the status says until when.
pub(super) async fn window(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    let before = (guest.slots().await?, guest.entries().await?);
    let opens = closed_window(guest).await?;
    for severity in ["normal", "security"] {
        site.publish(|release| release["severity"] = severity.into())
            .await?;
        guest.update("check").await?.expect(2, &[severity])?;
        let said = guest.timer_run().await?;
        let waits = format!("waits for the window that opens at {opens}");
        ensure!(said.contains(&waits), "no {waits:?} in {said}");
    }
    let status = guest.update("status").await?;
    status.expect(2, &[&format!("opens at {opens}")])?;
    let after = (guest.slots().await?, guest.entries().await?);
    ensure!(before == after, "the disk was {before:?} and is {after:?}");
    Ok(())
}

/// Has the timer install what comes, but in a window some hours from now only; gives the time at which it opens.
pub(super) async fn closed_window(guest: Guest<'_>) -> Result<String> {
    // A whole hour, three or four from now.
    let said = guest
        .root(
            "at=$(( ($(date +%s) / 3600 + 4) * 3600 )); date -d @$at +%H:%M; \
             date -d @$((at + 1800)) +%H:%M; date -u -d @$at +%Y-%m-%dT%H:%M:%SZ",
        )
        .await?;
    let [from, to, opens] = said.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("not three times: {said}")
    };
    guest
        .configure(&format!("auto = \"apply\"\nwindows = [\"{from}-{to}\"]"))
        .await?;
    Ok(opens.to_owned())
}
