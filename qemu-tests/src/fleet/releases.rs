//! A release server's directory with one version, signed by a key that is made for it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use selvage::base::time::rfc3339;
use serde_json::{Value, json};

use crate::built::{self, Built, Key};

/// The directory.
#[derive(Debug)]
pub(crate) struct Releases {
    /// What machines are led to.
    pub dir: PathBuf,
    /// What it releases.
    pub built: Built,
    /// What it signs with.
    pub key: Key,
    serial: u64,
}

impl Releases {
    /// Makes one in `dir` for the update to the image in `image`, with an index that has no release yet.
    ///
    /// # Errors
    /// When the image was not built, or openssl fails.
    pub(crate) async fn create(dir: &Path, image: &Path) -> Result<Self> {
        let built = Built::of(image)?;
        let served = dir.join("releases");
        if served.exists() {
            fs::remove_dir_all(&served)
                .with_context(|| format!("failed to empty {}", served.display()))?;
        }
        fs::create_dir_all(&served)
            .with_context(|| format!("failed to create {}", served.display()))?;
        let artefacts = fs::canonicalize(&built.dir)
            .with_context(|| format!("failed to find {}", built.dir.display()))?;
        let link = served.join(format!("selvage_{}", built.version));
        std::os::unix::fs::symlink(&artefacts, link)
            .with_context(|| format!("failed to link to {}", artefacts.display()))?;
        let mut releases = Self {
            dir: served,
            key: Key::make(&dir.join("update.key")).await?,
            built,
            serial: 0,
        };
        releases.sign(&[]).await?;
        Ok(releases)
    }

    /// Publishes the version as one that has been rolled out since `date` over `seconds`.
    ///
    /// # Errors
    /// When the index cannot be written or signed.
    pub(crate) async fn publish(&mut self, date: SystemTime, seconds: u64) -> Result<()> {
        let mut release = self.built.release();
        release["date"] = json!(rfc3339(date));
        release["roll_out_seconds"] = json!(seconds);
        self.sign(&[release]).await
    }

    async fn sign(&mut self, releases: &[Value]) -> Result<()> {
        self.serial += 1;
        // A machine that finds new and old together asks again.
        let index = built::index(self.serial, releases);
        self.key
            .publish(&index, &self.dir.join("stable.json"))
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[tokio::test]
    async fn an_agent_believes_the_index_and_takes_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        built::tests::image(&image);
        let mut releases = Releases::create(dir.path(), &image).await.unwrap();
        let read = |releases: &Releases| {
            let text = fs::read(releases.dir.join("stable.json")).unwrap();
            let signature = fs::read(releases.dir.join("stable.json.sig")).unwrap();
            built::tests::believed(&releases.key.public, &text, &signature)
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
