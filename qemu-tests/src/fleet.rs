//! Three machines that update themselves in turn: what they find around them, and how they are watched.
//!
//! etcd and the release server are on this host, so that they are there whichever machine is down. The machines' own timers
//! do all else, in a shorter time than usual.

pub(crate) mod flood;
pub(crate) mod history;
pub(crate) mod releases;
pub(crate) mod rollout;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use self::{
    flood::Flood,
    history::Change,
    releases::Releases,
    rollout::{Boot, Rollout},
};
use crate::{
    built::Built,
    cli::Common,
    cluster::{self, Cluster, Options},
    container, description,
    etcd::{Etcd, Follower},
    host::Host,
    machine::Machine,
    progress::{Progress, clip},
    relay, serve, wait,
};

/// How many machines.
const MACHINES: usize = 3;
/// A fleet whose consoles are silent and that changes nothing in etcd for so long is dead. The boot check alone waits for two
/// minutes before it gives a version up, on a busy host with two boots beside it.
const STALL: Duration = Duration::from_secs(900);
/// For a container and the first answers of its pings.
const FLOOD_DEADLINE: Duration = Duration::from_secs(120);

/// The usual ten minutes would make most of a test.
const TIMER: &str = "\
[Timer]
OnBootSec=
OnUnitInactiveSec=
RandomizedDelaySec=0
AccuracySec=1
OnBootSec=20
OnUnitInactiveSec=20
";

/// The machines and what they share.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The machines.
    pub cluster: Cluster,
    /// Their lease store and their lock.
    pub etcd: Etcd,
    /// Where their updates are.
    pub releases: Releases,
    /// The version that they are installed with.
    pub installed: String,
    follower: Follower,
    boots: Vec<Boot>,
    /// Bytes of each console that were looked through for boots.
    seen: Vec<u64>,
}

impl Fleet {
    /// Starts machines with the image; the release server has an index without a release.
    ///
    /// # Errors
    /// When `make image-next` was not run, or anything cannot be started.
    pub(crate) async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Self> {
        let installed = Built::of(&common.image)?.version;
        let site = dir.with_extension("site");
        let etcd = Etcd::start(&site).await?;
        let releases = Releases::create(&site, &common.target.join("image-next")).await?;
        let nodes = nodes(
            &common.cluster,
            &host.public_key,
            etcd.guests_url(),
            &releases.key.public,
        )?;
        let options = Options {
            firmware: true,
            ..Options::default()
        };
        let mut prepared = cluster::prepare(host, dir, &nodes, options).await?;
        for (spec, _) in &mut prepared {
            spec.served = Some(serve::command(&releases.dir, None)?);
            spec.relays = vec![relay::option(etcd.port)?];
        }
        let follower = etcd.follow()?;
        let cluster = Cluster::start_prepared(host, nodes, prepared)?;
        Ok(Self {
            seen: vec![0; cluster.machines.len()],
            cluster,
            etcd,
            releases,
            installed,
            follower,
            boots: Vec::new(),
        })
    }

    /// The version that they update to.
    pub(crate) fn next(&self) -> &str {
        &self.releases.built.version
    }

    /// The machines' names.
    pub(crate) fn names(&self) -> Vec<String> {
        let machines = self.cluster.machines.iter();
        machines.map(|machine| machine.name().to_owned()).collect()
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn machine(&mut self, name: &str) -> Result<&mut Machine> {
        let mut machines = self.cluster.machines.iter_mut();
        machines
            .find(|machine| machine.name() == name)
            .with_context(|| format!("no machine {name}"))
    }

    /// What has changed in etcd so far.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.follower.changes()
    }

    /// Waits until all machines have told the fleet of themselves; then all of them look for updates.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub(crate) async fn wait_for_all(&mut self, progress: &Progress) -> Result<()> {
        let names = self.names();
        self.watch(progress, "all machines tell the fleet", |changes| {
            let told = |name: &String| !history::told(changes, name).is_empty();
            names.iter().all(told).then_some(())
        })
        .await
    }

    /// Waits for something that shows in etcd, as long as any machine gets on.
    ///
    /// # Errors
    /// When a machine ends, or nothing moves any more.
    pub(crate) async fn watch<T>(
        &mut self,
        progress: &Progress,
        what: &str,
        mut probe: impl FnMut(&[Change]) -> Option<T>,
    ) -> Result<T> {
        let mut moved = (Instant::now(), 0);
        loop {
            let changes = self.changes();
            self.look(progress, &changes)?;
            if let Some(found) = probe(&changes) {
                return Ok(found);
            }
            let seen = changes.len() as u64 + self.seen.iter().sum::<u64>();
            if seen != moved.1 {
                moved = (Instant::now(), seen);
            }
            ensure!(
                moved.0.elapsed() < STALL,
                "{what}: not yet, and nothing has moved for {} s",
                STALL.as_secs()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Notes boots by what the consoles say, and shows what each machine does.
    fn look(&mut self, progress: &Progress, changes: &[Change]) -> Result<()> {
        for (machine, seen) in self.cluster.machines.iter_mut().zip(&mut self.seen) {
            ensure!(machine.is_running(), "{}: QEMU ended", machine.name());
            let text = machine.console.text_from(*seen);
            *seen = machine.console.len();
            if rollout::begins_boot(&text) {
                self.boots.push(Boot {
                    node: machine.name().to_owned(),
                    at: history::now(),
                });
            }
            let told = history::told(changes, machine.name());
            let said = text.lines().rfind(|line| !line.trim().is_empty());
            let state = match told.last() {
                None => clip(said.unwrap_or("boots"), 60),
                Some(told) => format!("{} on {}", told.node.state, told.node.version),
            };
            let lock = history::holder(changes, machine.name());
            let lock = lock.map_or("", |_| ", has the lock");
            progress.tell(machine.name(), &format!("{state}{lock}"));
        }
        Ok(())
    }

    /// Has machines ask for the index now.
    ///
    /// # Errors
    /// When one finds no release there.
    pub(crate) async fn check(&self, names: &[&str]) -> Result<()> {
        let machines = self.cluster.machines.iter();
        let asked = machines.filter(|machine| names.contains(&machine.name()));
        try_join_all(asked.map(|machine| async move {
            // 2: something newer is there.
            let script = "sudo selvage update check; [ $? = 2 ]";
            let said = machine.ssh.run(script).await;
            said.with_context(|| format!("{}: selvage update check", machine.name()))
        }))
        .await
        .map(drop)
    }

    /// Starts a container on each machine, and the pings to the next one; ends when there are answers.
    ///
    /// # Errors
    /// When a container cannot be started, or one does not answer.
    pub(crate) async fn start_floods(&self, archive: &[u8]) -> Result<()> {
        let machines = &self.cluster.machines;
        let addresses = try_join_all(machines.iter().map(|machine| async {
            container::load(machine, archive).await?;
            container::start_web(machine, flood::CONTAINER, None, 80).await?;
            // Whoever reboots finds it again.
            let again = format!("docker update --restart always {}", flood::CONTAINER);
            machine.ssh.run(&again).await?;
            container::address(machine, flood::CONTAINER).await
        }))
        .await?;
        let next = addresses.iter().cycle().skip(1);
        try_join_all(
            machines
                .iter()
                .zip(next)
                .map(|(machine, address)| async move {
                    let put = format!("echo {address} | sudo tee {}", flood::TARGET);
                    machine.ssh.run(&put).await?;
                    let what = format!("{}: answers of {address}", machine.name());
                    wait::until(&what, FLOOD_DEADLINE, || async {
                        let answers = format!("sudo grep -c 'bytes from' {}", flood::LOG);
                        machine.ssh.run(&answers).await.map(drop)
                    })
                    .await
                }),
        )
        .await
        .map(drop)
    }

    /// Logs in to all machines anew, and fetches what became of the pings up to a time.
    ///
    /// # Errors
    /// When a machine does not answer, or its clock is further away than what is allowed for.
    async fn floods(&mut self, progress: &Progress, until: f64) -> Result<Vec<Flood>> {
        self.cluster.wait_for_ssh(progress).await?;
        let names = self.names();
        let machines = self.cluster.machines.iter().enumerate();
        try_join_all(machines.map(|(index, machine)| {
            let to = names[(index + 1) % names.len()].clone();
            async move {
                let before = history::now();
                let clock: f64 = machine.ssh.run("date +%s.%N").await?.parse()?;
                let apart = clock - (before + history::now()) / 2.0;
                ensure!(
                    apart.abs() < flood::MARGIN,
                    "{}: the clock is {apart:.1} s off, so that losses have no time",
                    machine.name()
                );
                let text = machine.ssh.run(&format!("sudo cat {}", flood::LOG)).await?;
                let from = machine.name().to_owned();
                let mut echoes = flood::parse(&text);
                // Answers to later ones may be under way.
                echoes.retain(|echo| echo.at <= until);
                Ok(Flood { from, to, echoes })
            }
        }))
        .await
    }

    /// Waits until all machines run the next version, and have given the lock back; gives what happened since `from`.
    ///
    /// # Errors
    /// As [`Self::watch`], and when the history or the pings cannot be read.
    pub(crate) async fn follow_turns(&mut self, progress: &Progress, from: f64) -> Result<Rollout> {
        let (names, next) = (self.names(), self.next().to_owned());
        self.watch(progress, "all machines are updated", |changes| {
            rollout::is_done(changes, &names, &next).then_some(())
        })
        .await?;
        let until = history::now();
        tokio::time::sleep(flood::LATE).await;
        let floods = self.floods(progress, until).await?;
        let history = self.etcd.history().await?;
        Ok(Rollout {
            from,
            until,
            installed: self.installed.clone(),
            next,
            nodes: names,
            most_holders: history::most_holders(&history),
            changes: self.changes(),
            boots: self.boots.clone(),
            floods,
        })
    }
}

/// Three nodes as the description has them, but with etcd at `endpoint`, that take the releases that `release_key` signs.
fn nodes(
    description: &Path,
    ssh_key: &str,
    endpoint: String,
    release_key: &str,
) -> Result<Vec<cluster::Node>> {
    let update = toml::Table::from_iter([
        (
            "server".to_owned(),
            format!("http://{}", serve::ADDRESS).into(),
        ),
        ("auto".to_owned(), "apply".into()),
    ]);
    let mut nodes = description::altered(description, MACHINES, ssh_key, |cluster| {
        cluster.etcd.members.clear();
        cluster.etcd.endpoints = vec![endpoint];
        cluster.agent.insert("update".to_owned(), update.into());
    })?;
    let timer: Value = json!({
        "name": "selvage-update.timer",
        "dropins": [{"name": "50-sooner.conf", "contents": TIMER}],
    });
    let unit = json!({"name": "flood.service", "enabled": true, "contents": flood::UNIT});
    for node in &mut nodes {
        let files = [
            ("/etc/selvage/update-keys.d/harness.pem", 0o644, release_key),
            (flood::PROGRAM, 0o755, flood::SCRIPT),
        ];
        description::add(node, &files, [timer.clone(), unit.clone()])?;
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_are_ones_that_the_image_takes() {
        let description = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ignition/demo.toml");
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f x";
        let nodes = nodes(&description, key, "http://10.0.2.4:1".into(), "PEM").unwrap();
        assert_eq!(nodes.len(), MACHINES);
        for node in nodes {
            let report = selvage::appliance::ignition::check(&node.ignition);
            assert_eq!(report.errors(), 0, "{}: {report:?}", node.ignition);
            for words in ["http://10.0.2.4", "update-keys.d", "OnUnitInactiveSec=20"] {
                assert!(node.ignition.contains(words), "{}", node.ignition);
            }
        }
    }
}
