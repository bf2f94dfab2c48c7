//! What became of the platform's network, kept for `selvage metadata show` until the machine is switched off.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::atomic_file;
use crate::base::words::harmless;

/// Where it is kept, from the initrd on.
const PATH: &str = "run/selvage/platform-network.json";

/// What became of it.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// The document that it is from.
    pub from: Option<String>,
    /// What networkd was given, a card or an argument each.
    pub gives: Vec<String>,
    /// What of the document is not used though the rest is.
    pub left_out: Vec<String>,
    /// Why nothing of it is used.
    pub refused: Option<String>,
}

impl Outcome {
    /// What became of it in this boot; `None` where there was nothing.
    pub fn of_this_boot(root: &Path) -> Option<Self> {
        let text = fs::read(root.join(PATH)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps it. Returns whether it is another than before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, root: &Path) -> io::Result<bool> {
        if Self::of_this_boot(root).as_ref() == Some(self) {
            return Ok(false);
        }
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        atomic_file::replace(&root.join(PATH), &text, 0o644).map(|()| true)
    }

    /// Whether somebody should know of it.
    pub fn is_lacking(&self) -> bool {
        self.refused.is_some() || !self.left_out.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = &self.refused {
            return write!(f, "not that of the platform: {}", harmless(refused));
        }
        let from = self.from.as_deref().unwrap_or("the platform");
        write!(f, "from {}", harmless(from))?;
        for gives in &self.gives {
            write!(f, "; {}", harmless(gives))?;
        }
        for left_out in &self.left_out {
            write!(f, "; left out: {}", harmless(left_out))?;
        }
        Ok(())
    }
}
