//! A machine that goes to the next version of the image and back. Firmware boots it, since the boot loader chooses the
//! version; what an update consists of is on a second disk, where the agent would have put it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    cli::Common,
    cluster::{self, Cluster, Options},
    description,
    host::Host,
    machine::Machine,
    suite::{Names, Suite},
    wait,
};

/// The cases here, in the order in which the machine goes through them.
pub(super) const CASES: Names = &[
    "update::firmware_boots_the_installed_version",
    "update::next_version_is_blessed_in_the_other_slot",
    "update::broken_version_falls_back_by_itself",
];

/// Three boots that fail and one that does not.
pub(super) const EXTENDED: Names = &["update::broken_version_falls_back_by_itself"];

/// From a boot that takes commands to a boot that is blessed.
const BLESSING: Duration = Duration::from_secs(120);
/// The files from which the boot loader takes its entries.
const ENTRIES: &str = "sudo ls /efi/EFI/Linux";

/// What an image build says about its update.
#[derive(Debug, serde::Deserialize)]
struct Artefacts {
    version: String,
    files: Vec<Artefact>,
}

#[derive(Debug, serde::Deserialize)]
struct Artefact {
    /// Below the release directory.
    name: PathBuf,
}

impl Artefacts {
    fn of(image: &Path) -> Result<(Self, PathBuf)> {
        let dir = image.join("update");
        let path = dir.join("files.json");
        let text = fs::read(&path)
            .with_context(|| format!("no {}; build it with `make image-next`", path.display()))?;
        let found = serde_json::from_slice(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        Ok((found, dir))
    }
}

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
struct Versions {
    installed: String,
    next: String,
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<(Cluster, Versions)> {
    let (installed, _) = Artefacts::of(&common.image)?;
    let (next, packed) = Artefacts::of(&common.target.join("image-next"))?;
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "update".into();
        node.ignition = json!({
            "ignition": {"version": "3.3.0"},
            "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [host.public_key]}]},
        })
        .to_string();
    }
    let options = Options {
        alone: true,
        firmware: true,
        spare_disk: true,
        ..Options::default()
    };
    let prepared = cluster::prepare(host, dir, &nodes, options).await?;
    for (spec, _) in &prepared {
        let disk = spec.spare_disk.as_deref().context("no second disk")?;
        fill(disk, &next, &packed, &dir.join("staging")).await?;
    }
    let versions = Versions {
        installed: installed.version,
        next: next.version,
    };
    Ok((Cluster::start_prepared(host, nodes, prepared)?, versions))
}

/// Puts the artefacts, unpacked, into a file system on `disk`.
async fn fill(disk: &Path, artefacts: &Artefacts, packed: &Path, scratch: &Path) -> Result<()> {
    fs::create_dir_all(scratch)
        .with_context(|| format!("failed to create {}", scratch.display()))?;
    for file in &artefacts.files {
        let name = file.name.file_name().context("an artefact without name")?;
        let unpacked = scratch.join(Path::new(name).file_stem().context("no stem")?);
        let output = fs::File::create(&unpacked)
            .with_context(|| format!("failed to create {}", unpacked.display()))?;
        let status = tokio::process::Command::new("zstd")
            .args(["--quiet", "--decompress", "--stdout"])
            .arg(packed.join(name))
            .stdout(Stdio::from(output))
            .status()
            .await
            .context("failed to run zstd")?;
        ensure!(status.success(), "zstd: {status} on {}", name.display());
    }
    let status = tokio::process::Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(scratch)
        .arg(disk)
        .status()
        .await
        .context("failed to run mke2fs (package e2fsprogs)")?;
    ensure!(status.success(), "mke2fs: {status} on {}", disk.display());
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
    update(machine, versions).await?;
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    suite
        .case(CASES[1], cluster, async |cluster| {
            next_version_is_blessed(one(cluster)?, versions).await
        })
        .await;
    if !suite.wants(CASES[2]) {
        return Ok(());
    }
    progress.step("break the next version");
    let machine = one(cluster)?;
    damage(machine, versions).await?;
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    suite
        .case(CASES[2], cluster, async |cluster| {
            installed_version_is_back(one(cluster)?, versions).await
        })
        .await;
    Ok(())
}

fn one(cluster: &mut Cluster) -> Result<&mut Machine> {
    let [machine] = &mut cluster.machines[..] else {
        bail!("not one machine")
    };
    Ok(machine)
}

async fn runs(machine: &Machine, version: &str) -> Result<()> {
    let running = machine
        .ssh
        .run(". /usr/lib/os-release; echo $IMAGE_VERSION")
        .await?;
    ensure!(running == version, "{running} runs, not {version}");
    Ok(())
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

/// Applies the update on the second disk. The version must not be one that boots until all of it is there.
async fn update(machine: &Machine, versions: &Versions) -> Result<()> {
    let staging = "/var/lib/selvage/update/staging";
    machine
        .ssh
        .run(&format!(
            "sudo mkdir -p {staging} && sudo mount -o ro /dev/disk/by-id/virtio-spare {staging} && \
             sudo /usr/lib/systemd/systemd-sysupdate update"
        ))
        .await?;
    let entries = machine.ssh.run(ENTRIES).await?;
    let next = format!("selvage_{}+3-0.efi", versions.next);
    ensure!(entries.contains(&next), "no {next} in {entries}");
    Ok(())
}

async fn next_version_is_blessed(machine: &mut Machine, versions: &Versions) -> Result<()> {
    runs(machine, &versions.next).await?;
    let blessed = format!("selvage_{}.efi", versions.next);
    wait::until("the version is blessed", BLESSING, || async {
        let entries = machine.ssh.run(ENTRIES).await?;
        ensure!(entries.lines().any(|entry| entry == blessed), "{entries}");
        Ok(())
    })
    .await
}

/// Makes the running version one on trial that cannot be verified at its next boot.
async fn damage(machine: &Machine, versions: &Versions) -> Result<()> {
    let next = &versions.next;
    machine
        .ssh
        .run(&format!(
            "sudo mv /efi/EFI/Linux/selvage_{next}.efi /efi/EFI/Linux/selvage_{next}+3-0.efi && \
             sudo dd if=/dev/zero of=/dev/disk/by-partlabel/selvage_{next}_verity bs=4096 count=1 conv=fsync status=none"
        ))
        .await
        .map(drop)
}

async fn installed_version_is_back(machine: &mut Machine, versions: &Versions) -> Result<()> {
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
