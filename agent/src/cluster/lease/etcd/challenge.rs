//! Challenges: asking whether the owner of a lease is alive.
//!
//! A lease names the node that took it. It does not say whether that node still runs, or whether it is this very node
//! before its address changed. So a node in doubt asks. The question is a key that lives for seconds, in a place beside
//! the leases that a real flannel ignores:
//!
//! | key | written by | value |
//! |---|---|---|
//! | `PREFIX/.challenges/OWNER/NUMBER` | the node that asks | its public IP |
//! | `PREFIX/.challenges/OWNER/NUMBER/alive` | an agent that holds a lease as OWNER | its public IP; empty while it writes its lease |
//!
//! Every agent watches the questions to its own owner ID on the watch stream that it has anyway. Both keys are attached
//! to one etcd lease of the asking node and expire with it, whatever happens. A node whose agent is stopped, or cut off
//! from etcd, cannot answer and counts as gone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::listing::get;
use super::rpc::{Change, Compare, KeyValue, Must, Range, Txn, code};
use super::{Store, grants};
use crate::cluster::lease::StoreError;
use crate::cluster::lease::store::DEADLINE;

/// How long to wait for an answer if etcd is fast. An agent answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest wait, if etcd is slow.
const LONGEST: Duration = Duration::from_secs(12);

/// The interval between two reads of the answer.
const LOOK: Duration = Duration::from_millis(100);

/// The TTL of the keys in seconds, should nobody delete them.
const TTL: i64 = 30;

/// How long an answer waits for its own address: a lease that is only looked at is locked for as long as etcd takes to reply.
const MOMENT: Duration = Duration::from_millis(300);

/// The last path element of an answer's key.
const ALIVE: &str = "/alive";

/// Whether an owner is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It answered from this address, as the answer says.
    Alive(String),
    /// Nobody answered in time.
    Silent,
    /// It cannot be asked, with the reason.
    Unknown(String),
}

/// The keys of this process's own open questions. It does not answer them: it may hold a lease and ask whether that
/// lease is still its own.
#[derive(Debug, Default)]
pub(super) struct OwnChallenges(Mutex<Vec<String>>);

impl OwnChallenges {
    fn change<T>(&self, change: impl FnOnce(&mut Vec<String>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Registers a question of this process until dropped, even if the caller stops waiting for the answer.
struct OpenChallenge<'a> {
    asked: &'a OwnChallenges,
    question: String,
}

impl<'a> OpenChallenge<'a> {
    fn new(asked: &'a OwnChallenges, question: String) -> Self {
        asked.change(|asked| asked.push(question.clone()));
        Self { asked, question }
    }
}

impl Drop for OpenChallenge<'_> {
    fn drop(&mut self) {
        self.asked
            .change(|asked| asked.retain(|own| *own != self.question));
    }
}

/// Whether an owner ID can be part of a key. All that Selvage generates or accepts from an administrator can.
fn is_askable(owner: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&owner.len()) && owner.bytes().all(allowed)
}

/// The key prefix of all questions to an owner.
pub(super) fn questions(store: &Store, owner: &str) -> Option<String> {
    is_askable(owner).then(|| format!("{}{owner}/", store.keys.challenges))
}

/// Asks an owner whether it is alive. `asker` becomes the question's value.
pub(super) async fn ask(store: &Store, owner: &str, asker: &str) -> Result<Answer, StoreError> {
    let Some(folder) = questions(store, owner) else {
        return Ok(Answer::Unknown(
            "its owner ID is not in Selvage's form".to_owned(),
        ));
    };
    let id = grants::new_id();
    let question = format!("{folder}{id:x}");
    let _open = OpenChallenge::new(&store.asked, question.clone());
    let answer = ask_as(store, &question, id, asker).await;
    // Revoking the etcd lease deletes both keys. If it fails, they expire.
    let revoked = store.servers.call(|client| client.revoke(id));
    if let Err(error) = revoked.await {
        debug!("failed to delete a challenge before its etcd lease expires: {error}");
    }
    match answer {
        Err(StoreError::Refused {
            code: code::PERMISSION_DENIED,
            reason,
            ..
        }) => Ok(Answer::Unknown(format!(
            "{reason}; the etcd role needs readwrite below {folder}"
        ))),
        answer => answer,
    }
}

async fn ask_as(store: &Store, question: &str, id: i64, asker: &str) -> Result<Answer, StoreError> {
    let servers = &store.servers;
    // If it exists, an earlier request was committed but its reply lost.
    let _ = grants::request(servers, id, TTL).await?;
    let answer = format!("{question}{ALIVE}");
    let begun = Instant::now();
    let put = Txn {
        when: Vec::new(),
        key: question.into(),
        change: Change::Put {
            value: asker.into(),
            etcd_lease: id,
        },
    };
    servers.call(|client| client.txn(put.clone())).await?;
    // If etcd is slow for us, it is slow for the other node, which has to read and write as well.
    let patience = (PATIENCE + 4 * begun.elapsed()).min(LONGEST);
    let deadline = Instant::now() + patience;
    loop {
        let found = get(servers, Range::key(answer.as_str())).await?;
        if let Some(kv) = found.kvs.first() {
            let from = String::from_utf8_lossy(&kv.value).into_owned();
            return Ok(Answer::Alive(from));
        }
        if Instant::now() >= deadline {
            return Ok(Answer::Silent);
        }
        sleep(LOOK).await;
    }
}

/// The questions that are open already.
pub(super) async fn earlier(store: &Store, questions: &str) -> Vec<KeyValue> {
    // Bounded, since other nodes decide how many keys there are.
    let range = Range {
        limit: 16,
        ..Range::folder(questions)
    };
    match get(&store.servers, range).await {
        Ok(found) => found.kvs,
        Err(error) => {
            debug!("failed to list the challenges to this node: {error}");
            Vec::new()
        }
    }
}

/// Answers a question if this node holds a lease.
pub(super) async fn answer(store: &Store, question: &KeyValue) {
    let key = String::from_utf8_lossy(&question.key).into_owned();
    let is_own = store.asked.change(|asked| asked.contains(&key));
    if is_own || key.ends_with(ALIVE) {
        return;
    }
    // A lease that stays locked is being written, so it is held.
    let own = match timeout(MOMENT, store.held.lock()).await {
        Ok(held) => match held.as_ref() {
            Some(held) => held.wanted.public_address().to_string(),
            None => return,
        },
        Err(_) => String::new(),
    };
    let asker = crate::base::go_json::shorten(&String::from_utf8_lossy(&question.value));
    info!(
        asker,
        "another node has this node's owner ID or address, and asks whether this node is alive"
    );
    // The answer shares the question's etcd lease: without the question, nothing would delete it.
    let txn = Txn {
        when: vec![Compare::key(key.as_str(), Must::Exist)],
        key: format!("{key}{ALIVE}").into(),
        change: Change::Put {
            value: own.into(),
            etcd_lease: question.lease,
        },
    };
    let answered = store.servers.call(|client| client.txn(txn.clone()));
    match timeout(DEADLINE, answered).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => info!("failed to answer that this node is alive: {error}"),
        Err(_) => info!("failed to answer that this node is alive: etcd did not reply in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_selvage_makes_are_asked() {
        let long = "x".repeat(65);
        for (owner, askable) in [
            ("5f1d0c3b5f1d0c3b5f1d0c3b5f1d0c3b", true),
            ("node-1.example_org", true),
            ("", false),
            ("a/b", false),
            ("\u{e9}", false),
            (long.as_str(), false),
        ] {
            assert_eq!(is_askable(owner), askable, "{owner}");
        }
    }
}
