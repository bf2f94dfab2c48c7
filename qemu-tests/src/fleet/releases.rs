//! A release server's directory with one version, signed by a key that is made for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use selvage::base::time::rfc3339;
use serde_json::{Value, json};
use tokio::process::Command;

/// What an image build says about its update.
#[derive(Debug, Clone, serde::Deserialize)]
struct Built {
    version: String,
    /// As the index has them.
    files: Vec<Value>,
}

fn built(image: &Path) -> Result<(Built, PathBuf)> {
    let dir = image.join("update");
    let path = dir.join("files.json");
    let text = fs::read(&path)
        .with_context(|| format!("no {}; build it with `make image-next`", path.display()))?;
    let found = serde_json::from_slice(&text)
        .with_context(|| format!("failed to parse {}", path.display()))?;
    Ok((found, dir))
}

/// The version of the image in `image`.
///
/// # Errors
/// When it was not built with its update.
pub(crate) fn version(image: &Path) -> Result<String> {
    Ok(built(image)?.0.version)
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Releases {
    /// What machines are led to.
    pub dir: PathBuf,
    /// The public key, for the machines' `update-keys.d`.
    pub public_key: String,
    /// The version that it has.
    pub version: String,
    files: Vec<Value>,
    key: PathBuf,
    serial: u64,
}

impl Releases {
    /// Makes one in `dir` for the update to the image in `image`, with an index that has no release yet.
    ///
    /// # Errors
    /// When the image was not built, or openssl fails.
    pub(crate) async fn create(dir: &Path, image: &Path) -> Result<Self> {
        let (built, artefacts) = built(image)?;
        let served = dir.join("releases");
        let stem = format!("selvage_{}", built.version);
        if served.exists() {
            fs::remove_dir_all(&served)
                .with_context(|| format!("failed to empty {}", served.display()))?;
        }
        fs::create_dir_all(&served)
            .with_context(|| format!("failed to create {}", served.display()))?;
        let artefacts = fs::canonicalize(&artefacts)
            .with_context(|| format!("failed to find {}", artefacts.display()))?;
        std::os::unix::fs::symlink(&artefacts, served.join(&stem))
            .with_context(|| format!("failed to link to {}", artefacts.display()))?;
        let key = dir.join("update.key");
        let made = key.display().to_string();
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", &made]).await?;
        let public_key = openssl(&["pkey", "-pubout", "-in", &made]).await?;
        let mut releases = Self {
            dir: served,
            public_key,
            version: built.version,
            files: built.files,
            key,
            serial: 0,
        };
        releases.sign(json!([])).await?;
        Ok(releases)
    }

    /// Publishes the version as one that has been rolled out since `date` over `seconds`.
    ///
    /// # Errors
    /// When the index cannot be written or signed.
    pub(crate) async fn publish(&mut self, date: SystemTime, seconds: u64) -> Result<()> {
        let release = json!({
            "version": self.version,
            "date": rfc3339(date),
            "severity": "normal",
            "roll_out_seconds": seconds,
            "files": self.files,
        });
        self.sign(json!([release])).await
    }

    async fn sign(&mut self, releases: Value) -> Result<()> {
        self.serial += 1;
        let index = json!({
            "format": 1,
            "channel": "stable",
            "serial": self.serial,
            "issued": rfc3339(SystemTime::now()),
            "releases": releases,
        });
        // A machine that finds new and old together asks again.
        let path = self.dir.join("stable.json");
        fs::write(&path, index.to_string())
            .with_context(|| format!("failed to write {}", path.display()))?;
        let (key, path) = (self.key.display().to_string(), path.display().to_string());
        let signature = format!("{path}.sig");
        openssl(&[
            "pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &path, "-out", &signature,
        ])
        .await
        .map(drop)
    }
}

async fn openssl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("failed to run openssl")?;
    ensure!(
        output.status.success(),
        "openssl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use selvage::appliance::update::{index::Index, keys::Keys};

    use super::*;

    const FILES: &str = r#"{"version": "2.0", "files": [
        {"part": "usr", "name": "selvage_2.0/selvage_2.0_00000000-0000-0000-0000-000000000001.usr.raw.zst",
         "size": 1, "sha256": "HASH", "unpacked_size": 1, "unpacked_sha256": "HASH"},
        {"part": "usr-verity", "name": "selvage_2.0/selvage_2.0_00000000-0000-0000-0000-000000000002.usr-verity.raw.zst",
         "size": 1, "sha256": "HASH", "unpacked_size": 1, "unpacked_sha256": "HASH"},
        {"part": "uki", "name": "selvage_2.0/selvage_2.0.efi.zst",
         "size": 1, "sha256": "HASH", "unpacked_size": 1, "unpacked_sha256": "HASH"}]}"#;

    #[tokio::test]
    async fn an_agent_believes_the_index_and_takes_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let update = dir.path().join("image/update");
        fs::create_dir_all(&update).unwrap();
        fs::write(
            update.join("files.json"),
            FILES.replace("HASH", &"0".repeat(64)),
        )
        .unwrap();
        let mut releases = Releases::create(dir.path(), &dir.path().join("image"))
            .await
            .unwrap();
        let keys = dir.path().join("root/etc/selvage/update-keys.d");
        fs::create_dir_all(&keys).unwrap();
        fs::write(keys.join("harness.pem"), &releases.public_key).unwrap();
        let keys = Keys::load(&dir.path().join("root")).unwrap();
        let read = |releases: &Releases| {
            let text = fs::read(releases.dir.join("stable.json")).unwrap();
            let signature = fs::read(releases.dir.join("stable.json.sig")).unwrap();
            keys.verify("index", &text, &signature).unwrap();
            Index::parse(&text, "stable", 0).unwrap()
        };
        let first = read(&releases);
        assert!(first.releases.is_empty());
        let date = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        releases.publish(date, 86_400).await.unwrap();
        let second = read(&releases);
        assert!(second.serial > first.serial && second.skipped.is_empty());
        let release = &second.releases[0];
        assert_eq!((release.version.as_str(), release.date), ("2.0", date));
        assert_eq!(release.roll_out, Duration::from_secs(86_400));
        let path = releases.dir.join("selvage_2.0/files.json");
        assert!(path.exists(), "{}", path.display());
    }
}
