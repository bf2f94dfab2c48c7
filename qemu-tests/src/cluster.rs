//! Machines that share a switch.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use ipnet::Ipv4Net;
use selvage::appliance::image_file;

use crate::{
    artifacts::Artifacts,
    disk,
    drive::Drive,
    host::{Host, free_port},
    machine::{self, Machine},
    progress::Progress,
    qemu::{Boot, Spec},
    serve,
    ssh::Ssh,
    switch::wire::Switch,
};

/// Memory of a machine in MiB: what a small cloud instance has.
const MEMORY_MIB: u32 = 1024;
/// The same of one that has all of its system in there.
const PXE_MEMORY_MIB: u32 = 2048;

/// Size of a second disk. Sparse.
const SPARE_DISK_BYTES: u64 = 1 << 30;

/// The image of a machine that has its config in there.
const EMBEDDED_IMAGE: &str = "image.raw";

/// A machine to be.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Its name and host name.
    pub name: String,
    /// Its address on the underlay.
    pub underlay: Ipv4Net,
    /// MAC address of its NIC there.
    pub mac: String,
    /// Its Ignition configuration.
    pub ignition: String,
    /// What it finds below `http://10.0.2.4/`: names and contents. See [`serve`].
    pub served: Vec<(String, Vec<u8>)>,
    /// What Azure's host has for it at [`serve::AZURE_HOST`]: names and contents. Only a machine of a cloud can ask.
    pub azure_host: Vec<(String, Vec<u8>)>,
    /// A further disk, or a CD, from its platform.
    pub drive: Option<Drive>,
    /// A network for it, which it gets by fw_cfg.
    pub network: Option<String>,
}

/// How machines of a cluster are started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Let guests reach the outside through the host.
    pub internet: bool,
    /// End QEMU when the guest resets.
    pub exit_on_reset: bool,
    /// No card but the one of QEMU's user-mode network, which gives 10.0.2.15 by DHCP, and neither gateway nor name
    /// server where there is no `internet`.
    pub alone: bool,
    /// No card but the one on the underlay, where nobody answers but other machines.
    pub unanswered: bool,
    /// So many further disks of 1 GiB: `/dev/disk/by-id/virtio-spare`, `virtio-spare1`, and so on.
    pub spare_disks: usize,
    /// Let firmware boot the disk.
    pub firmware: bool,
    /// The config is in the image, by `selvage image embed`, and not given by fw_cfg.
    pub embedded: bool,
    /// Memory in MiB, if not as usual.
    pub memory_mib: Option<u32>,
    /// A hardware watchdog.
    pub watchdog: bool,
    /// The disk is a SATA one.
    pub sata: bool,
    /// Whether there is a TPM 2.0, by swtpm.
    pub tpm: bool,
    /// The same, with firmware that can do Secure Boot and has no keys yet. One processor: with two, under TCG, this
    /// firmware has hung.
    pub secure_boot: bool,
    /// Boot from the kernel and initrd for PXE, with nothing on the disk.
    pub pxe: bool,
    /// Appended to the kernel command line.
    pub kernel_arguments: &'static str,
    /// Another platform than QEMU: what SMBIOS says, each as for QEMU's `-smbios`. There is no config by fw_cfg, and what
    /// is served is at [`serve::METADATA_ADDRESS`].
    pub cloud: Option<&'static [&'static str]>,
}

/// A running cluster; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The machines, in the order of the nodes.
    pub machines: Vec<Machine>,
    /// What they were made from.
    pub nodes: Vec<Node>,
    /// Their underlay; it lives as long as they do. A kept cluster's is in the process that holds it.
    pub switch: Option<Switch>,
}

/// Makes disks and files for `nodes` below `dir`, which is emptied before.
///
/// # Errors
/// When files cannot be written or qemu-img fails.
pub(crate) async fn prepare(
    host: &Host,
    dir: &Path,
    nodes: &[Node],
    options: Options,
) -> Result<Vec<(Spec, Ssh)>> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("failed to empty {}", dir.display()))?;
    }
    let mut machines = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        machines.push(
            prepare_one(
                host,
                &dir.join(&node.name),
                node,
                index,
                nodes.len(),
                options,
            )
            .await?,
        );
    }
    Ok(machines)
}

async fn prepare_one(
    host: &Host,
    dir: &Path,
    node: &Node,
    index: usize,
    machines: usize,
    options: Options,
) -> Result<(Spec, Ssh)> {
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let ignition = dir.join("config.ign");
    fs::write(&ignition, &node.ignition)
        .with_context(|| format!("failed to write {}", ignition.display()))?;
    let disk = dir.join("disk.qcow2");
    let image = match options.embedded {
        true => &embed(&host.artifacts.disk, &ignition, dir).await?,
        false => &host.artifacts.disk,
    };
    disk::create((!options.pxe).then_some(image), &disk).await?;
    let mut spare_disks: Vec<PathBuf> = (0..options.spare_disks)
        .map(|index| create_spare_disk(dir, index))
        .collect::<Result<_>>()?;
    let mut cd = None;
    if let Some(drive) = &node.drive {
        let image = drive.create(dir).await?;
        match drive.is_cd() {
            true => cd = Some(image),
            false => spare_disks.push(image),
        }
    }
    let azure_host = serve::prepare(&dir.join("azure-host"), &node.azure_host)?;
    let network = node.network.as_ref().map(|text| {
        let path = dir.join("network");
        let written = fs::write(&path, text);
        written.with_context(|| format!("failed to write {}", path.display()))?;
        anyhow::Ok(path)
    });
    // One socket directory serves several clusters, one after the other or side by side.
    let socket = |kind: &str| {
        host.sockets
            .path()
            .join(format!("{}-{index}-{kind}", tag(dir)))
    };
    let ssh = Ssh {
        port: free_port()?,
        key: host.key.clone(),
        control: socket("ssh"),
    };
    let spec = Spec {
        name: node.name.clone(),
        architecture: host.artifacts.architecture,
        disk,
        write_log: None,
        boot: match options.pxe {
            true => direct(
                &host.artifacts.for_pxe(&dir.join("formats")).await?,
                &arguments(host, options),
            ),
            false => boot(host, dir, options)?,
        },
        ignition: (options.cloud.is_none() && !options.embedded).then_some(ignition),
        network: network.transpose()?,
        console: dir.join("console.log"),
        qmp: socket("qmp"),
        ssh_port: ssh.port,
        access: !options.unanswered,
        underlay: (!options.alone).then(|| (socket("net"), node.mac.clone())),
        served: serve::prepare(&dir.join("served"), &node.served)?,
        relays: azure_host
            .map(|command| serve::option(serve::AZURE_HOST, &command))
            .into_iter()
            .collect(),
        spare_disks,
        cd,
        cpus: match options.secure_boot {
            true => 1,
            false => Host::cpus(machines),
        },
        memory_mib: match options.memory_mib {
            Some(memory) => memory,
            None if options.pxe => PXE_MEMORY_MIB,
            None => MEMORY_MIB,
        },
        internet: options.internet,
        exit_on_reset: options.exit_on_reset,
        watchdog: options.watchdog,
        sata: options.sata,
        smbios: (options.cloud.into_iter().flatten())
            .map(|&smbios| smbios.to_owned())
            .collect(),
        cloud: options.cloud.is_some(),
        tpm: options.tpm.then(|| socket("tpm")),
    };
    Ok((spec, ssh))
}

fn arguments(host: &Host, options: Options) -> String {
    let arguments = [
        host.artifacts.architecture.kernel_arguments(),
        host.accelerator.kernel_arguments(),
        options.kernel_arguments,
    ];
    arguments.join(" ").trim_end().to_owned()
}

/// Without firmware: QEMU loads the kernel itself, with `arguments` after those of the image.
fn direct(artifacts: &Artifacts, arguments: &str) -> Boot {
    Boot::Direct {
        kernel: artifacts.kernel.clone(),
        initrd: artifacts.initrd.clone(),
        append: format!("{} {arguments}", artifacts.cmdline),
    }
}

fn boot(host: &Host, dir: &Path, options: Options) -> Result<Boot> {
    if !options.firmware && !options.secure_boot {
        return Ok(direct(&host.artifacts, &arguments(host, options)));
    }
    let variables = dir.join("variables.fd");
    let new = host.artifacts.architecture.firmware_variables();
    fs::copy(new, &variables).with_context(|| format!("failed to copy {new}"))?;
    Ok(Boot::Firmware {
        variables,
        append: arguments(host, options),
        secure_boot: options.secure_boot,
    })
}

/// A copy of the image, in `dir`, with the config in it.
async fn embed(image: &Path, config: &Path, dir: &Path) -> Result<PathBuf> {
    let copy = dir.join(EMBEDDED_IMAGE);
    // What std copies has no holes.
    let copied = tokio::process::Command::new("cp")
        .arg("--sparse=always")
        .args([image, &copy])
        .status()
        .await
        .context("failed to run cp")?;
    ensure!(copied.success(), "cp of {}: {copied}", image.display());
    image_file::embed(&copy, config, &mut std::io::sink())?;
    Ok(copy)
}

fn create_spare_disk(dir: &Path, index: usize) -> Result<PathBuf> {
    let path = dir.join(format!("spare{index}.raw"));
    fs::File::create(&path)
        .and_then(|file| file.set_len(SPARE_DISK_BYTES))
        .with_context(|| format!("failed to create {}", path.display()))?;
    Ok(path)
}

/// A short name for the sockets of the cluster in whose directory `dir` lies.
fn tag(dir: &Path) -> String {
    let name = dir.parent().and_then(Path::file_name).unwrap_or_default();
    name.to_string_lossy()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(16)
        .collect()
}

/// Starts the switch that the machines connect to.
///
/// # Errors
/// As [`Switch::start`].
pub(crate) fn start_switch<'a>(specs: impl IntoIterator<Item = &'a Spec>) -> Result<Switch> {
    let sockets: Vec<PathBuf> = specs
        .into_iter()
        .filter_map(|spec| Some(spec.underlay.as_ref()?.0.clone()))
        .collect();
    Switch::start(sockets)
}

impl Cluster {
    /// Starts `nodes` in this process, with their files below `dir`.
    ///
    /// # Errors
    /// When anything cannot be started.
    pub(crate) async fn start(
        host: &Host,
        dir: &Path,
        nodes: Vec<Node>,
        options: Options,
    ) -> Result<Self> {
        let prepared = prepare(host, dir, &nodes, options).await?;
        Self::start_prepared(host, nodes, prepared)
    }

    /// Starts `nodes` with what [`prepare`] made for them.
    ///
    /// # Errors
    /// When anything cannot be started.
    pub(crate) fn start_prepared(
        host: &Host,
        nodes: Vec<Node>,
        prepared: Vec<(Spec, Ssh)>,
    ) -> Result<Self> {
        let switch = start_switch(prepared.iter().map(|(spec, _)| spec))?;
        let machines = prepared
            .into_iter()
            .map(|(spec, ssh)| {
                let tpm = machine::start_tpm(&spec)?;
                let qemu = machine::start_qemu(&spec, host.accelerator)?;
                Ok(Machine::owned(spec, ssh, qemu).with_tpm(tpm))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            machines,
            nodes,
            switch: Some(switch),
        })
    }

    /// Waits until all machines take commands.
    ///
    /// # Errors
    /// As [`Machine::wait_for_ssh`].
    pub(crate) async fn wait_for_ssh(&mut self, progress: &Progress) -> Result<()> {
        try_join_all(
            self.machines
                .iter_mut()
                .map(|machine| machine.wait_for_ssh(progress)),
        )
        .await
        .map(drop)
    }

    /// Waits until all boots are over, and gives systemd's word on each.
    ///
    /// # Errors
    /// As [`Machine::settle`].
    pub(crate) async fn settle(&self, progress: &Progress) -> Result<Vec<String>> {
        try_join_all(self.machines.iter().map(|machine| machine.settle(progress))).await
    }

    /// Kills the machines at once and removes their disks; logs stay.
    pub(crate) fn discard(self) {
        let disks: Vec<_> = self
            .machines
            .iter()
            .flat_map(|machine| {
                let image = machine.spec.disk.with_file_name(EMBEDDED_IMAGE);
                let disks = [machine.spec.disk.clone(), image];
                (disks.into_iter())
                    .chain(machine.spec.spare_disks.clone())
                    .chain(machine.spec.cd.clone())
            })
            .collect();
        drop(self);
        for disk in disks {
            // A disk that cannot be removed now is removed with its directory by the next run.
            let _ = fs::remove_file(disk);
        }
    }

    /// Shuts all machines down in order, as far as they let themselves.
    pub(crate) async fn power_down(mut self) {
        futures_util::future::join_all(self.machines.iter_mut().map(Machine::power_down)).await;
    }
}
