//! What an image build says about the update to it, and the release indexes that tests make of that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

/// The time that indexes are of.
const DATE: &str = "2026-01-01T00:00:00Z";

/// The update to an image.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Built {
    /// Which version it is.
    pub version: String,
    /// As in a release index.
    pub files: Vec<Value>,
    /// Where the files are.
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Built {
    /// The update to the image in the directory `image`.
    ///
    /// # Errors
    /// When it was not built.
    pub(crate) fn of(image: &Path) -> Result<Self> {
        let dir = image.join("update");
        let path = dir.join("files.json");
        let text = fs::read(&path)
            .with_context(|| format!("no {}; build it with `make image-next`", path.display()))?;
        let found: Self = serde_json::from_slice(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        Ok(Self { dir, ..found })
    }

    /// The names in the index, which begin with a directory for the version, each with the file that was built.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.files.iter().filter_map(|file| {
            let name = file["name"].as_str()?;
            Some((name, self.dir.join(Path::new(name).file_name()?)))
        })
    }

    /// The packed file whose name ends like this.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn packed(&self, end: &str) -> Result<PathBuf> {
        let mut named = self.named();
        let found = named.find(|(name, _)| name.ends_with(end));
        let (_, path) = found.with_context(|| format!("the update has no *{end}"))?;
        Ok(path)
    }

    /// The release, as in an index.
    pub(crate) fn release(&self) -> Value {
        json!({
            "version": self.version, "date": DATE, "severity": "normal", "roll_out_seconds": 0, "files": self.files,
        })
    }
}

/// An index of the channel `stable`.
pub(crate) fn index(serial: u64, releases: &[Value]) -> Value {
    json!({
        "format": 1, "channel": "stable", "serial": serial, "issued": DATE, "releases": releases,
    })
}

/// Unpacks a file by zstd.
///
/// # Errors
/// When it is missing or damaged, or zstd is.
pub(crate) async fn unpack(packed: &Path, to: &Path) -> Result<()> {
    let mut zstd = Command::new("zstd");
    zstd.args(["--quiet", "--force", "--decompress", "-o"])
        .args([to, packed]);
    succeed(zstd, "zstd").await.map(drop)
}

/// A key that signs indexes.
#[derive(Debug)]
pub(crate) struct Key {
    file: PathBuf,
    /// PEM, for the `update-keys.d` of machines.
    pub public: String,
}

impl Key {
    /// Makes one, in this file.
    ///
    /// # Errors
    /// When openssl is missing or refuses.
    pub(crate) async fn make(file: &Path) -> Result<Self> {
        let mut make = Command::new("openssl");
        make.args(["genpkey", "-algorithm", "ed25519", "-out"])
            .arg(file);
        succeed(make, "openssl").await?;
        Self::at(file).await
    }

    /// One that is there.
    ///
    /// # Errors
    /// When openssl is missing or refuses.
    pub(crate) async fn at(file: &Path) -> Result<Self> {
        let mut public = Command::new("openssl");
        public.args(["pkey", "-pubout", "-in"]).arg(file);
        Ok(Self {
            file: file.to_owned(),
            public: succeed(public, "openssl").await?,
        })
    }

    /// Writes an index to `path`, and its signature to the file of that name with `.sig`.
    ///
    /// # Errors
    /// When it cannot be written, or openssl refuses.
    pub(crate) async fn publish(&self, index: &Value, path: &Path) -> Result<()> {
        fs::write(path, index.to_string())
            .with_context(|| format!("failed to write {}", path.display()))?;
        let mut sign = Command::new("openssl");
        sign.args(["pkeyutl", "-sign", "-rawin", "-inkey"]);
        sign.arg(&self.file).arg("-in").arg(path);
        let mut signature = path.as_os_str().to_owned();
        signature.push(".sig");
        sign.arg("-out").arg(signature);
        succeed(sign, "openssl").await.map(drop)
    }
}

/// Runs a command of a package, and returns what it printed.
///
/// # Errors
/// When it is missing or fails, with what it said.
pub(crate) async fn succeed(mut command: Command, package: &str) -> Result<String> {
    let program = PathBuf::from(command.as_std().get_program());
    let program = program.display();
    let output = command
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("failed to run {program} (package {package})"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use selvage::appliance::update::{index::Index, keys::Keys};

    use super::*;

    const FILES: &str = r#"{"version": "2.0", "files": [
        {"part": "usr", "name": "selvage_2.0/selvage_2.0_00000000-0000-0000-0000-000000000001.usr.raw.zst",
         "size": 1, "sha256": "HASH", "unpacked_size": 1, "unpacked_sha256": "HASH"},
        {"part": "usr-verity", "name": "selvage_2.0/selvage_2.0_00000000-0000-0000-0000-000000000002.usr-verity.raw.zst",
         "size": 1, "sha256": "HASH", "unpacked_size": 1, "unpacked_sha256": "HASH"},
        {"part": "uki", "name": "selvage_2.0/selvage_2.0.efi.zst",
         "size": 1, "sha256": "HASH", "unpacked_size": 1, "unpacked_sha256": "HASH"}]}"#;

    /// An image in a directory, whose update is version 2.0 with small files.
    pub(crate) fn image(dir: &Path) -> Built {
        let update = dir.join("update");
        fs::create_dir_all(&update).unwrap();
        let files = FILES.replace("HASH", &"0".repeat(64));
        fs::write(update.join("files.json"), files).unwrap();
        let built = Built::of(dir).unwrap();
        for (name, path) in built.named() {
            fs::write(path, name).unwrap();
        }
        built
    }

    /// What an agent that trusts a key reads of an index.
    pub(crate) fn believed(key: &str, text: &[u8], signature: &[u8]) -> Index {
        let root = tempfile::tempdir().unwrap();
        let keys = root.path().join("etc/selvage/update-keys.d");
        fs::create_dir_all(&keys).unwrap();
        fs::write(keys.join("test.pem"), key).unwrap();
        let keys = Keys::load(root.path()).unwrap();
        keys.verify("index", text, signature).unwrap();
        Index::parse(text, "stable", 0).unwrap()
    }

    #[tokio::test]
    async fn an_agent_believes_the_index_and_takes_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let built = image(dir.path());
        let key = Key::make(&dir.path().join("key")).await.unwrap();
        let path = dir.path().join("stable.json");
        let text = index(3, &[built.release()]);
        key.publish(&text, &path).await.unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let index = believed(&key.public, &read("stable.json"), &read("stable.json.sig"));
        assert_eq!((index.serial, index.skipped.len()), (3, 0));
        assert_eq!(index.releases[0].version.as_str(), "2.0");
        let uki = built.packed(".efi.zst").unwrap();
        assert_eq!(fs::read(uki).unwrap(), b"selvage_2.0/selvage_2.0.efi.zst");
        let error = Built::of(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("make image-next"), "{error}");
    }
}
