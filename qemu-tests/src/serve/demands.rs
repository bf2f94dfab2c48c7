//! What a platform's metadata service demands of who asks it: a token, a header. A hidden file beside those that are
//! served says it, because each connection is answered by a process of its own.

use std::{fs, ops::RangeInclusive, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::http::Request;

/// The file. Hidden files are not served.
const FILE: &str = ".demands";

/// For how many seconds a token may be asked for: the documentation of EC2's IMDSv2 ("Use IMDSv2").
const TOKEN_SECONDS: RangeInclusive<u32> = 1..=21_600;

/// The demands of a service; the default has none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Demands {
    /// Every request but that for the token itself has to show one.
    pub(crate) token: Option<Token>,
    /// Every request has to have this header.
    pub(crate) header: Option<Header>,
    /// The target that takes what is sent to it by `POST`, beside the files.
    pub(crate) takes: Option<String>,
}

/// A token in the way of EC2.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Where it is got by `PUT`.
    pub(crate) target: String,
    /// The header that says for how many seconds it is to be good, in lower case. Without it the service refuses (400).
    pub(crate) lifetime: String,
    /// The header that shows it, in lower case. Without it the service refuses (401).
    pub(crate) header: String,
    /// The token.
    pub(crate) token: String,
}

/// A header that keeps away who is led to the service by somebody else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Its name, in lower case.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: String,
    /// The status of the answer without it.
    pub(crate) refusal: u16,
}

/// An answer without a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status.
    pub(super) status: u16,
    /// A further header, as a whole line; empty: none.
    pub(super) header: String,
    /// The body.
    pub(super) body: String,
}

impl Answer {
    /// One that has only a status.
    pub(super) fn empty(status: u16) -> Self {
        let (header, body) = (String::new(), String::new());
        Self {
            status,
            header,
            body,
        }
    }
}

impl Demands {
    /// The file that has them, to be put beside those that are served.
    ///
    /// # Errors
    /// When they cannot be written as JSON.
    pub(crate) fn file(&self) -> Result<(String, Vec<u8>)> {
        let text = serde_json::to_vec(self).context("failed to write JSON")?;
        Ok((FILE.to_owned(), text))
    }

    /// Those of the files in `dir`.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub(super) fn of(dir: &Path) -> Result<Self> {
        match fs::read(dir.join(FILE)) {
            Ok(text) => serde_json::from_slice(&text).context("the demands cannot be understood"),
            Err(_) => Ok(Self::default()),
        }
    }

    /// The answer to a request that is not for a file, or is refused; `None`: a file is asked for as it should be.
    pub(super) fn answer(&self, request: &Request) -> Option<Answer> {
        let is_guarded = self.token.is_some() || self.header.is_some();
        // Both Amazon's and Google's documentation: a request that a proxy passes on is not answered.
        if is_guarded && request.header("x-forwarded-for").is_some() {
            return Some(Answer::empty(403));
        }
        if let Some(token) = &self.token {
            if request.method == "PUT" && request.target == token.target {
                return Some(token.given_to(request));
            }
            if request.header(&token.header) != Some(&token.token) {
                return Some(Answer::empty(401));
            }
        }
        if let Some(header) = &self.header
            && request.header(&header.name) != Some(&header.value)
        {
            return Some(Answer::empty(header.refusal));
        }
        let is_taken = request.method == "POST" && self.takes.as_ref() == Some(&request.target);
        is_taken.then(|| Answer::empty(200))
    }
}

impl Token {
    fn given_to(&self, request: &Request) -> Answer {
        let seconds = request.header(&self.lifetime);
        let seconds = seconds.and_then(|seconds| seconds.parse().ok());
        let Some(seconds) = seconds.filter(|seconds| TOKEN_SECONDS.contains(seconds)) else {
            return Answer::empty(400);
        };
        Answer {
            status: 200,
            // Amazon's SDK, by which Ignition asks for the region, takes no token without it.
            header: format!("{}: {seconds}\r\n", self.lifetime),
            body: self.token.clone(),
        }
    }
}
