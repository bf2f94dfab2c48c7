//! How long the image takes to Docker, beside Debian as its packages make it: the same packages in the same versions,
//! with Debian's own initrd and units, which `image/anchor` builds. The machines of a pair boot one after the other,
//! each with the host to itself; neither has the agent.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    boot,
    pairs::{self, Pair, Pairs},
    seconds,
};
use crate::{
    cli::Common,
    cluster::{self, Cluster, Options},
    description, disk,
    host::Host,
    progress::Progress,
    qemu::{Boot, Spec},
    ssh,
    timeline::Timeline,
};

/// What the image is to take of Debian's time: for the first boot, which Ignition provisions, and for later ones.
const TARGETS: [f64; 2] = [0.5, 0.4];

/// What `image/anchor` has built.
struct Anchor {
    disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Anchor {
    /// In the directory `dir`.
    fn find(dir: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = dir.join(format!("anchor.{name}"));
            ensure!(
                path.is_file(),
                "no {}; build it with `image/anchor`",
                path.display()
            );
            Ok(std::fs::canonicalize(path)?)
        };
        Ok(Self {
            disk: file("raw")?,
            kernel: file("vmlinuz")?,
            initrd: file("initrd")?,
        })
    }

    /// Has a machine that was prepared for the image boot this instead.
    async fn take_over(&self, spec: &mut Spec, public_key: &str) -> Result<()> {
        disk::create(Some(&self.disk), &spec.disk).await?;
        spec.boot = Boot::Direct {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            append: format!(
                "root=/dev/vda rw quiet {}",
                spec.architecture.kernel_arguments()
            ),
        };
        spec.ignition = None;
        spec.smbios.push(key_credential(public_key));
        Ok(())
    }
}

/// What has systemd let the harness in, as for QEMU's `-smbios`: tmpfiles.d(5), systemd-tmpfiles(8) "Credentials".
fn key_credential(public_key: &str) -> String {
    let user = ssh::USER;
    let key = STANDARD.encode(format!("{public_key}\n"));
    let line = format!("f~ /home/{user}/.ssh/authorized_keys 0600 {user} {user} - {key}\n");
    format!(
        "type=11,value=io.systemd.credential.binary:tmpfiles.extra={}",
        STANDARD.encode(line)
    )
}

/// Boots `count` pairs twice each, prints their times beside the targets, and gives them.
///
/// # Errors
/// When a machine does not come up.
pub(super) async fn run(
    host: &Host,
    common: &Common,
    count: u8,
    progress: &Progress,
) -> Result<(Pairs, Value)> {
    let anchor = Anchor::find(&common.target.join("anchor"))?;
    let dir = common.target.join("bench");
    let mut pairs = Pairs::default();
    let mut all = Vec::new();
    for number in 1..=count {
        // What the host does beside this changes: neither has the better half of it.
        let order = if number % 2 == 0 {
            [true, false]
        } else {
            [false, true]
        };
        let mut times = [[Timeline::default(); 2]; 2];
        for is_anchor in order {
            let name = if is_anchor { "anchor" } else { "image" };
            progress.step(format!("pair {number} of {count}: {name}"));
            let anchor = is_anchor.then_some(&anchor);
            let mut cluster = start(host, common, &dir.join(name), anchor).await?;
            times[usize::from(is_anchor)] = two_boots(&mut cluster, progress).await?;
            cluster.discard();
        }
        let [ours, other] = times;
        for (at, pairs) in pairs.iter_mut().enumerate() {
            pairs.push(Pair::of([ours[at], other[at]])?);
        }
        let named = |[first, second]: [Timeline; 2]| {
            seconds(&[("first boot", first), ("second boot", second)])
        };
        all.push(json!({ "image": named(ours), "anchor": named(other) }));
    }
    progress.line(&pairs::table(["image", "Debian"], &pairs));
    progress.line(&verdict(&pairs));
    Ok((pairs, Value::Array(all)))
}

/// The medians of the ratios beside what they are to be.
fn verdict(pairs: &Pairs) -> String {
    let names = ["first boot", "later boots"].iter();
    let lines: Vec<_> = names
        .zip(pairs)
        .zip(TARGETS)
        .map(|((name, pairs), target)| {
            let ratio = pairs::ratio(pairs);
            let word = if ratio <= target { "met" } else { "missed" };
            format!("  {name}: {ratio:.2} of Debian's time, target {target}: {word}")
        })
        .collect();
    lines.join("\n")
}

async fn start(
    host: &Host,
    common: &Common,
    dir: &Path,
    anchor: Option<&Anchor>,
) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.ignition = json!({
            "ignition": {"version": "3.3.0"},
            "passwd": {"users": [{"name": ssh::USER, "sshAuthorizedKeys": [host.public_key]}]},
        })
        .to_string();
    }
    let options = Options {
        alone: true,
        ..Options::default()
    };
    let mut prepared = cluster::prepare(host, dir, &nodes, options).await?;
    if let Some(anchor) = anchor {
        for (spec, _) in &mut prepared {
            anchor.take_over(spec, &host.public_key).await?;
        }
    }
    Cluster::start_prepared(host, nodes, prepared)
}

async fn two_boots(cluster: &mut Cluster, progress: &Progress) -> Result<[Timeline; 2]> {
    let first = boot(cluster, progress).await?;
    for machine in &mut cluster.machines {
        machine.reboot().await?;
    }
    let second = boot(cluster, progress).await?;
    Ok([first, second])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_builds_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("anchor.raw"), "").unwrap();
        let error = Anchor::find(dir.path()).err().unwrap().to_string();
        assert!(
            error.contains("anchor.vmlinuz; build it with `image/anchor`"),
            "{error}"
        );
    }

    #[test]
    fn the_key_is_a_line_of_tmpfiles() {
        let credential = key_credential("ssh-ed25519 AAAA harness");
        let (_, value) = credential.split_once("tmpfiles.extra=").unwrap();
        let line = String::from_utf8(STANDARD.decode(value).unwrap()).unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            fields[..6],
            [
                "f~",
                "/home/core/.ssh/authorized_keys",
                "0600",
                "core",
                "core",
                "-"
            ]
        );
        let key = STANDARD.decode(fields[6]).unwrap();
        assert_eq!(key, b"ssh-ed25519 AAAA harness\n");
        // QEMU would end the value there.
        assert!(!value.contains(','), "{value}");
    }

    #[test]
    fn each_target_is_met_or_missed() {
        let pair = |ours| vec![Pair { ours, other: 100.0 }];
        let text = verdict(&[pair(50.0), pair(41.0)]);
        assert_eq!(
            text,
            "  first boot: 0.50 of Debian's time, target 0.5: met\n  \
             later boots: 0.41 of Debian's time, target 0.4: missed"
        );
    }
}
