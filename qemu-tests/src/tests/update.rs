//! A machine that goes to the next version of the image and back. Firmware boots it, since the boot loader chooses the
//! version; what the agent would have downloaded is on a second disk.

pub(super) mod bad;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::sysext::{MERGE, UNMERGE};
use crate::{
    built::{self, Built, Key, succeed},
    cli::Common,
    cluster::{self, Cluster, Options},
    description,
    host::Host,
    machine::Machine,
    progress::Progress,
    suite::{Names, Suite},
    wait,
};

/// The cases here, in the order in which the machine goes through them.
pub(super) const CASES: Names = &[
    "update::firmware_boots_the_installed_version",
    "update::next_version_is_blessed_in_the_other_slot",
    "update::boot_loader_follows_the_blessing",
    "update::roll_back_returns_to_the_former_version",
    "update::broken_version_falls_back_by_itself",
    "update::boot_menus_reset_is_chosen_only_by_hand",
];

/// All of them: they need a second image. That the firmware starts what is installed is seen in [`super::small`], too.
pub(super) const EXTENDED: Names = CASES;

/// From a boot that takes commands to a boot that is blessed.
pub(super) const BLESSING: Duration = Duration::from_secs(120);
/// Unpacking, writing and reading back a version, without hardware acceleration.
const INSTALLATION: Duration = Duration::from_secs(900);
/// The files from which the boot loader takes its entries.
pub(super) const ENTRIES: &str = "sudo ls /efi/EFI/Linux";

/// Boots the machine as often as the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    let mut result = Ok(());
    match start(host, common, &dir.join("update")).await {
        Err(error) => result = Err(error),
        Ok((mut cluster, versions)) => {
            if let Err(error) = boots(suite, &mut cluster, &versions).await {
                suite.boot_failed("update", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

/// The version that is installed, and the one that comes next.
#[derive(Debug)]
pub(super) struct Versions {
    /// The one of the disk.
    pub installed: String,
    /// The one of the update.
    pub next: String,
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<(Cluster, Versions)> {
    let installed = Built::of(&common.image)?;
    let next = Built::of(&common.target.join("image-next"))?;
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "update".into();
        node.ignition = description::only_a_login(&host.public_key).to_string();
    }
    let options = Options {
        alone: true,
        firmware: true,
        spare_disks: 1,
        ..Options::default()
    };
    let prepared = cluster::prepare(host, dir, &nodes, options).await?;
    for (spec, _) in &prepared {
        let disk = spec.spare_disks.first().context("no second disk")?;
        fill(disk, &next, &dir.join("spare")).await?;
    }
    let versions = Versions {
        installed: installed.version,
        next: next.version,
    };
    Ok((Cluster::start_prepared(host, nodes, prepared)?, versions))
}

/// Puts into a file system on `disk` what a machine has after a download, and the key that the index is signed with,
/// beside what is in the directory `scratch` already.
pub(super) async fn fill(disk: &Path, built: &Built, scratch: &Path) -> Result<()> {
    let state = scratch.join("update");
    for (name, from) in built.named() {
        let to = state.join("download").join(name);
        let parent = to.parent().context("a file without a directory")?;
        fs::create_dir_all(parent)
            .and_then(|()| fs::copy(&from, &to))
            .with_context(|| format!("failed to copy {}", from.display()))?;
    }
    let key = Key::make(&scratch.with_extension("key")).await?;
    let path = state.join("index-stable.json");
    key.publish(&built::index(1, &[built.release()]), &path)
        .await?;
    let path = scratch.join("update.pem");
    fs::write(&path, &key.public).with_context(|| format!("failed to write {}", path.display()))?;
    let mut mke2fs = tokio::process::Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([scratch, disk]);
    succeed(mke2fs, "e2fsprogs").await?;
    fs::remove_dir_all(scratch).with_context(|| format!("failed to remove {}", scratch.display()))
}

async fn boots(suite: &mut Suite<'_>, cluster: &mut Cluster, versions: &Versions) -> Result<()> {
    let progress = suite.progress;
    progress.step("first boot of a machine by its firmware");
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    suite
        .case(CASES[0], cluster, async |cluster| {
            ensure!(state == "running", "{state}");
            installed_version_runs(one(cluster)?, versions).await
        })
        .await;
    if !CASES[1..].iter().any(|name| suite.wants(name)) {
        return Ok(());
    }
    progress.step("update to the next version");
    let machine = one(cluster)?;
    // /usr is an overlay then, below which systemd-sysupdate does not find the disk by itself.
    machine.ssh.run(MERGE).await?;
    update(machine, versions).await?;
    machine.ssh.run(UNMERGE).await?;
    age_boot_loader(machine).await?;
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    suite
        .case(CASES[1], cluster, async |cluster| {
            next_version_is_blessed(one(cluster)?, versions).await
        })
        .await;
    suite
        .case(CASES[2], cluster, async |cluster| {
            boot_loader_is_the_images(one(cluster)?).await
        })
        .await;
    if suite.wants(CASES[3]) {
        progress.step("roll back");
        suite
            .case(CASES[3], cluster, async |cluster| {
                rolls_back(one(cluster)?, versions, progress).await
            })
            .await;
    }
    if suite.wants(CASES[4]) {
        progress.step("break the next version");
        let machine = one(cluster)?;
        damage(machine, versions).await?;
        machine.reboot().await?;
        machine.wait_for_ssh(progress).await?;
        suite
            .case(CASES[4], cluster, async |cluster| {
                installed_version_is_back(one(cluster)?, versions).await
            })
            .await;
    }
    if suite.wants(CASES[5]) {
        progress.step("choose the reset in the boot menu");
        suite
            .case(CASES[5], cluster, async |cluster| {
                let machine = one(cluster)?;
                choose_reset(machine, versions).await?;
                machine.reboot().await?;
                machine.wait_for_ssh(progress).await?;
                machine_was_reset(machine, versions).await
            })
            .await;
    }
    Ok(())
}

pub(super) fn one(cluster: &mut Cluster) -> Result<&mut Machine> {
    let [machine] = &mut cluster.machines[..] else {
        bail!("not one machine")
    };
    Ok(machine)
}

/// Fails unless this version runs, in an ordinary boot.
pub(super) async fn runs(machine: &Machine, version: &str) -> Result<()> {
    let running = machine
        .ssh
        .run(". /usr/lib/os-release; echo $IMAGE_VERSION")
        .await?;
    ensure!(running == version, "{running} runs, not {version}");
    let arguments = machine.ssh.run("cat /proc/cmdline").await?;
    ensure!(!arguments.contains("selvage.reset"), "{arguments}");
    resets_come_after_their_versions(&menu(machine).await?)
}

async fn installed_version_runs(machine: &mut Machine, versions: &Versions) -> Result<()> {
    let installed = &versions.installed;
    runs(machine, installed).await?;
    let entries = machine.ssh.run(ENTRIES).await?;
    ensure!(entries == format!("selvage_{installed}.efi"), "{entries}");
    let labels = machine
        .ssh
        .run("lsblk --noheadings --raw --output PARTLABEL /dev/vda | sort | xargs")
        .await?;
    let expected = format!(
        "_empty _empty selvage-esp selvage-root selvage_{installed} selvage_{installed}_verity"
    );
    ensure!(labels == expected, "the partitions are {labels}");
    Ok(())
}

/// What the machine does with the second disk: everything but the download, confined as by the unit of the timer.
const UPDATE: &str = r#"
set -eu
sudo mount -o ro /dev/disk/by-id/virtio-spare /mnt
sudo mkdir -p /etc/selvage/agent.d /etc/selvage/update-keys.d /run/systemd/system/selvage-update.service.d
sudo cp -r /mnt/update/. /var/lib/selvage/update/
sudo cp /mnt/update.pem /etc/selvage/update-keys.d/test.pem
sudo umount /mnt
printf '[update]\nserver = "http://127.0.0.1:9"\n' | sudo tee /etc/selvage/agent.d/update.toml >/dev/null
printf '[Service]\nExecStart=\nExecStart=/usr/bin/selvage update apply\n' |
  sudo tee /run/systemd/system/selvage-update.service.d/test.conf >/dev/null
sudo systemctl daemon-reload
sudo systemctl start selvage-update.service || true
sudo journalctl --no-pager --output=cat --lines=20 --unit=selvage-update.service
"#;

/// Has the agent install what it has downloaded.
pub(super) async fn update(machine: &Machine, versions: &Versions) -> Result<()> {
    let said = machine.ssh.feed(UPDATE, &[], INSTALLATION).await?;
    let entries = machine.ssh.run(ENTRIES).await?;
    let next = format!("selvage_{}+3-0.efi", versions.next);
    ensure!(entries.contains(&next), "no {next} in {entries}: {said}");
    let status = machine
        .ssh
        .run("sudo selvage update status || true")
        .await?;
    ensure!(status.contains("the next reboot starts it"), "{status}");
    Ok(())
}

pub(super) async fn next_version_is_blessed(
    machine: &mut Machine,
    versions: &Versions,
) -> Result<()> {
    runs(machine, &versions.next).await?;
    let blessed = format!("selvage_{}.efi", versions.next);
    wait::until("the version is blessed", BLESSING, || async {
        let entries = machine.ssh.run(ENTRIES).await?;
        ensure!(entries.lines().any(|entry| entry == blessed), "{entries}");
        Ok(())
    })
    .await
}

/// Goes back to the version in the other slot; the one that ran is not to come back by itself.
async fn rolls_back(machine: &mut Machine, versions: &Versions, progress: &Progress) -> Result<()> {
    let Versions { installed, next } = versions;
    let said = machine.ssh.run("sudo selvage update rollback").await?;
    ensure!(
        said == format!("the next reboot starts version {installed}"),
        "{said}"
    );
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    runs(machine, installed).await?;
    let entries = machine.ssh.run(ENTRIES).await?;
    ensure!(
        entries == format!("selvage_{next}+0-1.efi\nselvage_{installed}.efi"),
        "{entries}"
    );
    let status = status(machine).await?;
    let failed = &status["failed"][0];
    ensure!(
        status["running"] == **installed
            && status["pending"].is_null()
            && failed["version"] == **next
            && failed["reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with("rolled back by hand")),
        "{status}"
    );
    let shown = machine
        .ssh
        .run("sudo selvage update status || test $? = 1")
        .await?;
    for expected in [
        format!("running    {installed} "),
        format!("boots      {next} (bad: no tries left)"),
        ": rolled back by hand".to_owned(),
    ] {
        ensure!(shown.contains(&expected), "no {expected:?} in:\n{shown}");
    }
    let again = machine
        .ssh
        .run("sudo selvage update rollback 2>&1 || true")
        .await?;
    ensure!(again.contains("was rolled back from"), "{again}");
    Ok(())
}

/// What `selvage update status --json` prints; that a version failed makes its exit status 1, that one waits 2.
async fn status(machine: &Machine) -> Result<Value> {
    let text = machine
        .ssh
        .run("sudo selvage update status --json || test $? -lt 3")
        .await?;
    serde_json::from_str(&text).context("the status is not JSON")
}

/// Makes the other version one on trial that cannot be verified at its next boot.
async fn damage(machine: &Machine, versions: &Versions) -> Result<()> {
    let next = &versions.next;
    machine
        .ssh
        .run(&format!(
            "sudo sh -c 'mv /efi/EFI/Linux/selvage_{next}*.efi /efi/EFI/Linux/selvage_{next}+3-0.efi' && \
             sudo dd if=/dev/zero of=/dev/disk/by-partlabel/selvage_{next}_verity bs=4096 count=1 conv=fsync status=none"
        ))
        .await
        .map(drop)
}

/// Fails unless the next version was tried three times, said so, and the installed one runs.
pub(super) async fn installed_version_is_back(
    machine: &mut Machine,
    versions: &Versions,
) -> Result<()> {
    runs(machine, &versions.installed).await?;
    let entries = machine.ssh.run(ENTRIES).await?;
    let tried = format!("selvage_{}+0-3.efi", versions.next);
    ensure!(
        entries.lines().any(|entry| entry == tried),
        "it was not tried three times: {entries}"
    );
    // The boots that failed said so; having been seen, that is as it should be.
    let hits = machine.console.check()?;
    ensure!(!hits.is_empty(), "no console rule finds the failed boots");
    let console = machine.console.text();
    let said = console.matches("This version is on trial").count();
    ensure!(said == 3, "the console told of {said} failed tries");
    Ok(())
}

/// The boot loader's files in the ESP, and the image's.
const LOADERS: &str = "/efi/EFI/systemd/systemd-bootx64.efi /efi/EFI/BOOT/BOOTX64.EFI";
/// The signed one, where there is one; as bootctl chooses.
const LOADER_OF_IMAGE: &str = "$(ls /usr/lib/systemd/boot/efi/systemd-bootx64.efi* | tail -n 1)";

/// Has the boot loader say that it is an older one; the text is in its data.
async fn age_boot_loader(machine: &Machine) -> Result<()> {
    let said = machine
        .ssh
        .run(&format!(
            "for file in {LOADERS}; do sudo sed -i 's/LoaderInfo: systemd-boot [0-9]/LoaderInfo: systemd-boot 1/g' $file; done; \
             sudo cmp -s {LOADER_OF_IMAGE} /efi/EFI/BOOT/BOOTX64.EFI || echo older"
        ))
        .await?;
    ensure!(said == "older", "the loader could not be aged: {said}");
    Ok(())
}

async fn boot_loader_is_the_images(machine: &Machine) -> Result<()> {
    wait::until("the loader is the image's", BLESSING, || async {
        machine
            .ssh
            .run(&format!(
                "for file in {LOADERS}; do sudo cmp {LOADER_OF_IMAGE} $file || exit 1; done"
            ))
            .await
            .map(drop)
    })
    .await?;
    // Both from systemd's clock, in microseconds.
    let order = machine
        .ssh
        .run(
            "for unit in systemd-bless-boot selvage-boot-loader; do \
             systemctl show --value --property=ExecMainStartTimestampMonotonic $unit.service; done",
        )
        .await?;
    let times: Vec<u64> = order.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(
        matches!(times[..], [blessed, loader] if 0 < blessed && blessed < loader),
        "not after the blessing: {order}"
    );
    Ok(())
}

/// The entries of the boot menu in the loader's own order, which is the one in which it chooses (systemd-boot(7),
/// `LoaderEntries`): each in UTF-16 with a NUL, after four bytes of attributes.
async fn menu(machine: &Machine) -> Result<Vec<String>> {
    let text = machine
        .ssh
        .run(
            "cat /sys/firmware/efi/efivars/LoaderEntries-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f | \
             tail -c +5 | LC_ALL=C sed 's/\\(.\\)\\x00/\\1/g' | tr '\\0' '\\n'",
        )
        .await?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What the entry of a UKI's second profile has after the UKI's name. That of the first has nothing, or `@main`.
const RESET: &str = "@reset";

/// Fails unless each version comes before its reset, and one of them first of all.
fn resets_come_after_their_versions(menu: &[String]) -> Result<()> {
    // Of a version on trial, systemd 257 gives the reset the version's own name: what runs has to show which came first.
    let version_of = |entry: &str| {
        let name = entry.split(['@', '+']).next().unwrap_or_default();
        name.trim_end_matches(".efi").to_owned()
    };
    let mut seen = Vec::new();
    let mut resets = 0;
    for entry in menu {
        let version = version_of(entry);
        if entry.ends_with(RESET) {
            resets += 1;
            let is_after = seen.contains(&version);
            ensure!(is_after, "{entry} does not come after {version}: {menu:?}");
        } else {
            seen.push(version);
        }
    }
    ensure!(resets > 0, "no entry for a reset: {menu:?}");
    Ok(())
}

/// Has the next boot start the running version's reset, as if somebody chose it in the menu.
async fn choose_reset(machine: &Machine, versions: &Versions) -> Result<()> {
    let entry = format!("selvage_{}.efi{RESET}", versions.installed);
    let command = format!("sudo touch /var/before-the-reset && sudo bootctl set-oneshot {entry}");
    machine.ssh.run(&command).await.map(drop)
}

async fn machine_was_reset(machine: &Machine, versions: &Versions) -> Result<()> {
    let left = machine
        .ssh
        .run("cat /proc/cmdline; ls /var/before-the-reset 2>/dev/null || true")
        .await?;
    ensure!(
        left.contains("selvage.reset") && !left.contains("before-the-reset"),
        "{left}"
    );
    let running = machine
        .ssh
        .run(". /usr/lib/os-release; echo $IMAGE_VERSION")
        .await?;
    ensure!(running == versions.installed, "{running} was reset");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_before_its_version_is_found() {
        let judge = |menu: &[&str]| {
            let menu: Vec<_> = menu.iter().map(|entry| (*entry).to_owned()).collect();
            resets_come_after_their_versions(&menu)
        };
        judge(&[
            "v2.efi",
            "v1.efi",
            "v2+3-0.efi@reset",
            "v1.efi@reset",
            "auto-x",
        ])
        .unwrap();
        judge(&["v1.efi@main", "v1.efi@reset", "v2.efi@main", "v2.efi@reset"]).unwrap();
        // What an update's menu was when both profiles had one os-release.
        judge(&["v2+3-0.efi@reset", "v2.efi", "v1.efi"]).unwrap_err();
        judge(&["v1.efi", "v2.efi@reset"]).unwrap_err();
        judge(&["v1.efi"]).unwrap_err();
    }
}
