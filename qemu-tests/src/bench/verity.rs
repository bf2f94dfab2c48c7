//! What it costs a boot that all of `/usr` is verified: pairs of machines that boot side by side, so that both have the same
//! load beside them. One boots as the image is, the other mounts the same `/usr` without dm-verity.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    boot,
    pairs::{self, Pair, Pairs},
    seconds,
};
use crate::{
    built::Built,
    cli::Common,
    cluster::{self, Cluster, Options},
    description,
    host::Host,
    progress::Progress,
    qemu::Boot,
    timeline::Timeline,
};

/// Boots `count` pairs twice each, prints their times, and gives them.
///
/// # Errors
/// When a machine does not come up.
pub(super) async fn run(
    host: &Host,
    common: &Common,
    count: u8,
    progress: &Progress,
) -> Result<Value> {
    let mut pairs = Pairs::default();
    let mut all = Vec::new();
    for number in 1..=count {
        progress.step(format!(
            "pair {number} of {count}: with dm-verity, and without"
        ));
        // Whoever starts first has the host to itself for a moment.
        let swapped = number % 2 == 0;
        let boots = pair(host, common, swapped, progress).await?;
        for ((_, timelines), pairs) in boots.iter().zip(&mut pairs) {
            pairs.push(Pair::of(*timelines)?);
        }
        let [verified, plain] = [0, 1].map(|at| boots.map(|(name, times)| (name, times[at])));
        all.push(json!({ "verified": seconds(&verified), "plain": seconds(&plain) }));
    }
    progress.line(&pairs::table(["with dm-verity", "without"], &pairs));
    Ok(Value::Array(all))
}

/// Two machines by themselves, the verified one first; each boots two times.
async fn pair(
    host: &Host,
    common: &Common,
    swapped: bool,
    progress: &Progress,
) -> Result<[(&'static str, [Timeline; 2]); 2]> {
    let dir = common.target.join("bench");
    let mut clusters = Vec::new();
    for verified in [!swapped, swapped] {
        let name = if verified { "verified" } else { "plain" };
        clusters.push((
            verified,
            start(host, common, &dir.join(name), verified).await?,
        ));
    }
    clusters.sort_by_key(|(verified, _)| !verified);
    let [(_, mut verified), (_, mut plain)] =
        <[_; 2]>::try_from(clusters).ok().context("not a pair")?;
    let mut boots = [("first boot", [Timeline::default(); 2]); 2];
    boots[1].0 = "second boot";
    for (at, (_, times)) in boots.iter_mut().enumerate() {
        if at > 0 {
            for cluster in [&mut verified, &mut plain] {
                cluster.machines[0].reboot().await?;
            }
        }
        let (one, other) =
            tokio::try_join!(boot(&mut verified, progress), boot(&mut plain, progress))?;
        *times = [one, other];
    }
    is_verified(&verified, true).await?;
    is_verified(&plain, false).await?;
    verified.discard();
    plain.discard();
    Ok(boots)
}

async fn start(host: &Host, common: &Common, dir: &Path, verified: bool) -> Result<Cluster> {
    let nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    let mut prepared = cluster::prepare(host, dir, &nodes, Options::default()).await?;
    let label = format!("selvage_{}", Built::of(&common.image)?.version);
    for (spec, _) in &mut prepared {
        // As each of them would have for itself.
        spec.cpus = 1;
        if let (Boot::Direct { append, .. }, false) = (&mut spec.boot, verified) {
            *append = without_verity(append, &label)?;
        }
    }
    Cluster::start_prepared(host, nodes, prepared)
}

/// The kernel command line of a machine that mounts `/usr` right from the partition with this label.
fn without_verity(append: &str, label: &str) -> Result<String> {
    let device = format!("mount.usr=PARTLABEL={label}");
    let words: Vec<&str> = append
        .split_whitespace()
        .filter(|word| !word.starts_with("usrhash="))
        .map(|word| match word {
            "mount.usr=/dev/mapper/usr" => &device,
            word => word,
        })
        .collect();
    ensure!(
        words.len() < append.split_whitespace().count() && words.contains(&&*device),
        "the image's command line mounts no verified /usr: {append}"
    );
    Ok(words.join(" "))
}

async fn is_verified(cluster: &Cluster, expected: bool) -> Result<()> {
    let machine = &cluster.machines[0];
    let source = machine.ssh.run("findmnt -no SOURCE /usr").await?;
    let verified = source.trim() == "/dev/mapper/usr";
    ensure!(
        verified == expected,
        "{}: /usr is mounted from {source}",
        machine.spec.disk.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usr_is_mounted_from_its_partition_instead() {
        let line = "usrhash=12 root=PARTLABEL=x mount.usr=/dev/mapper/usr quiet";
        assert_eq!(
            without_verity(line, "selvage_1").unwrap(),
            "root=PARTLABEL=x mount.usr=PARTLABEL=selvage_1 quiet"
        );
        for line in ["usrhash=12 quiet", "mount.usr=/dev/mapper/usr quiet"] {
            without_verity(line, "selvage_1").unwrap_err();
        }
    }
}
