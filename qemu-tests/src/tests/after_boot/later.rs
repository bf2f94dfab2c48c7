//! The later boots of the machine: off and on with a larger disk, a reset, a panic.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{CASES, alone};
use crate::{
    cluster::Cluster, disk, host::Host, machine::Machine, progress::Progress, qmp, suite::Suite,
    wait,
};

/// What the disk grows by each time.
const GROWTH_BYTES: u64 = 2 << 30;
/// What partition and file system may leave of a disk unused: the table's copy at its end, the journal, the inodes.
const UNUSED_PERCENT: u64 = 6;
/// From a panic to the next kernel's first words: the kernel waits ten seconds, and a busy host much longer. One that does not
/// restart by itself never says anything.
const RESTART_DEADLINE: Duration = Duration::from_secs(240);
/// Words for the journal that a crash must not take.
const LAST_WORDS: &str = "the last words before the reset";

const BOOT_ID: &str = "tr -d - </proc/sys/kernel/random/boot_id";

/// Runs the cases that need another boot.
///
/// # Errors
/// When the machine does not come up again.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, cluster: &mut Cluster) -> Result<()> {
    let progress = suite.progress;
    if suite.wants_any(&CASES[9..12]) {
        let machine = alone(cluster)?;
        add_containers(machine).await?;
        let former = machine.ssh.run(BOOT_ID).await?;
        progress.step("power button, a larger disk, second boot");
        ensure!(
            machine.power_down().await,
            "the power button does not end the machine"
        );
        disk::grow(&machine.spec.disk, GROWTH_BYTES).await?;
        machine.power_on(host.accelerator)?;
        machine.wait_for_ssh(progress).await?;
        let state = machine.settle(progress).await?;
        ensure!(state == "running", "the second boot is {state:?}");
        suite.case(CASES[9], cluster, root_fills_disk).await;
        suite
            .case(CASES[10], cluster, async |cluster| {
                former_boot(alone(cluster)?, &former).await
            })
            .await;
        suite.case(CASES[11], cluster, addresses_are_free).await;
    }
    suite
        .case(CASES[12], cluster, async |cluster| {
            reset(cluster, progress).await
        })
        .await;
    suite
        .case(CASES[13], cluster, async |cluster| {
            panic(cluster, progress).await
        })
        .await;
    suite
        .case(CASES[14], cluster, async |cluster| {
            torn(cluster, host, progress).await
        })
        .await;
    Ok(())
}

async fn root_fills_disk(cluster: &mut Cluster) -> Result<()> {
    let machine = alone(cluster)?;
    let said = machine
        .ssh
        .run(
            "part=$(basename \"$(findmnt -n -o SOURCE /)\") && \
             disk=$(basename \"$(readlink -f /sys/class/block/$part/..)\") && \
             cat /sys/class/block/$disk/size /sys/class/block/$part/start /sys/class/block/$part/size && \
             stat -f -c '%b %S' /",
        )
        .await?;
    let numbers: Vec<u64> = said
        .split_whitespace()
        .map(|word| word.parse().with_context(|| said.clone()))
        .collect::<Result<_>>()?;
    let [disk, start, size, blocks, block_bytes] = numbers[..] else {
        anyhow::bail!("not understood: {said}")
    };
    let (disk, start, size) = (disk * 512, start * 512, size * 512);
    let most = |whole: u64| whole - whole * UNUSED_PERCENT / 100;
    ensure!(
        start + size >= most(disk),
        "the partition ends at {} of {disk} bytes",
        start + size
    );
    ensure!(
        blocks * block_bytes >= most(size),
        "the file system has {} of the partition's {size} bytes",
        blocks * block_bytes
    );
    Ok(())
}

async fn former_boot(machine: &Machine, former: &str) -> Result<()> {
    let said = machine
        .ssh
        .run("journalctl --list-boots -q --no-pager")
        .await?;
    ensure!(
        said.contains(former),
        "boot {former} is not in the journal:\n{said}"
    );
    for (what, script) in [
        ("the former boot's sshd", "journalctl -b -1 -u ssh"),
        ("Ignition of the first boot", "journalctl -t ignition"),
    ] {
        let said = machine
            .ssh
            .run(&format!("{script} -q --no-pager -o cat"))
            .await?;
        ensure!(!said.is_empty(), "no word of {what} (`{script}`)");
    }
    Ok(())
}

/// Three containers' networks, by the configuration that the image has for CNI runtimes.
async fn add_containers(machine: &Machine) -> Result<()> {
    let list = machine
        .ssh
        .run("cat /etc/cni/net.d/10-flannel.conflist")
        .await?;
    let list: Value = serde_json::from_str(&list).context("the CNI configuration is not JSON")?;
    let mut plugin = list["plugins"][0].clone();
    ensure!(
        plugin["type"] == "flannel",
        "the first CNI plugin is {plugin}"
    );
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    // What the agent would have written; it does not run here.
    let script = "sudo sh -ec '
        mkdir -p /run/flannel
        printf \"FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.3.1/29\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n\" \
          >/run/flannel/subnet.env
        cat >/run/cni.conf
        for pod in pod1 pod2 pod3; do
          ip netns add $pod
          CNI_COMMAND=ADD CNI_CONTAINERID=$pod CNI_NETNS=/run/netns/$pod CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
            /opt/cni/bin/flannel </run/cni.conf
        done'";
    machine
        .ssh
        .feed(
            script,
            plugin.to_string().as_bytes(),
            crate::ssh::COMMAND_DEADLINE,
        )
        .await
        .map(drop)
}

async fn addresses_are_free(cluster: &mut Cluster) -> Result<()> {
    let machine = alone(cluster)?;
    let left = machine
        .ssh
        .run("sudo find /var/lib/cni -type f 2>/dev/null || true")
        .await?;
    ensure!(
        left.is_empty(),
        "addresses of containers that are gone are taken: {left}"
    );
    // A /29 has five for containers: three more would not fit beside those of the former boot.
    add_containers(machine).await
}

/// The disk grows under the running machine, as in a cloud, and the reset comes before anything hears of it.
async fn reset(cluster: &mut Cluster, progress: &Progress) -> Result<()> {
    let machine = alone(cluster)?;
    let former = machine.ssh.run(BOOT_ID).await?;
    // journald writes to the disk after minutes, or when it is asked; the reset comes sooner.
    machine
        .ssh
        .run(&format!("logger '{LAST_WORDS}' && sudo journalctl --sync"))
        .await?;
    wait::until("the last words", Duration::from_secs(30), || async {
        machine
            .ssh
            .run(&format!(
                "journalctl -b -q -o cat | grep -qx '{LAST_WORDS}'"
            ))
            .await
    })
    .await?;
    let bytes = machine
        .ssh
        .run("lsblk -b -d -n -o SIZE /dev/vda")
        .await?
        .trim()
        .parse::<u64>()
        .context("the disk's size")?;
    qmp::execute_with(
        &machine.spec.qmp,
        "block_resize",
        &json!({"device": "disk", "size": bytes + GROWTH_BYTES}),
    )
    .await?;
    machine.reset().await?;
    machine.wait_for_ssh(progress).await?;
    machine.settle(progress).await?;
    former_boot(machine, &former).await?;
    machine
        .ssh
        .run(&format!(
            "journalctl -b -1 -q -o cat | grep -qx '{LAST_WORDS}'"
        ))
        .await
        .context("the journal of the boot that was reset has lost its last words")?;
    root_fills_disk(cluster).await
}

/// Docker's networks as a power cut left them while Docker started: a bridge without a network.
const TORN_NETWORKS: &[u8] =
    include_bytes!("../../../../agent/src/appliance/docker_networks/power-cut.db.gz");

/// Half of the root's superblock is lost, the SSH host key is empty, and Docker's store of networks is between two states,
/// as power cuts leave them.
async fn torn(cluster: &mut Cluster, host: &Host, progress: &Progress) -> Result<()> {
    const KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
    const SECTOR: u64 = 512;
    let machine = alone(cluster)?;
    let start = "cat /sys/class/block/$(basename \"$(findmnt -n -o SOURCE /)\")/start";
    let start = machine.ssh.run(start).await?;
    let start: u64 = start.trim().parse().context("the start of the root")?;
    let truncate = format!("sudo truncate --size=0 {KEY} {KEY}.pub && sudo sync");
    machine.ssh.run(&truncate).await?;
    let store = "set -e; sudo systemctl stop docker.socket docker.service; gzip -d | \
                 sudo tee /var/lib/docker/network/files/local-kv.db >/dev/null; sudo sync";
    machine
        .ssh
        .feed(store, TORN_NETWORKS, Duration::from_secs(120))
        .await
        .context("failed to tear Docker's store")?;
    ensure!(
        machine.power_down().await,
        "the power button does not end the machine"
    );
    // The superblock has the sectors 2 and 3 of the file system.
    disk::zero(&machine.spec.disk, (start + 3) * SECTOR, SECTOR).await?;
    machine.power_on(host.accelerator)?;
    machine.wait_for_ssh(progress).await?;
    let state = machine.settle(progress).await?;
    ensure!(
        state == "running",
        "the boot with a torn superblock is {state:?}"
    );
    machine
        .ssh
        .run("journalctl -b -q -o cat -u selvage-first-boot | grep -q 'the root file system on .* is repaired'")
        .await
        .context("nothing says that the root was repaired")?;
    machine
        .ssh
        .run("journalctl -b -q -o cat -u docker | grep -q 'a bridge without a network, 847e9894.*: removed'")
        .await
        .context("nothing says that Docker's store was mended")?;
    machine
        .ssh
        .run(&format!(
            "[ \"$(sudo ssh-keygen -y -f {KEY} | cut -d' ' -f1,2)\" = \"$(cut -d' ' -f1,2 {KEY}.pub)\" ]"
        ))
        .await
        .context("the host key is not whole")?;
    // The kernel may say that the superblock is damaged.
    machine.console.check().map(drop)
}

async fn panic(cluster: &mut Cluster, progress: &Progress) -> Result<()> {
    let machine = alone(cluster)?;
    let former = machine.ssh.run(BOOT_ID).await?;
    let from = machine.console.len();
    // No answer comes to this.
    let trigger = "sudo sh -c 'echo c >/proc/sysrq-trigger'";
    let _ = tokio::time::timeout(Duration::from_secs(5), machine.ssh.run(trigger)).await;
    let console = machine.console.path().to_owned();
    let said = || crate::console::Console::new(console.clone()).text_from(from);
    wait::until("a panic", Duration::from_secs(30), || async {
        ensure!(said().contains("Kernel panic"), "the console has none");
        Ok(())
    })
    .await?;
    let panicked = Instant::now();
    // The rules must know a panic when they see it; having seen it, the console is as it should be.
    let hits = machine.console.check()?;
    ensure!(
        hits.iter().any(|hit| hit.meaning == "kernel panic"),
        "no console rule finds the panic: {hits:?}"
    );
    let silent = said().len();
    wait::until("the next kernel", RESTART_DEADLINE, || async {
        ensure!(
            said().len() > silent,
            "silence since the panic {} s ago",
            panicked.elapsed().as_secs()
        );
        Ok(())
    })
    .await?;
    machine.wait_for_ssh(progress).await?;
    let now = machine.ssh.run(BOOT_ID).await?;
    ensure!(now != former, "this is still the boot that panicked");
    Ok(())
}
