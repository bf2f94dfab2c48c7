//! Lists that come in pages, with an end for a server that never stops.

use crate::cloud::error::CloudError;
use crate::cloud::transport::Transport;

/// The most pages of a list: of routes, far more than any quota allows.
const MOST_PAGES: u32 = 100;

/// How many bytes the pages of a list may have together before the last one.
const MOST_BYTES: u64 = 32 << 20;

/// How far a list has come.
#[derive(Debug)]
pub(super) struct Paging {
    call: &'static str,
    pages: u32,
    /// What was received before the list.
    before: u64,
}

impl Paging {
    /// No page yet.
    pub(super) fn start(call: &'static str, transport: &Transport) -> Self {
        Self {
            call,
            pages: 0,
            before: transport.received(),
        }
    }

    /// Counts a page that is not the last one.
    ///
    /// # Errors
    /// [`CloudError::Malformed`] if the list is too long to go on.
    pub(super) fn go_on(&mut self, transport: &Transport) -> Result<(), CloudError> {
        self.count(transport.received().saturating_sub(self.before))
    }

    fn count(&mut self, bytes: u64) -> Result<(), CloudError> {
        self.pages += 1;
        let problem = if self.pages >= MOST_PAGES {
            format!("more than {MOST_PAGES} pages")
        } else if bytes > MOST_BYTES {
            format!("a list of more than {} MiB", MOST_BYTES >> 20)
        } else {
            return Ok(());
        };
        Err(self.malformed(problem))
    }

    /// The error for a list that cannot be followed.
    pub(super) fn malformed(&self, problem: String) -> CloudError {
        CloudError::Malformed {
            call: self.call,
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends() {
        let start = || Paging::start("List", &Transport::new(None, None));
        let mut paging = start();
        for _ in 1..MOST_PAGES {
            paging.count(0).unwrap();
        }
        assert_eq!(
            paging.count(0).unwrap_err().to_string(),
            "List: unexpected answer: more than 100 pages"
        );
        let mut paging = start();
        paging.count(MOST_BYTES).unwrap();
        assert_eq!(
            paging.count(MOST_BYTES + 1).unwrap_err().to_string(),
            "List: unexpected answer: a list of more than 32 MiB"
        );
    }
}
