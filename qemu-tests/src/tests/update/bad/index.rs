//! A signed release index that names the version: a machine that would try it again by itself says so here.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

/// An index and what it was signed with.
#[derive(Debug)]
pub(super) struct Signed {
    /// What the release server has: names and contents.
    pub served: Vec<(String, Vec<u8>)>,
    /// The public key, PEM.
    pub key: Vec<u8>,
}

/// Signs an index of the channel `stable` whose only release has the `artefacts` that an image build described.
///
/// # Errors
/// When openssl is missing or refuses, or `artefacts` names no version.
pub(super) async fn signed(artefacts: &Value) -> Result<Signed> {
    let scratch = tempfile::tempdir().context("failed to make a directory for a key")?;
    let path = |name: &str| scratch.path().join(name);
    let version = artefacts["version"].as_str().context("no version")?;
    let index = json!({
        "format": 1, "channel": "stable", "serial": 1, "issued": "2026-01-01T00:00:00Z",
        "releases": [{
            "version": version, "date": "2026-01-01T00:00:00Z", "severity": "critical", "roll_out_seconds": 0,
            "files": artefacts["files"],
        }],
    })
    .to_string();
    std::fs::write(path("index"), &index).context("failed to write an index")?;
    let dir = scratch.path();
    openssl(dir, "genpkey -algorithm ed25519 -out key").await?;
    openssl(dir, "pkey -in key -pubout -out public").await?;
    openssl(
        dir,
        "pkeyutl -sign -rawin -inkey key -in index -out signature",
    )
    .await?;
    let read = |name: &str| std::fs::read(path(name)).with_context(|| format!("no {name}"));
    Ok(Signed {
        served: vec![
            ("stable.json".to_owned(), index.into_bytes()),
            ("stable.json.sig".to_owned(), read("signature")?),
        ],
        key: read("public")?,
    })
}

async fn openssl(dir: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .await
        .context("failed to run openssl")?;
    ensure!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
