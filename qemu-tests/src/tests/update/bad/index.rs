//! A signed release index that names the version: a machine that would try it again by itself says so here.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::built::{self, Built, Key};

/// An index and what it was signed with.
#[derive(Debug)]
pub(super) struct Signed {
    /// What the release server has: names and contents.
    pub served: Vec<(String, Vec<u8>)>,
    /// The public key, PEM.
    pub key: String,
}

/// Signs an index whose only release is a critical one, which no window keeps back.
///
/// # Errors
/// When openssl is missing or refuses.
pub(super) async fn signed(built: &Built) -> Result<Signed> {
    let scratch = tempfile::tempdir().context("failed to make a directory for a key")?;
    let key = Key::make(&scratch.path().join("key")).await?;
    let mut release = built.release();
    release["severity"] = json!("critical");
    let index = built::index(1, &[release]);
    key.publish(&index, &scratch.path().join("stable.json"))
        .await?;
    let served = ["stable.json", "stable.json.sig"].map(|name| {
        let contents = std::fs::read(scratch.path().join(name));
        Ok((
            name.to_owned(),
            contents.with_context(|| format!("no {name}"))?,
        ))
    });
    Ok(Signed {
        served: served.into_iter().collect::<Result<_>>()?,
        key: key.public,
    })
}
