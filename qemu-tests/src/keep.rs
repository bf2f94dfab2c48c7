//! A cluster that outlives the command: `demo --keep`, then `ssh` and `stop`.
//!
//! The switch and the machines belong to a background process (this program again, as `hold DIR`), which ends when it is
//! told to (SIGTERM) or when no machine is left. What others need to know stands in `DIR/cluster.json`.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    accel::Accelerator,
    cluster::{self, Cluster, Node, Options},
    host::Host,
    machine::{self, Machine},
    qemu::Spec,
    ssh::{Ssh, USER},
    wait,
};

/// What the holder is to start.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    accelerator: Accelerator,
    sockets: PathBuf,
    machines: Vec<(Spec, Ssh)>,
}

/// What the holder has started.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    holder: i32,
    machines: Vec<(Spec, Ssh, u32)>,
}

/// Where the one kept cluster lives.
pub(crate) fn dir(target: &Path) -> PathBuf {
    target.join("demo")
}

fn order_file(dir: &Path) -> PathBuf {
    dir.join("order.json")
}

fn kept_file(dir: &Path) -> PathBuf {
    dir.join("cluster.json")
}

/// The kept cluster, if its holder still runs.
fn find(dir: &Path) -> Result<Option<Kept>> {
    let path = kept_file(dir);
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(None);
    };
    let kept: Kept = serde_json::from_str(&text)
        .with_context(|| format!("failed to read {}", path.display()))?;
    // A number is used again one day: it counts only when that process holds this directory.
    let command_line = fs::read(format!("/proc/{}/cmdline", kept.holder)).unwrap_or_default();
    let mut words = command_line.split(|&byte| byte == 0);
    Ok(words.any(|word| word == b"hold").then_some(kept))
}

fn need(dir: &Path) -> Result<Kept> {
    find(dir)?.context("no cluster is kept; start one with `make demo KEEP=1`")
}

/// Refuses to go on over a running cluster.
///
/// # Errors
/// When one is kept.
pub(crate) fn ensure_none(dir: &Path) -> Result<()> {
    ensure!(
        find(dir)?.is_none(),
        "a cluster is still running; stop it with `make stop`"
    );
    Ok(())
}

/// The background process, stopped when this is dropped unless [`Self::release`]d.
#[derive(Debug)]
pub(crate) struct Holder {
    process: Option<i32>,
}

impl Holder {
    /// Starts `nodes` in a process of their own.
    ///
    /// # Errors
    /// When the machines cannot be started; the holder's own words are in the message.
    pub(crate) async fn start(
        host: &Host,
        dir: &Path,
        nodes: Vec<Node>,
        options: Options,
    ) -> Result<(Cluster, Self)> {
        let machines = cluster::prepare(host, dir, &nodes, options).await?;
        let sockets = host.sockets.path().to_owned();
        let order = Order {
            accelerator: host.accelerator,
            sockets,
            machines,
        };
        write_json(&order_file(dir), &order)?;
        let log = dir.join("hold.log");
        let file = fs::File::create(&log)
            .with_context(|| format!("failed to create {}", log.display()))?;
        let mut process = std::process::Command::new(
            std::env::current_exe().context("failed to find this program")?,
        )
        .arg("hold")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        // A process group of its own: the terminal's ctrl-C is for the demo, not for the cluster.
        .process_group(0)
        .spawn()
        .context("failed to start the process that holds the cluster")?;
        let holder = Self {
            process: Some(i32::try_from(process.id()).context("process id")?),
        };
        let kept = wait::until("the machines' processes", Duration::from_secs(20), || {
            let state = match process.try_wait() {
                Ok(Some(status)) => Some(status),
                _ => None,
            };
            let found = find(dir);
            async move {
                ensure!(state.is_none(), "the holder ended");
                found?.context("not yet")
            }
        })
        .await
        .with_context(|| {
            fs::read_to_string(&log)
                .unwrap_or_default()
                .trim()
                .to_owned()
        })?;
        let machines = kept
            .machines
            .into_iter()
            .map(|(spec, ssh, process)| Machine::kept(spec, ssh, process));
        Ok((
            Cluster {
                machines: machines.collect(),
                nodes,
                switch: None,
            },
            holder,
        ))
    }

    /// Lets the cluster live on.
    pub(crate) fn release(mut self) {
        self.process = None;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(process) = self.process {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(process), Signal::SIGTERM);
        }
    }
}

/// The background process itself: starts what [`Order`] says and stays.
///
/// # Errors
/// When the order cannot be read or carried out.
pub(crate) async fn hold(dir: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
    let path = order_file(dir);
    let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let order: Order = serde_json::from_slice(&text)
        .with_context(|| format!("failed to read {}", path.display()))?;
    let result = async {
        let _switch = cluster::start_switch(order.machines.iter().map(|(spec, _)| spec))?;
        let mut machines = Vec::new();
        let mut children = Vec::new();
        for (spec, ssh) in order.machines {
            let qemu = machine::start_qemu(&spec, order.accelerator)?;
            machines.push((spec, ssh, qemu.id()));
            children.push(qemu);
        }
        let holder = i32::try_from(std::process::id()).context("process id")?;
        write_json(&kept_file(dir), &Kept { holder, machines })?;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                // The terminal that the demo was started from was closed.
                _ = hangup.recv() => {}
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
            children.retain_mut(|child| matches!(child.exited(), Ok(None)));
            if children.is_empty() {
                return Ok(());
            }
        }
    }
    .await;
    let _ = fs::remove_file(kept_file(dir));
    let _ = fs::remove_dir_all(order.sockets);
    result
}

/// Logs in to a node, or runs a command there; on success this process becomes ssh.
///
/// # Errors
/// When there is no cluster or no such node.
pub(crate) fn log_in(dir: &Path, node: &str, command: &[String]) -> Result<()> {
    let kept = need(dir)?;
    let by_number = node
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_sub(1));
    let found = kept
        .machines
        .iter()
        .enumerate()
        .find(|(index, (spec, ..))| spec.name == node || by_number == Some(*index));
    let Some((_, (_, ssh, _))) = found else {
        let names: Vec<_> = kept
            .machines
            .iter()
            .map(|(spec, ..)| spec.name.as_str())
            .collect();
        bail!("no node {node:?}; there are {}", names.join(", "));
    };
    let mut client = std::process::Command::new("ssh");
    client
        .args(ssh.arguments())
        .arg(format!("{USER}@127.0.0.1"))
        .args(command);
    Err(client.exec()).context("failed to run ssh (package openssh-client)")
}

/// Stops the kept cluster and waits until it is gone.
///
/// # Errors
/// When there is none, or it does not go.
pub(crate) async fn stop(dir: &Path) -> Result<()> {
    let kept = need(dir)?;
    kill(Pid::from_raw(kept.holder), Signal::SIGTERM).context("failed to signal the holder")?;
    wait::until(
        "the end of the cluster",
        Duration::from_secs(30),
        || async {
            ensure!(find(dir)?.is_none(), "process {} still runs", kept.holder);
            Ok(())
        },
    )
    .await?;
    println!(
        "stopped {}",
        kept.machines
            .iter()
            .map(|(spec, ..)| spec.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).context("failed to write JSON")?;
    // Whole or not at all: another process may be reading.
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_no_cluster() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ensure_none(dir.path()).is_ok());
        write_json(
            &kept_file(dir.path()),
            &Kept {
                holder: i32::MAX,
                machines: Vec::new(),
            },
        )
        .unwrap();
        assert!(ensure_none(dir.path()).is_ok());
        let error = log_in(dir.path(), "1", &[]).unwrap_err().to_string();
        assert!(error.contains("make demo KEEP=1"), "{error}");
    }

    #[tokio::test]
    async fn a_holder_without_machines_ends_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = dir.path().join("sockets");
        fs::create_dir(&sockets).unwrap();
        let order = Order {
            accelerator: Accelerator::Tcg,
            sockets: sockets.clone(),
            machines: Vec::new(),
        };
        write_json(&order_file(dir.path()), &order).unwrap();
        hold(dir.path()).await.unwrap();
        assert!(!sockets.exists() && !kept_file(dir.path()).exists());
    }
}
