//! What is asked of a server, and the faults that it is to have.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What a test knows of a server, and tells it, by files in a directory: each connection is a process of its own.
#[derive(Debug, Clone)]
pub(crate) struct Notes(pub(super) PathBuf);

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// `GET`, `PUT`, `POST` or `CONNECT`.
    pub method: String,
    /// What was asked for: a path, or for a proxy the whole address.
    pub target: String,
    /// The first byte that was asked for, by `Range`.
    pub from: Option<u64>,
    /// What the client said to a proxy to be let through.
    pub proxy_authorization: Option<String>,
    /// What the client sent.
    pub body: String,
    /// Whether the request came over TLS.
    pub tls: bool,
    /// The status of the answer.
    pub status: u16,
}

impl Notes {
    /// Those in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Has the server close the connection in the middle of one answer, the next for a file whose path ends with
    /// `suffix`: after so many bytes of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn cut(&self, suffix: &str, after: u64) -> Result<()> {
        let path = self.0.join("cut");
        fs::write(&path, format!("{after} {suffix}"))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// After how many bytes the answer for `path` is to be cut off. It is asked once for each answer.
    pub(super) fn take_cut(&self, path: &str) -> Option<u64> {
        let note = self.0.join("cut");
        let text = fs::read_to_string(&note).ok()?;
        let (after, suffix) = text.split_once(' ')?;
        // Whoever removes it has it.
        (path.ends_with(suffix) && fs::remove_file(&note).is_ok()).then(|| after.parse().ok())?
    }

    /// All requests so far, in their order.
    ///
    /// # Errors
    /// When the file cannot be understood.
    pub(crate) fn asked(&self) -> Result<Vec<Asked>> {
        let text = fs::read_to_string(self.0.join("asked")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).context("a note of a request"))
            .collect()
    }

    pub(super) fn add(&self, asked: &Asked) -> Result<()> {
        let path = self.0.join("asked");
        let line = serde_json::to_string(asked).context("failed to write JSON")? + "\n";
        let file = fs::File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("failed to write {}", path.display()))
    }
}
