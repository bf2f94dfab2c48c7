//! `selvage update apply` killed at several points, with all that it started: nothing of the new version boots, and the
//! next run goes on.

use anyhow::{Context as _, Result, ensure};

use super::{
    guest::{DIRECTORY, Guest, blessed},
    site::Site,
};

/// The program that writes slots. It is in no directory of `PATH`.
const SYSUPDATE: &str = "/usr/lib/systemd/systemd-sysupdate";

/// Runs through all points, and takes the installed version off again.
pub(super) async fn apply(guest: Guest<'_>, site: &mut Site, running: &str) -> Result<()> {
    let usr = site.artefact("usr")?;
    let part = format!("{DIRECTORY}/download/{}.part", usr.name.display());
    let only = [blessed(running)];

    guest.root(&format!("rm -rf {DIRECTORY}/download")).await?;
    guest.configure("rate-limit = 8192").await?;
    site.asked()?;
    kill_when(guest, &format!("[ -n \"$(find {part} -size +8M)\" ]")).await?;
    guest.expect_entries(&only).await?;
    // What is here is part of what is hashed: one byte of it changes.
    let length = guest
        .root(&format!(
            "stat -c %s {part}; printf X | dd of={part} bs=1 seek=4096 conv=notrunc status=none"
        ))
        .await?;
    let length: u64 = length.parse().context("not a length")?;
    guest.configure("").await?;

    let unpacked = format!("{DIRECTORY}/staging/.*.usr.raw");
    kill_when(guest, &format!("[ -n \"$(find {unpacked} -size +16M)\" ]")).await?;
    guest.expect_entries(&only).await?;
    let asked = site.asked_for(&usr)?;
    ensure!(
        asked == [(None, 200), (Some(length), 206), (None, 200)],
        "{length} bytes were there, and one of them was wrong; asked for as {asked:?}"
    );

    kill_when(guest, &format!("pgrep -f ^{SYSUPDATE} && sleep 1")).await?;
    guest.expect_entries(&only).await?;
    ensure!(
        site.downloads()? == 0,
        "what was downloaded was asked for again"
    );
    // Its last step: the UKI is being written, still hidden. On a fast host the run before came as far.
    let next = site.version()?.to_owned();
    guest
        .root(&format!("rm -f /efi/EFI/Linux/selvage_{next}+*.efi"))
        .await?;
    kill_when(guest, "set -- /efi/EFI/Linux/.#*; [ -e \"$1\" ]").await?;
    let bootable = guest.entries().await?;
    let bootable: Vec<_> = bootable
        .iter()
        .filter(|name| !name.starts_with('.'))
        .collect();
    ensure!(bootable == [&only[0]], "the boot entries are {bootable:?}");
    ensure!(
        site.downloads()? == 0,
        "what was downloaded was asked for again"
    );

    guest
        .update("apply")
        .await?
        .expect(0, &[&next, "is installed"])?;
    let tried = format!("selvage_{next}+3-0.efi");
    guest.expect_entries(&[blessed(running), tried]).await?;
    let files = guest.files().await?;
    ensure!(files.is_empty(), "it left {files:?}");
    let status = guest.status().await?;
    ensure!(status["pending"]["version"] == next, "{status}");
    remove(guest, running).await
}

/// Starts an update in a unit of its own, and kills all of that as soon as `condition` holds. Looks without a pause, and at
/// the unit from a second shell: some of these moments are shorter than the start of a program takes.
async fn kill_when(guest: Guest<'_>, condition: &str) -> Result<()> {
    let said = guest
        .try_root(&format!(
            "rm -f /run/killed.ended; systemd-run --quiet --unit=killed selvage update apply; \
             {{ while systemctl is-active --quiet killed; do sleep 0.2; done; : >/run/killed.ended; }} & \
             until {condition}; do \
             [ ! -e /run/killed.ended ] || {{ journalctl -q -o cat -u killed | tail -n 5; exit 9; }}; done; \
             systemctl kill --signal=KILL killed; wait; \
             systemctl reset-failed killed"
        ))
        .await?;
    ensure!(
        said.status == 0,
        "not killed when {condition}: {}",
        said.text
    );
    Ok(())
}

/// Makes the machine as it was before any update.
async fn remove(guest: Guest<'_>, running: &str) -> Result<()> {
    guest
        .root(&format!("{SYSUPDATE} vacuum --instances-max=1"))
        .await?;
    guest.forget().await?;
    guest.expect_entries(&[blessed(running)]).await
}
