//! The release server's side: what `image/release` lays out, signed with keys that `image/keys` makes, and what is done
//! to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::serve::{self, Asked, Notes, tls};

/// The channel.
const INDEX: &str = "stable.json";

/// A release server of one version.
#[derive(Debug)]
pub(super) struct Site {
    dir: PathBuf,
    notes: Notes,
    /// The index as `image/release` wrote it.
    index: Value,
    serial: u64,
    /// How many requests were told of by [`Self::asked`].
    told: usize,
}

/// An index and its signature, byte by byte.
#[derive(Debug)]
pub(super) struct Signed(Vec<u8>, Vec<u8>);

/// A file of the release.
#[derive(Debug, Clone, serde::Deserialize)]
pub(super) struct Artefact {
    /// Below the server's directory.
    pub name: PathBuf,
    /// Bytes.
    pub size: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

impl Artefact {
    /// Its name without the directory.
    pub(super) fn file_name(&self) -> Result<&str> {
        let name = self.name.file_name().and_then(|name| name.to_str());
        name.context("an artefact without a name")
    }
}

impl Site {
    /// Releases the version in `image` below `dir`, which is emptied before, by the programs in `tools`.
    ///
    /// # Errors
    /// When the scripts or openssl fail.
    pub(super) async fn new(tools: &Path, dir: &Path, image: &Path) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir)
                .with_context(|| format!("failed to empty {}", dir.display()))?;
        }
        let notes = dir.join("notes");
        fs::create_dir_all(&notes)
            .with_context(|| format!("failed to create {}", notes.display()))?;
        tls::certify(&notes)?;
        let keys = dir.join("keys");
        run(Command::new(tools.join("keys")).arg(&keys)).await?;
        let mut release = Command::new(tools.join("release"));
        release.arg(dir.join("files")).arg("stable");
        let image = fs::canonicalize(image)
            .with_context(|| format!("no {}; build it with `make image-next`", image.display()))?;
        run(release.env("KEYS", &keys).env("IMAGE", &image)).await?;
        let path = dir.join("files").join(INDEX);
        let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
        let index: Value = serde_json::from_slice(&text).context("the index is no JSON")?;
        Ok(Self {
            dir: dir.to_owned(),
            notes: Notes::new(&notes),
            serial: index["serial"].as_u64().context("no serial")?,
            index,
            told: 0,
        })
    }

    /// The command that answers for it.
    pub(super) fn command(&self) -> Result<String> {
        serve::command(&self.dir.join("files"), Some(&self.dir.join("notes")))
    }

    /// The public key that machines are to trust.
    pub(super) fn key(&self) -> Result<String> {
        fs::read_to_string(self.dir.join("keys/update.pem")).context("no public key")
    }

    /// The certificate of who vouches for the server.
    pub(super) fn authority(&self) -> Result<Vec<u8>> {
        fs::read(self.dir.join("notes").join(tls::AUTHORITY)).context("no authority")
    }

    /// The version.
    pub(super) fn version(&self) -> Result<&str> {
        let version = self.index["releases"][0]["version"].as_str();
        version.context("no version in the index")
    }

    /// The file of a part.
    pub(super) fn artefact(&self, part: &str) -> Result<Artefact> {
        let files = self.index["releases"][0]["files"].as_array();
        let file = files
            .into_iter()
            .flatten()
            .find(|file| file["part"] == part);
        let file = file.with_context(|| format!("no part {part} in the index"))?;
        serde_json::from_value(file.clone()).context("not understood")
    }

    /// Where a file of the release is.
    pub(super) fn path(&self, artefact: &Artefact) -> PathBuf {
        self.dir.join("files").join(&artefact.name)
    }

    /// Publishes the next index: the first one with `change` made to its only release.
    pub(super) async fn publish(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.serial += 1;
        let mut index = self.index.clone();
        index["serial"] = self.serial.into();
        change(&mut index["releases"][0]);
        let text = serde_json::to_vec(&index).context("failed to write JSON")?;
        fs::write(self.dir.join("files").join(INDEX), text).context("failed to write the index")?;
        self.sign("update.key").await
    }

    /// Signs the index as agent/docs/updates.md says, with a key that is made now if there is none of that name.
    pub(super) async fn sign(&self, key: &str) -> Result<()> {
        let key = self.dir.join("keys").join(key);
        if !key.exists() {
            let mut make = Command::new("openssl");
            run(make
                .args(["genpkey", "-algorithm", "ed25519", "-out"])
                .arg(&key))
            .await?;
        }
        let index = self.dir.join("files").join(INDEX);
        let mut sign = Command::new("openssl");
        sign.args(["pkeyutl", "-sign", "-rawin", "-inkey"]).arg(key);
        sign.arg("-in").arg(&index);
        run(sign.arg("-out").arg(index.with_extension("json.sig"))).await
    }

    /// What is published now.
    pub(super) fn signed(&self) -> Result<Signed> {
        let index = self.dir.join("files").join(INDEX);
        let read = |path: &Path| {
            fs::read(path).with_context(|| format!("failed to read {}", path.display()))
        };
        Ok(Signed(
            read(&index)?,
            read(&index.with_extension("json.sig"))?,
        ))
    }

    /// Publishes what was published before.
    pub(super) fn replay(&self, Signed(text, signature): &Signed) -> Result<()> {
        let index = self.dir.join("files").join(INDEX);
        fs::write(index.with_extension("json.sig"), signature)
            .and_then(|()| fs::write(index, text))
            .context("failed to write the index")
    }

    /// Has the answer for a file end after so many bytes.
    pub(super) fn cut(&self, artefact: &Artefact, after: u64) -> Result<()> {
        self.notes.cut(artefact.file_name()?, after)
    }

    /// The requests since the last call.
    pub(super) fn asked(&mut self) -> Result<Vec<Asked>> {
        let all = self.notes.asked()?;
        let new = all.get(self.told..).unwrap_or_default().to_vec();
        self.told = all.len();
        Ok(new)
    }

    /// The first bytes and statuses of the requests for one file since the last call.
    pub(super) fn asked_for(&mut self, artefact: &Artefact) -> Result<Vec<(Option<u64>, u16)>> {
        let name = artefact.file_name()?;
        let asked = self.asked()?;
        let of_it = asked.iter().filter(|asked| asked.target.ends_with(name));
        Ok(of_it.map(|asked| (asked.from, asked.status)).collect())
    }

    /// How many requests since the last call were for files of a release.
    pub(super) fn downloads(&mut self) -> Result<usize> {
        let asked = self.asked()?;
        Ok(asked
            .iter()
            .filter(|asked| asked.target.contains("/selvage_"))
            .count())
    }

    /// Removes the large files; what tells of a failure stays.
    pub(super) fn discard(&self) {
        // What cannot be removed now is removed by the next run.
        let _ = fs::remove_dir_all(self.dir.join("files"));
    }
}

async fn run(command: &mut Command) -> Result<()> {
    let name = command.as_std().get_program().display().to_string();
    let output = command
        .output()
        .await
        .with_context(|| format!("failed to run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name}: {}: {}",
        output.status,
        said.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An image that was "built" of a few bytes.
    fn image(dir: &Path) -> PathBuf {
        let update = dir.join("image/update");
        fs::create_dir_all(&update).unwrap();
        fs::write(update.join("selvage_2.efi.zst"), "x").unwrap();
        fs::write(update.join("selvage_2.spdx.json"), "{}").unwrap();
        let sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
        let file = json!({"part": "uki", "name": "selvage_2/selvage_2.efi.zst", "size": 1, "sha256": sha256,
            "unpacked_size": 1, "unpacked_sha256": sha256});
        let built = json!({"version": "2", "files": [file]});
        fs::write(update.join("files.json"), built.to_string()).unwrap();
        dir.join("image")
    }

    #[tokio::test]
    async fn indexes_follow_each_other_and_can_be_replayed() {
        let tools = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../image"));
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let mut site = Site::new(tools, &dir.path().join("site"), &image)
            .await
            .unwrap();
        assert_eq!((site.serial, site.version().unwrap()), (1, "2"));
        let artefact = site.artefact("uki").unwrap();
        assert_eq!(fs::read(site.path(&artefact)).unwrap(), b"x");
        let first = site.signed().unwrap();
        site.publish(|release| release["from"] = "1.5".into())
            .await
            .unwrap();
        let second = site.signed().unwrap();
        let text = String::from_utf8(second.0.clone()).unwrap();
        assert!(
            text.contains("\"serial\":2") && text.contains("\"from\":\"1.5\""),
            "{text}"
        );
        assert_eq!((first.1.len(), second.1.len()), (64, 64));
        site.sign("other.key").await.unwrap();
        assert_ne!(site.signed().unwrap().1, second.1);
        site.replay(&first).unwrap();
        assert_eq!(site.signed().unwrap().0, first.0);
        assert!(site.asked().unwrap().is_empty());
    }
}
