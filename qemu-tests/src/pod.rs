//! Containers that containerd runs with a network by CNI, beside Docker's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{machine::Machine, netns::Netns, wait};

/// Name of the one container that a machine has.
const POD: &str = "pod";
/// Its root file system; containerd's image store is not Docker's.
const ROOT: &str = "/var/lib/pod";

/// Unpacks the archive that [`crate::container::build`] made, and installs `ctr`, which the image has not.
///
/// # Errors
/// When tar or install fails in the guest.
pub(crate) async fn load(machine: &Machine, archive: &[u8], ctr: &[u8]) -> Result<()> {
    let unpack = format!("sudo mkdir -p {ROOT} && sudo tar -x -C {ROOT}");
    let install = "sudo install -D -m 755 /dev/stdin /usr/local/bin/ctr";
    for (script, input) in [(unpack.as_str(), archive), (install, ctr)] {
        machine
            .ssh
            .feed(script, input, Duration::from_secs(240))
            .await?;
    }
    Ok(())
}

/// Starts the web server in a container on the network that the image's CNI configuration describes.
///
/// # Errors
/// When containerd or a CNI plugin refuses; the message has their words.
pub(crate) async fn start(machine: &Machine) -> Result<Netns<'_>> {
    // Stays until the container ends, and then has the plugins undo what they did.
    let unit = format!("sudo systemd-run --quiet --collect --unit={POD} -p SuccessExitStatus=137");
    let run = format!("ctr run --rm --null-io --cni --rootfs {ROOT} {POD}");
    machine
        .ssh
        .run(&format!("{unit} {run} /bin/httpd -f -p 80 -h /www"))
        .await?;
    let started = wait::until("a container by CNI", Duration::from_secs(90), || async {
        let list = machine.ssh.run("sudo ctr task list").await?;
        let process = running(&list).with_context(|| list.clone())?;
        let netns = Netns::of(machine, process).await?;
        let interface = netns.interface;
        ensure!(
            interface.v4.is_some() || interface.v6.is_some(),
            "no address: {interface:?}"
        );
        Ok(netns)
    })
    .await;
    if started.is_err() {
        let journal = format!("journalctl -b -u {POD} -o cat --no-pager | tail -n 5");
        let said = machine.ssh.run(&journal).await.unwrap_or_default();
        return started.with_context(|| format!("{}: {said}", machine.name()));
    }
    started
}

/// Process number of our container in the answer of `ctr task list`.
fn running(list: &str) -> Option<u32> {
    list.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        let (name, process, state) = (columns.next()?, columns.next()?, columns.next()?);
        (name == POD && state == "RUNNING")
            .then(|| process.parse().ok())
            .flatten()
    })
}

/// Ends the container if there is one, and fails unless its addresses are given back.
///
/// # Errors
/// When it does not end, or the plugins leave something.
pub(crate) async fn stop(machine: &Machine) -> Result<()> {
    if running(&machine.ssh.run("sudo ctr task list").await?).is_none() {
        return Ok(());
    }
    machine
        .ssh
        .run(&format!("sudo ctr task kill --signal KILL {POD}"))
        .await?;
    wait::until(
        "the end of a container by CNI",
        Duration::from_secs(60),
        || async {
            let state = machine
                .ssh
                .run(&format!("systemctl show -P ActiveState {POD}.service"))
                .await?;
            ensure!(state == "inactive", "it is {state}");
            Ok(())
        },
    )
    .await?;
    // host-local has a file for each address in use, and the flannel plugin for each container and the boot.
    let left = machine
        .ssh
        .run(
            "sudo find /var/lib/cni/networks /var/lib/cni/flannel -type f \
             ! -name 'last_reserved_ip.*' ! -name lock ! -name .boot",
        )
        .await?;
    ensure!(
        left.is_empty(),
        "{}: CNI plugins left {left}",
        machine.name()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_process_is_found() {
        let list = "TASK    PID    STATUS\nother    7    RUNNING\npod    1234    RUNNING\n";
        assert_eq!(running(list), Some(1234));
        assert_eq!(
            running(&list.replace("pod    1234    RUNNING", "pod    1234    STOPPED")),
            None
        );
        assert_eq!(running("TASK    PID    STATUS\n"), None);
    }
}
