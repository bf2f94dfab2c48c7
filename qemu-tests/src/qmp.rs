//! The few QEMU Machine Protocol commands the harness needs: power down, how much the disk has been used, and where
//! the processors are.
//!
//! One short connection per command: QEMU serves one client at a time, and a monitor that stays connected would have to
//! drain events for ever.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{UnixStream, unix::OwnedReadHalf},
};

use crate::firmware::{self, Processor};

/// QEMU answers from its main loop, which a busy host may starve for a while.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs one command and gives its return value.
///
/// # Errors
/// When QEMU is not there, does not answer within 20 s, or refuses the command.
pub(crate) async fn execute(socket: &Path, command: &str) -> Result<Value> {
    execute_with(socket, command, &json!({})).await
}

/// As [`execute`], for a command that takes `arguments`.
///
/// # Errors
/// As [`execute`].
pub(crate) async fn execute_with(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    tokio::time::timeout(DEADLINE, talk(socket, command, arguments))
        .await
        .with_context(|| format!("no answer to {command} within {DEADLINE:?}"))
        .flatten()
        .with_context(|| format!("failed to run {command} on {}", socket.display()))
}

async fn talk(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let (read, mut write) = UnixStream::connect(socket).await?.into_split();
    let mut lines = BufReader::new(read).lines();
    for (command, arguments) in [("qmp_capabilities", &json!({})), (command, arguments)] {
        let request = json!({ "execute": command, "arguments": arguments });
        write.write_all(request.to_string().as_bytes()).await?;
        let answer = answer(&mut lines).await?;
        if command != "qmp_capabilities" {
            return Ok(answer);
        }
    }
    bail!("qmp_capabilities is not a command to run by itself")
}

/// Skips the greeting and events.
async fn answer(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> Result<Value> {
    while let Some(line) = lines.next_line().await? {
        let mut message: Value = serde_json::from_str(&line).context("not a JSON line")?;
        if let Some(error) = message.get("error") {
            bail!("QEMU refused: {error}");
        }
        if let Some(answer) = message.get_mut("return") {
            return Ok(answer.take());
        }
    }
    bail!("QEMU closed the connection")
}

/// Reads and writes of all disks so far: it grows while a guest gets anywhere, even when its console is silent.
///
/// # Errors
/// As [`execute`].
pub(crate) async fn disk_operations(socket: &Path) -> Result<u64> {
    let answer = execute(socket, "query-blockstats").await?;
    Ok(sum_operations(&answer))
}

/// Where the processors are; see [`firmware`].
///
/// # Errors
/// As [`execute`].
pub(crate) async fn processors(socket: &Path) -> Result<Vec<Processor>> {
    let registers = json!({ "command-line": "info registers -a" });
    let answer = execute_with(socket, "human-monitor-command", &registers).await?;
    Ok(firmware::processors(answer.as_str().unwrap_or_default()))
}

fn sum_operations(answer: &Value) -> u64 {
    answer
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|disk| {
            ["rd_operations", "wr_operations"].map(|key| disk["stats"][key].as_u64().unwrap_or(0))
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::UnixListener};

    use super::*;

    #[tokio::test]
    async fn greeting_and_events_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            stream.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
            let _ = stream.read(&mut buffer).await.unwrap();
            stream
                .write_all(b"{\"return\": {}}\r\n{\"event\": \"RESUME\"}\r\n")
                .await
                .unwrap();
            let _ = stream.read(&mut buffer).await.unwrap();
            let stats = json!([{ "stats": { "rd_operations": 3, "wr_operations": 4 } }, {}]);
            stream
                .write_all(format!("{}\n", json!({ "return": stats })).as_bytes())
                .await
                .unwrap();
        });
        assert_eq!(disk_operations(&path).await.unwrap(), 7);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_monitor_that_is_gone_is_an_error_with_its_path() {
        let error = execute(Path::new("/nonexistent/qmp"), "quit")
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "failed to run quit on /nonexistent/qmp");
    }
}
