//! The life that is recorded: a first boot by firmware, the download of the next version, its installation, a reboot,
//! its first try and its blessing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::slot::{self, Hash};
use crate::{
    built::{self, Built, Key},
    cli::Common,
    cluster::{self, Cluster, Node, Options},
    description,
    host::Host,
    machine::Machine,
    progress::Progress,
    serve, ssh, wait,
    write_log::{WriteLog, cut::Phase, replay},
};

/// For a download by a software-emulated machine, and for unpacking it.
pub(super) const APPLY_DEADLINE: Duration = Duration::from_secs(900);
/// From a boot that takes commands to a boot that is blessed.
const BLESSING: Duration = Duration::from_secs(300);

/// The files from which the boot loader takes its entries.
const ENTRIES: &str = "sudo ls /efi/EFI/Linux";
/// The name of a machine here.
pub(super) const NAME: &str = "power-cut";

/// How the machines of this group are started.
pub(super) const OPTIONS: Options = Options {
    secure_boot: false,
    embedded: false,
    memory_mib: None,
    watchdog: false,
    sata: false,
    tpm: false,
    internet: false,
    exit_on_reset: false,
    alone: true,
    unanswered: false,
    spare_disks: 0,
    firmware: true,
    pxe: false,
    kernel_arguments: "",
    cloud: None,
};

/// What is kept of a recording beside the log.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Notes {
    installed: String,
    next: String,
    /// The Ignition configuration, whose ssh key is beside it.
    ignition: String,
    /// Names of the phases, with the length of the log at the end of each.
    phases: Vec<(String, u64)>,
}

/// A machine's life that was recorded.
#[derive(Debug)]
pub(super) struct Recording {
    /// The log.
    pub log: PathBuf,
    /// The two versions.
    pub versions: [String; 2],
    /// The key that logs in.
    pub key: PathBuf,
    /// The machine's Ignition configuration.
    pub ignition: String,
    /// Directory of what the release server had.
    pub served: PathBuf,
    /// The root hashes of both versions' UKIs, by the SHA-256 of these.
    pub known: BTreeMap<Hash, Hash>,
    phases: Vec<(String, u64)>,
}

impl Recording {
    /// Reads what [`record`] left in `dir`.
    ///
    /// # Errors
    /// When there is none, or one of other versions.
    pub(super) async fn read(dir: &Path, common: &Common) -> Result<Self> {
        let path = dir.join("recording.json");
        let text = fs::read(&path)
            .with_context(|| format!("no recording {}: run without --recorded", path.display()))?;
        let notes: Notes = serde_json::from_slice(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        let mut known = BTreeMap::new();
        for (dir, version) in [
            (common.image.clone(), &notes.installed),
            (common.target.join("image-next"), &notes.next),
        ] {
            let built = Built::of(&dir)?;
            ensure!(
                built.version == *version,
                "the recording is of version {version}, the image of {}: run without --recorded",
                built.version
            );
            let uki = uki(&built).await?;
            known.insert(slot::sha256(&uki), slot::root_hash(&uki)?);
        }
        Ok(Self {
            log: dir.join("write.log"),
            versions: [notes.installed, notes.next],
            key: dir.join("id_ed25519"),
            ignition: notes.ignition,
            served: dir.join("machine").join(NAME).join("served"),
            known,
            phases: notes.phases,
        })
    }

    /// The phases by entries of the log.
    pub(super) fn phases(&self, log: &WriteLog) -> Vec<Phase> {
        let mut start = 0;
        let mut phases = Vec::new();
        for (name, end) in &self.phases {
            let end = log.entries.partition_point(|entry| entry.data <= *end);
            phases.push(Phase {
                name: name.clone(),
                entries: start..end,
            });
            start = end;
        }
        phases
    }
}

/// The UKI, unpacked.
async fn uki(built: &Built) -> Result<Vec<u8>> {
    let scratch = tempfile::tempdir().context("failed to make a directory")?;
    let unpacked = scratch.path().join("uki");
    built::unpack(&built.packed(".efi.zst")?, &unpacked).await?;
    fs::read(&unpacked).context("the UKI was not unpacked")
}

/// Records into `dir`, which is emptied before.
///
/// # Errors
/// When the machine does not come up, or is not updated.
pub(super) async fn record(
    host: &Host,
    common: &Common,
    dir: &Path,
    progress: &Progress,
) -> Result<()> {
    empty(dir)?;
    let (key, public_key) = ssh::generate_key(dir).await?;
    let installed = Built::of(&common.image)?;
    let next = Built::of(&common.target.join("image-next"))?;
    let release = Release::of(&next).await?;
    let mut nodes = description::nodes(&common.cluster, 1, &public_key)?;
    for node in &mut nodes {
        node.name = NAME.into();
        node.ignition = ignition(&public_key, &release.public_key);
        node.served.clone_from(&release.served);
    }
    let ignition = nodes
        .first()
        .map(|node| node.ignition.clone())
        .unwrap_or_default();
    let mut prepared = cluster::prepare(host, &dir.join("machine"), &nodes, OPTIONS).await?;
    let log = dir.join("write.log");
    fs::File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    for (spec, ssh) in &mut prepared {
        spec.write_log = Some(log.clone());
        ssh.key.clone_from(&key);
    }
    let mut cluster = Cluster::start_prepared(host, nodes, prepared)?;
    let mut life = Life {
        log,
        phases: Vec::new(),
    };
    let lived = life.live(one(&mut cluster)?, &next.version, progress).await;
    // The console stays; the log has all of the disk.
    cluster.discard();
    lived?;
    let notes = Notes {
        installed: installed.version,
        next: next.version,
        ignition,
        phases: life.phases,
    };
    let path = dir.join("recording.json");
    fs::write(&path, serde_json::to_vec_pretty(&notes)?)
        .with_context(|| format!("failed to write {}", path.display()))
}

fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("failed to empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))
}

struct Life {
    log: PathBuf,
    phases: Vec<(String, u64)>,
}

impl Life {
    async fn live(&mut self, machine: &mut Machine, next: &str, progress: &Progress) -> Result<()> {
        machine.wait_for_ssh(progress).await?;
        let state = machine.settle(progress).await?;
        ensure!(state == "running", "the first boot ended {state}");
        self.ends("first boot", progress)?;
        for (phase, command) in [
            ("download", "sudo selvage update apply --download"),
            ("apply", "sudo selvage update apply"),
        ] {
            machine.ssh.feed(command, &[], APPLY_DEADLINE).await?;
            self.ends(phase, progress)?;
        }
        machine.reboot().await?;
        self.ends("reboot", progress)?;
        machine.wait_for_ssh(progress).await?;
        self.ends("first try", progress)?;
        wait::until("the next version is blessed", BLESSING, || async {
            let entries = machine.ssh.run(ENTRIES).await?;
            let blessed = format!("selvage_{next}.efi");
            ensure!(entries.lines().any(|entry| entry == blessed), "{entries}");
            Ok(())
        })
        .await?;
        let state = machine.settle(progress).await?;
        ensure!(state == "running", "the next version is {state}");
        self.ends("blessing", progress)?;
        // The log's super block is written at a flush: those of an orderly end are the last.
        ensure!(
            machine.power_down().await,
            "the machine does not power down"
        );
        self.ends("power down", progress)?;
        let log = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.log);
        log.and_then(|log| replay::dig_holes(&log))
            .context("failed to make the log sparse")
    }

    /// Notes how long the log was when a phase ended.
    fn ends(&mut self, phase: &str, progress: &Progress) -> Result<()> {
        let length = fs::metadata(&self.log).context("the log is gone")?.len();
        progress.line(&format!("    {phase}: log of {} MB", length / 1_000_000));
        self.phases.push((phase.to_owned(), length));
        Ok(())
    }
}

/// What a release server has, signed by a key that was made for it.
struct Release {
    served: Vec<(String, Vec<u8>)>,
    public_key: String,
}

impl Release {
    /// # Errors
    /// When a file is missing, or openssl is.
    async fn of(built: &Built) -> Result<Self> {
        let read = |path: &Path| {
            fs::read(path).with_context(|| format!("failed to read {}", path.display()))
        };
        let mut served = Vec::new();
        for (name, path) in built.named() {
            served.push((name.to_owned(), read(&path)?));
        }
        let scratch = tempfile::tempdir().context("failed to make a directory for a key")?;
        let key = Key::make(&scratch.path().join("key")).await?;
        let index = built::index(1, &[built.release()]);
        key.publish(&index, &scratch.path().join("stable.json"))
            .await?;
        for name in ["stable.json", "stable.json.sig"] {
            served.push((name.to_owned(), read(&scratch.path().join(name))?));
        }
        let public_key = key.public;
        Ok(Self { served, public_key })
    }
}

/// Access, the key of the releases, and where they are.
fn ignition(ssh_key: &str, update_key: &str) -> String {
    let file = |path: &str, contents: &str| {
        json!({
            "path": path,
            "mode": 0o644,
            "contents": {"source": format!("data:;base64,{}", STANDARD.encode(contents))},
        })
    };
    let settings = format!(
        "[update]\nserver = \"http://{}\"\nauto = \"off\"\n[fleet]\nlock = \"none\"\n",
        serve::ADDRESS
    );
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [ssh_key]}]},
        "storage": {"files": [
            file("/etc/selvage/update-keys.d/test.pem", update_key),
            file("/etc/selvage/agent.toml", &settings),
        ]},
    })
    .to_string()
}

/// The machine of a cluster that has one.
///
/// # Errors
/// When it has none.
pub(super) fn one(cluster: &mut Cluster) -> Result<&mut Machine> {
    cluster.machines.first_mut().context("there is no machine")
}

/// A machine with the configuration of the one that was recorded, and its release server if it is to have one.
///
/// # Errors
/// When what the server had is gone.
pub(super) fn node(recording: &Recording, with_server: bool) -> Result<Node> {
    let mut served = Vec::new();
    let mut directories = Vec::from_iter(with_server.then(|| recording.served.clone()));
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("failed to read {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let contents =
                fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
            let name = path.strip_prefix(&recording.served)?;
            served.push((name.display().to_string(), contents));
        }
    }
    Ok(Node {
        name: NAME.into(),
        // It has no card on an underlay.
        underlay: "192.0.2.1/32".parse()?,
        mac: String::new(),
        ignition: recording.ignition.clone(),
        served,
        azure_host: Vec::new(),
        drive: None,
        network: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_release_is_signed_and_has_the_files_that_its_index_names() {
        let dir = tempfile::tempdir().unwrap();
        let release = Release::of(&built::tests::image(dir.path())).await.unwrap();
        let served = |wanted: &str| {
            let found = release.served.iter().find(|(name, _)| name == wanted);
            found.map(|(_, contents)| contents.as_slice()).unwrap()
        };
        let (text, signature) = (served("stable.json"), served("stable.json.sig"));
        let index = built::tests::believed(&release.public_key, text, signature);
        for file in &index.releases[0].files {
            assert_eq!(served(&file.path), file.path.as_bytes());
        }
        assert_eq!(release.served.len(), 5);
    }

    #[test]
    fn an_entry_belongs_to_the_phase_in_which_it_was_logged() {
        let requests = [
            crate::write_log::tests::write(0, b'a', 1),
            crate::write_log::tests::FLUSHED,
            crate::write_log::tests::write(1, b'b', 1),
            crate::write_log::tests::FLUSHED,
        ];
        let (_dir, log) = crate::write_log::tests::log(&requests);
        // Super block, entry, data, flush; then the same without a super block.
        let recording = Recording {
            log: PathBuf::new(),
            versions: Default::default(),
            key: PathBuf::new(),
            ignition: String::new(),
            served: PathBuf::new(),
            known: BTreeMap::new(),
            phases: vec![("one".into(), 4 * 512), ("two".into(), 7 * 512)],
        };
        let phases = recording.phases(&log);
        let entries: Vec<_> = phases.iter().map(|phase| phase.entries.clone()).collect();
        assert_eq!(entries, [0..2, 2..4]);
    }
}
