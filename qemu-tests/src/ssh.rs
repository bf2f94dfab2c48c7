//! The system's `ssh` as the way into a machine.
//!
//! One master connection per machine carries every command: a key exchange costs a software-emulated guest seconds.
//! Should the master die (the guest reboots), commands fall back to a connection of their own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::{
    child::{self, Child},
    progress::clip,
};

/// The user that the image has for this.
pub(crate) const USER: &str = "core";
/// What a single command may take unless the caller knows better; TCG guests are slow.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// Characters of a failed script that an error shows.
const SHOWN_SCRIPT: usize = 160;

/// The way into one machine.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Ssh {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// Private key file.
    pub key: PathBuf,
    /// Control socket of the master connection.
    pub control: PathBuf,
}

/// Makes a key pair for this run; gives the private key's path and the public line.
///
/// # Errors
/// When ssh-keygen is missing or fails.
pub(crate) async fn generate_key(dir: &Path) -> Result<(PathBuf, String)> {
    let key = dir.join("id_ed25519");
    for stale in [key.clone(), key.with_extension("pub")] {
        if stale.exists() {
            std::fs::remove_file(&stale)
                .with_context(|| format!("failed to remove {}", stale.display()))?;
        }
    }
    let output = Command::new("ssh-keygen")
        .args([
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            "selvage-harness",
            "-f",
        ])
        .arg(&key)
        .output()
        .await
        .context("failed to run ssh-keygen (package openssh-client)")?;
    ensure!(
        output.status.success(),
        "ssh-keygen failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let path = key.with_extension("pub");
    let public = std::fs::read_to_string(&path)
        .with_context(|| format!("failed to read {}", path.display()))?;
    Ok((key, public.trim().to_owned()))
}

impl Ssh {
    /// Options every connection has. Host keys are made anew at each first boot, so there is nothing to compare with.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "IdentitiesOnly=yes",
            "PasswordAuthentication=no",
            "ConnectTimeout=60",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=8",
        ];
        let mut arguments = vec!["-F".into(), "/dev/null".into()];
        arguments.extend(
            options
                .iter()
                .flat_map(|option| ["-o".to_owned(), (*option).to_owned()]),
        );
        arguments.extend(["-i".into(), self.key.display().to_string()]);
        arguments.extend(["-p".into(), self.port.to_string()]);
        arguments
    }

    /// Whether the guest's sshd greets. QEMU accepts connections before the guest does, so only the greeting counts.
    ///
    /// # Errors
    /// When there is none within 3 s.
    pub(crate) async fn greets(&self) -> Result<()> {
        tokio::time::timeout(Duration::from_secs(3), async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let mut greeting = [0; 4];
            stream.read_exact(&mut greeting).await?;
            ensure!(
                &greeting == b"SSH-",
                "port {} does not speak SSH",
                self.port
            );
            Ok(())
        })
        .await
        .context("sshd does not greet")?
    }

    /// Starts the master connection; dropping it ends it.
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub(crate) fn master(&self) -> Result<Child> {
        let mut command = std::process::Command::new("ssh");
        command
            .args(self.arguments())
            .args(["-o", "ControlMaster=yes", "-N", "-S"])
            .arg(&self.control)
            .arg(format!("{USER}@127.0.0.1"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Child::spawn("ssh", command)
    }

    /// A command line that runs `script` in the guest's shell, over the connection whose socket is `control`.
    fn command(&self, user: &str, control: &Path, script: &str) -> Command {
        let mut command = std::process::Command::new("ssh");
        command
            .args(self.arguments())
            .args(["-o", "BatchMode=yes", "-o", "ControlMaster=no", "-S"])
            .arg(control)
            .arg(format!("{user}@127.0.0.1"))
            .arg(script)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        child::die_with_parent(&mut command);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    /// Runs `script` in the guest and gives what it printed, without the newline at the end.
    ///
    /// # Errors
    /// When it does not end with 0 within 120 s; the message has the script and what it said.
    pub(crate) async fn run(&self, script: &str) -> Result<String> {
        self.feed(script, &[], COMMAND_DEADLINE).await
    }

    /// As [`Self::run`], by another user than `core`, who logs in for it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) async fn run_as(&self, user: &str, script: &str) -> Result<String> {
        let command = self.command(user, Path::new("none"), script);
        run(command, script, &[], COMMAND_DEADLINE).await
    }

    /// As [`Self::run`], with the input and the patience given.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) async fn feed(
        &self,
        script: &str,
        input: &[u8],
        deadline: Duration,
    ) -> Result<String> {
        let command = self.command(USER, &self.control, script);
        run(command, script, input, deadline).await
    }
}

async fn run(command: Command, script: &str, input: &[u8], deadline: Duration) -> Result<String> {
    let output = tokio::time::timeout(deadline, talk(command, input))
        .await
        .map_err(|_| {
            let script = clip(script, SHOWN_SCRIPT);
            anyhow::anyhow!("`{script}` did not end within {} s", deadline.as_secs())
        })??;
    if !output.status.success() {
        // What went well before the failure is of no interest, unless there is nothing else.
        let said = if output.stderr.is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        bail!(
            "`{}` ended with {}: {}",
            clip(script, SHOWN_SCRIPT),
            output.status,
            String::from_utf8_lossy(said).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

async fn talk(mut command: Command, input: &[u8]) -> Result<std::process::Output> {
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let mut process = command
        .spawn()
        .context("failed to run ssh (package openssh-client)")?;
    let stdin = process.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A script that ends early closes the pipe; its exit status tells the story.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), output) = tokio::join!(feed, process.wait_with_output());
    output.context("failed to wait for ssh")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn ssh(port: u16) -> Ssh {
        Ssh {
            port,
            key: "/k".into(),
            control: "/c".into(),
        }
    }

    #[tokio::test]
    async fn keys_are_made_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (key, first) = generate_key(dir.path()).await.unwrap();
        assert!(key.exists() && first.starts_with("ssh-ed25519 "));
        assert_ne!(generate_key(dir.path()).await.unwrap().1, first);
    }

    #[tokio::test]
    async fn only_an_ssh_greeting_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for greeting in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1"] {
                listener
                    .accept()
                    .await
                    .unwrap()
                    .0
                    .write_all(greeting)
                    .await
                    .unwrap();
            }
            drop(listener.accept().await.unwrap());
        });
        assert!(ssh(port).greets().await.is_ok());
        assert!(ssh(port).greets().await.is_err());
        assert!(ssh(port).greets().await.is_err());
        server.await.unwrap();
    }
}
