//! A machine with Secure Boot: its firmware has no keys at first, enrols those that the signed image ships, and from
//! then on starts only what they have signed. `make image-signed` makes the image, its next version and the keys.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use super::update::{self, BLESSING, ENTRIES, Versions, one};
use crate::{
    built::{self, Built, Key, succeed},
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
    "secure_boot::firmware_in_setup_mode_enrols_the_shipped_keys",
    "secure_boot::kernel_is_locked_down",
    "secure_boot::signed_update_is_blessed",
    "secure_boot::apply_refuses_what_the_firmware_would_not_start",
    "secure_boot::flipped_bit_in_usr_is_a_counted_failure",
    "secure_boot::version_signed_by_another_key_does_not_boot",
];

/// All: seven boots of a machine with one processor.
pub(super) const EXTENDED: Names = CASES;

/// From a reset to the boot loader's word about what it loads.
const FIRMWARE: Duration = Duration::from_secs(180);
/// On the second disk: the next version's UKI, signed by a key that no firmware knows.
const FOREIGN: &str = "foreign.efi";
/// Beside it: a release with that UKI, as the agent keeps one that it has downloaded.
const RELEASE: &str = "release";
/// Where the second disk is mounted when it is not the staging directory.
const SPARE: &str = "/run/spare";
const MOUNT_SPARE: &str =
    "sudo mkdir -p /run/spare && sudo mount -o ro /dev/disk/by-id/virtio-spare /run/spare";

/// Boots the machine as often as the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    let mut result = Ok(());
    match start(suite, host, common, &dir.join("secure_boot")).await {
        Err(error) => result = Err(error),
        Ok((_host, mut cluster, versions)) => {
            if let Err(error) = boots(suite, &mut cluster, &versions).await {
                suite.boot_failed("secure_boot", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn start(
    suite: &Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
) -> Result<(Host, Cluster, Versions)> {
    let image = common.target.join("image-signed");
    let next_image = common.target.join("image-signed-next");
    let made_by = "build it with `make image-signed`";
    let installed = Built::of(&image).context(made_by)?;
    let next = Built::of(&next_image).context(made_by)?;
    let signed = Common {
        image,
        cluster: common.cluster.clone(),
        target: common.target.clone(),
        accelerator: Some(host.accelerator),
    };
    let host = Host::prepare(&signed, &dir.with_extension("key"), suite.progress).await?;
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "secureboot".into();
        node.ignition = json!({
            "ignition": {"version": "3.3.0"},
            "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [host.public_key]}]},
            // Nobody listens there: what was downloaded is used.
            "storage": {"files": [{
                "path": "/etc/selvage/agent.toml",
                "contents": {"source": "data:,%5Bupdate%5D%0Aserver%20%3D%20%22http%3A%2F%2F127.0.0.1%3A9%22%0A"},
            }]},
        })
        .to_string();
    }
    let options = Options {
        alone: true,
        secure_boot: true,
        spare_disks: 1,
        ..Options::default()
    };
    let prepared = cluster::prepare(&host, dir, &nodes, options).await?;
    for (spec, _) in &prepared {
        let disk = spec.spare_disks.first().context("no second disk")?;
        let scratch = dir.join("staging");
        sign_by_another_key(&next_image.join("selvage.efi"), &scratch).await?;
        let key = Key::at(&common.target.join("keys/update.key")).await?;
        release_foreign(&next, &scratch, &key).await?;
        update::fill(disk, &next, &scratch).await?;
    }
    let versions = Versions {
        installed: installed.version,
        next: next.version,
    };
    let cluster = Cluster::start_prepared(&host, nodes, prepared)?;
    Ok((host, cluster, versions))
}

/// Leaves a UKI in `dir` that differs from `uki` in nothing but its signature.
async fn sign_by_another_key(uki: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let keys = tempfile::tempdir().context("failed to make a directory for a key")?;
    let (key, certificate) = (keys.path().join("key"), keys.path().join("certificate"));
    let plain = keys.path().join("plain.efi");
    fs::copy(uki, &plain).with_context(|| format!("failed to copy {}", uki.display()))?;
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes"])
        .args(["-days", "10", "-subj", "/CN=nobody we know/", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    succeed(command, "openssl").await?;
    let mut command = Command::new("sbattach");
    command.arg("--remove").arg(&plain);
    succeed(command, "sbsigntool").await?;
    let mut command = Command::new("sbsign");
    command.arg("--key").arg(&key).arg("--cert");
    command.arg(&certificate).arg("--output");
    command.arg(dir.join(FOREIGN)).arg(&plain);
    succeed(command, "sbsigntool").await.map(drop)
}

/// Makes a release of the next version's files and the UKI in `dir` that another key has signed. The release itself is
/// signed as it should be.
async fn release_foreign(next: &Built, dir: &Path, key: &Key) -> Result<()> {
    let version = format!("{}.1", next.version);
    let renamed = |name: &str| name.replace(&next.version, &version);
    let (dir, uki) = (dir.join(RELEASE), dir.join(FOREIGN));
    let mut files = next.files.clone();
    for (file, (name, from)) in files.iter_mut().zip(next.named()) {
        let to = dir.join("download").join(renamed(name));
        let parent = to.parent().context("a file without a directory")?;
        fs::create_dir_all(parent)
            .with_context(|| format!("failed to create {}", parent.display()))?;
        if file["part"] == "uki" {
            let mut zstd = Command::new("zstd");
            zstd.args(["--quiet", "-1"]).arg(&uki).arg("-o").arg(&to);
            succeed(zstd, "zstd").await?;
            for (path, size, digest) in [
                (&uki, "unpacked_size", "unpacked_sha256"),
                (&to, "size", "sha256"),
            ] {
                file[size] = json!(fs::metadata(path)?.len());
                file[digest] = json!(sha256(path).await?);
            }
        } else {
            fs::copy(&from, &to).with_context(|| format!("failed to copy {}", from.display()))?;
        }
        file["name"] = json!(renamed(name));
    }
    let mut release = next.release();
    release["version"] = json!(version);
    release["files"] = json!(files);
    key.publish(&built::index(2, &[release]), &dir.join("index-stable.json"))
        .await
}

async fn sha256(path: &Path) -> Result<String> {
    let mut command = Command::new("sha256sum");
    command.arg(path);
    let said = succeed(command, "coreutils").await?;
    let digest = said.split(' ').next().unwrap_or_default();
    ensure!(digest.len() == 64, "sha256sum: {said}");
    Ok(digest.to_owned())
}

async fn boots(suite: &mut Suite<'_>, cluster: &mut Cluster, versions: &Versions) -> Result<()> {
    let progress = suite.progress;
    progress.step("first boot of a machine whose firmware has no keys yet");
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    suite
        .case(CASES[0], cluster, async |cluster| {
            ensure!(state == "running", "{state}");
            let machine = one(cluster)?;
            update::runs(machine, &versions.installed).await?;
            firmware_has_keys(machine).await
        })
        .await;
    suite
        .case(CASES[1], cluster, async |cluster| {
            let path = "/sys/kernel/security/lockdown";
            let lockdown = one(cluster)?.ssh.run(&format!("cat {path}")).await?;
            ensure!(lockdown.contains("[integrity]"), "{path}: {lockdown}");
            Ok(())
        })
        .await;
    if !CASES[2..].iter().any(|name| suite.wants(name)) {
        return Ok(());
    }
    progress.step("update to the next signed version");
    let machine = one(cluster)?;
    update::update(machine, versions).await?;
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    suite
        .case(CASES[2], cluster, async |cluster| {
            let machine = one(cluster)?;
            update::next_version_is_blessed(machine, versions).await?;
            firmware_has_keys(machine).await
        })
        .await;
    suite
        .case(CASES[3], cluster, async |cluster| {
            foreign_release_is_refused(one(cluster)?, versions).await
        })
        .await;
    progress.step("flip a bit in the next version");
    let machine = one(cluster)?;
    flip_a_bit(machine, versions).await?;
    machine.reboot().await?;
    machine.wait_for_ssh(progress).await?;
    suite
        .case(CASES[4], cluster, async |cluster| {
            update::installed_version_is_back(one(cluster)?, versions).await
        })
        .await;
    if !suite.wants(CASES[5]) {
        return Ok(());
    }
    progress.step("have another key sign the next version");
    let machine = one(cluster)?;
    install_foreign(machine, versions).await?;
    let from = machine.console.len();
    machine.reboot().await?;
    refused_by_firmware(machine, from, versions).await?;
    machine.wait_for_ssh(progress).await?;
    suite
        .case(CASES[5], cluster, async |cluster| {
            foreign_version_was_tried_in_vain(one(cluster)?, versions).await
        })
        .await;
    Ok(())
}

/// Fails unless the firmware checks what it starts, by keys that only the holder of the platform key can change.
async fn firmware_has_keys(machine: &Machine) -> Result<()> {
    let variables = machine
        .ssh
        .run(
            "cd /sys/firmware/efi/efivars && for name in SecureBoot SetupMode; do \
             od -An -tu1 -j4 $name-8be4df61-93ca-11d2-aa0d-00e098032b8c; done | xargs",
        )
        .await?;
    ensure!(
        variables == "1 0",
        "SecureBoot and SetupMode are {variables}"
    );
    Ok(())
}

/// Has the agent apply a release whose index is signed as it should be, and whose UKI is not.
async fn foreign_release_is_refused(machine: &Machine, versions: &Versions) -> Result<()> {
    let before = machine.ssh.run(ENTRIES).await?;
    let said = machine
        .ssh
        .run(&format!(
            "{MOUNT_SPARE} && sudo cp -r {SPARE}/{RELEASE}/. /var/lib/selvage/update/ && sudo umount {SPARE} && \
             {{ sudo selvage update apply 2>&1; echo status $?; }}"
        ))
        .await?;
    for word in [
        "status 1",
        "CN=nobody we know",
        "CN=Selvage test db",
        "enrol",
    ] {
        ensure!(said.contains(word), "no {word:?} in {said}");
    }
    let after = machine.ssh.run(ENTRIES).await?;
    ensure!(
        before == after,
        "the entries were {before}, and are {after}"
    );
    let labels = machine
        .ssh
        .run("lsblk --noheadings --raw --output PARTLABEL /dev/vda")
        .await?;
    let installed = format!("selvage_{}", versions.installed);
    ensure!(
        labels.lines().any(|label| label == installed),
        "the other slot was written to: {labels}"
    );
    Ok(())
}

/// Makes the running version one on trial, the first block of whose `/usr` is not what was hashed.
async fn flip_a_bit(machine: &Machine, versions: &Versions) -> Result<()> {
    let next = &versions.next;
    let device = format!("/dev/disk/by-partlabel/selvage_{next}");
    machine
        .ssh
        .run(&format!(
            "sudo mv /efi/EFI/Linux/selvage_{next}.efi /efi/EFI/Linux/selvage_{next}+3-0.efi && \
             byte=$(sudo od -An -tu1 -j1024 -N1 {device}) && \
             printf \"\\\\$(printf %03o $((byte ^ 1)))\" | \
             sudo dd of={device} bs=1 seek=1024 conv=notrunc,fsync status=none"
        ))
        .await
        .map(drop)
}

/// Puts the UKI that another key has signed in the place of the next version's.
async fn install_foreign(machine: &Machine, versions: &Versions) -> Result<()> {
    let next = &versions.next;
    machine
        .ssh
        .run(&format!(
            "{MOUNT_SPARE} && sudo sh -c 'rm /efi/EFI/Linux/selvage_{next}*' && \
             sudo cp {SPARE}/{FOREIGN} /efi/EFI/Linux/selvage_{next}+3-0.efi && sync"
        ))
        .await
        .map(drop)
}

/// The firmware has nothing else to start after a refusal, so somebody presses the reset button, as long as there are
/// tries.
async fn refused_by_firmware(machine: &mut Machine, from: u64, versions: &Versions) -> Result<()> {
    // Without spaces: the firmware breaks lines anywhere.
    let word = format!("Errorloading\\EFI\\Linux\\selvage_{}", versions.next);
    for attempt in 1..=3 {
        wait::until("the firmware refuses the version", FIRMWARE, || async {
            let console = machine.console.text_from(from);
            let text: String = console.split_whitespace().collect();
            let refusals = text.matches(&word).count();
            ensure!(
                refusals >= attempt,
                "{refusals} refusals of {attempt}; the console ends with {:?}",
                console.lines().last().unwrap_or_default()
            );
            Ok(())
        })
        .await?;
        machine.reset().await?;
    }
    Ok(())
}

async fn foreign_version_was_tried_in_vain(
    machine: &mut Machine,
    versions: &Versions,
) -> Result<()> {
    update::runs(machine, &versions.installed).await?;
    let tried = format!("selvage_{}+0-3.efi", versions.next);
    wait::until("the entries are readable", BLESSING, || async {
        let entries = machine.ssh.run(ENTRIES).await?;
        ensure!(
            entries.lines().any(|entry| entry == tried),
            "it was not tried three times: {entries}"
        );
        Ok(())
    })
    .await
}
