//! The machine's side: what is typed there, and what is looked at.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::machine::Machine;

/// Where everything about updates is.
pub(super) const DIRECTORY: &str = "/var/lib/selvage/update";
/// The server, as the machine finds it.
pub(super) const SERVER: &str = "http://10.0.2.4";
/// For a command that downloads, unpacks and installs on a guest that computes slowly.
const PATIENCE: Duration = Duration::from_secs(900);

/// How `selvage update` ended.
#[derive(Debug)]
pub(super) struct Said {
    pub status: i32,
    pub text: String,
}

impl Said {
    /// Fails unless it ended with this status and said all of this.
    pub(super) fn expect(&self, status: i32, words: &[&str]) -> Result<()> {
        let Self {
            status: found,
            text,
        } = self;
        ensure!(
            *found == status,
            "exit status {found}, not {status}: {text}"
        );
        for word in words {
            ensure!(text.contains(word), "nothing of {word:?} in: {text}");
        }
        Ok(())
    }
}

/// One machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest<'a>(pub &'a Machine);

impl Guest<'_> {
    /// Runs a script by root.
    pub(super) async fn root(self, script: &str) -> Result<String> {
        let quoted = script.replace('\'', r"'\''");
        self.0
            .ssh
            .feed(&format!("sudo sh -c '{quoted}'"), &[], PATIENCE)
            .await
    }

    /// Writes a file.
    pub(super) async fn write(self, path: &str, text: &[u8]) -> Result<()> {
        let script = format!("sudo install -D -m 755 /dev/stdin {path}");
        self.0.ssh.feed(&script, text, PATIENCE).await.map(drop)
    }

    /// Runs a script by root whose status and output are of interest, whatever they are.
    pub(super) async fn try_root(self, script: &str) -> Result<Said> {
        let said = self
            .root(&format!("( {script} ) 2>&1; status=$?; echo; echo $status"))
            .await?;
        let (text, status) = said.rsplit_once('\n').context("no exit status")?;
        Ok(Said {
            status: status.parse().context("not an exit status")?,
            text: text.trim().to_owned(),
        })
    }

    /// Runs `selvage update`.
    pub(super) async fn update(self, arguments: &str) -> Result<Said> {
        self.try_root(&format!("selvage update {arguments}")).await
    }

    /// What `selvage update status` knows.
    pub(super) async fn status(self) -> Result<Value> {
        let said = self.update("status --json").await?;
        serde_json::from_str(&said.text).with_context(|| format!("no JSON: {}", said.text))
    }

    /// Sets `[update]` to the usual server and these lines; of a key that is in both, the line counts.
    pub(super) async fn configure(self, lines: &str) -> Result<()> {
        let server = match lines.contains("server =") {
            true => String::new(),
            false => format!("server = \"{SERVER}\"\n"),
        };
        let text = format!("[update]\n{server}{lines}\n");
        self.write("/etc/selvage/agent.d/50-update.toml", text.as_bytes())
            .await
    }

    /// The names of the boot entries, in no order, and of whatever else lies there.
    pub(super) async fn entries(self) -> Result<BTreeSet<String>> {
        let said = self.root("ls -A /efi/EFI/Linux").await?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// Fails unless these are the boot entries that the boot loader starts by itself, and nothing half written is
    /// beside them. One without tries (`+0-`) it takes only if there is nothing else.
    pub(super) async fn expect_entries(self, names: &[String]) -> Result<()> {
        let mut found = self.entries().await?;
        found.retain(|name| !name.contains("+0-"));
        let expected: BTreeSet<String> = names.iter().cloned().collect();
        ensure!(
            found == expected,
            "the boot entries are {found:?}, not {expected:?}"
        );
        Ok(())
    }

    /// What is on the disk where an update would be written: the partition table, and the beginning of each empty slot.
    /// Past the page cache: sysupdate writes to the disk, not to its partitions.
    pub(super) async fn slots(self) -> Result<String> {
        self.root(
            "udevadm settle; \
             for part in /dev/vda $(lsblk -nro PATH,PARTLABEL /dev/vda | sed -n \"s/ _empty$//p\"); do \
             dd if=$part bs=1M count=1 iflag=direct status=none | sha256sum; done",
        )
        .await
    }

    /// Files below the directory of updates, without the state, the index and the lock.
    pub(super) async fn files(self) -> Result<Vec<String>> {
        let said = self
            .root(&format!(
                "cd {DIRECTORY}; for dir in download staging; do [ ! -d $dir ] || find $dir -type f; done | sort"
            ))
            .await?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// Forgets all about updates, as a machine that never saw one.
    pub(super) async fn forget(self) -> Result<()> {
        self.root(&format!("rm -rf {DIRECTORY}/*")).await.map(drop)
    }

    /// Runs what the timer runs, and gives what programs of ours say meanwhile. Not by the unit: journald does not know the
    /// unit of a process that has ended before it reads the process's last message.
    pub(super) async fn timer_run(self) -> Result<String> {
        self.root(
            "journalctl --sync; \
             cursor=$(journalctl -q -n 0 --show-cursor | sed 's/^-- cursor: //'); \
             systemctl start selvage-update.service; \
             journalctl --sync; \
             journalctl -q -o cat -t selvage --after-cursor=\"$cursor\"",
        )
        .await
    }
}

/// The name of a boot entry that needs no tries any more.
pub(super) fn blessed(version: &str) -> String {
    format!("selvage_{version}.efi")
}
