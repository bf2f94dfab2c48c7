//! Whether etcd still has the history that the watch is based on.
//!
//! A restored backup or a rebuilt cluster counts its revisions from elsewhere, and may be past the last one seen by the
//! time this node reconnects. With the old addresses and token it even has the old cluster ID, which etcd derives from
//! them. So when a watch starts anew, or some time after it was resumed, all leases are listed, and the state known at
//! the last revision must be part of what etcd has. This check only decides what is reported; the agent follows the list
//! in any case.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::rpc::{Header, KeyValue};

/// A lease key as of its last change, in 24 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyDigest {
    key: u64,
    modified: i64,
    /// A hash of etcd's counters of the key; they identify the value.
    content: u64,
}

impl KeyDigest {
    pub(super) fn new(kv: &KeyValue) -> Self {
        let counted = (kv.created, kv.modified, kv.version, kv.lease);
        Self {
            key: hash(&kv.key),
            modified: kv.modified,
            content: hash(&counted),
        }
    }
}

/// All lease keys at one revision, including those whose names cannot be parsed.
#[derive(Clone, Debug, Default)]
pub(super) struct ListedKeys {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    /// What the watch was based on when the list was requested.
    pub(super) asked: Mark,
    pub(super) digests: Vec<KeyDigest>,
}

/// What the watch is based on at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mark {
    /// 0 before the first list.
    cluster: u64,
    revision: i64,
    /// The number of full lists so far.
    lists: u64,
}

impl Mark {
    /// The last revision seen; `None` before the first list.
    pub(super) fn seen(self) -> Option<i64> {
        (self.cluster != 0).then_some(self.revision)
    }
}

/// What the watch is based on: the cluster, the last revision seen, and the lease keys as of that revision.
#[derive(Debug, Default)]
pub(super) struct History {
    known: Mutex<Known>,
    on_contradiction: Notify,
}

#[derive(Debug, Default)]
struct Known {
    mark: Mark,
    /// Hash of the key → [`KeyDigest::content`].
    keys: HashMap<u64, u64>,
    /// The changes that the watch left out: after the first of these revisions, up to the second.
    skipped: Option<(i64, i64)>,
    /// Whether a reply since the last full list contradicted it.
    contradicted: bool,
}

impl History {
    /// What the reply to a request sent now must match.
    pub(super) fn mark(&self) -> Mark {
        self.known().mark
    }

    /// Records which cluster replied to a request, and at which revision if the reply was linearizable: other members
    /// may lag behind this one.
    pub(super) fn check_reply(&self, header: Option<Header>, asked: Mark, revision: Option<i64>) {
        let Some(header) = header else { return };
        let mut known = self.known();
        // Requests sent before the last full list carry a mark that no longer applies.
        if asked.cluster == 0 || asked.lists != known.mark.lists {
            return;
        }
        if header.cluster != asked.cluster || revision.is_some_and(|now| now < asked.revision) {
            known.contradicted = true;
            drop(known);
            self.on_contradiction.notify_one();
        }
    }

    /// Records which cluster replied to a request whose revision proves nothing.
    pub(super) fn check_cluster(&self, header: Option<Header>) {
        self.check_reply(header, self.mark(), None);
    }

    /// Returns when a reply contradicts what the watch is based on. Cancel-safe.
    pub(super) async fn contradicted(&self) {
        while !self.known().contradicted {
            self.on_contradiction.notified().await;
        }
    }

    /// Whether a watch message comes from the history in which the watch started. `first` is the revision of its first
    /// event.
    pub(super) fn fits(&self, header: Option<Header>, first: Option<i64>) -> bool {
        let known = self.known();
        header.is_none_or(|header| header.cluster == known.mark.cluster)
            && first.is_none_or(|first| first > known.mark.revision)
    }

    /// Applies a change from the watch. `gone`: the key was deleted.
    pub(super) fn follow(&self, kv: &KeyValue, gone: bool) {
        let digest = KeyDigest::new(kv);
        let mut known = self.known();
        match gone {
            true => known.keys.remove(&digest.key),
            false => known.keys.insert(digest.key, digest.content),
        };
    }

    /// The watch has delivered everything up to this revision.
    pub(super) fn reach(&self, revision: i64) {
        let mut known = self.known();
        known.mark.revision = known.mark.revision.max(revision);
    }

    /// The watch goes on from this revision, without what has happened since the last one seen: the next list shows it.
    pub(super) fn skip_to(&self, next: i64) {
        let mut known = self.known();
        let (seen, last) = (known.mark.revision, next.saturating_sub(1));
        if last > seen {
            let since = known.skipped.map_or(seen, |(since, _)| since);
            known.skipped = Some((since, last));
            known.mark.revision = last;
        }
    }

    /// From now on the watch is based on this list.
    pub(super) fn start_from(&self, listed: &ListedKeys) {
        let mut known = self.known();
        let digests = listed.digests.iter();
        *known = Known {
            mark: Mark {
                cluster: listed.cluster,
                revision: listed.revision,
                lists: known.mark.lists + 1,
            },
            keys: digests.map(|digest| (digest.key, digest.content)).collect(),
            skipped: None,
            contradicted: false,
        };
    }

    /// What in a list cannot follow from the known state; `None` if everything can, as far as the list shows.
    pub(super) fn contradiction(&self, listed: &ListedKeys) -> Option<String> {
        let known = self.known();
        let (mark, asked) = (known.mark, listed.asked);
        if mark.cluster == 0 {
            return None;
        }
        if listed.cluster != mark.cluster {
            return Some(format!(
                "the cluster ID changed from {:x} to {:x}",
                mark.cluster, listed.cluster
            ));
        }
        if asked.lists == mark.lists && listed.revision < asked.revision {
            return Some(format!(
                "the revision went back from {} to {}",
                asked.revision, listed.revision
            ));
        }
        // The watch advanced while the list was read.
        if listed.revision < mark.revision {
            return None;
        }
        let was_seen = |modified: i64| {
            let skipped = known.skipped;
            modified <= mark.revision
                && skipped.is_none_or(|(since, last)| modified <= since || modified > last)
        };
        let mut old = listed
            .digests
            .iter()
            .filter(|digest| was_seen(digest.modified));
        let strange = old.find(|digest| known.keys.get(&digest.key) != Some(&digest.content))?;
        Some(format!(
            "it has a lease of revision {} that was not there at revision {}",
            strange.modified, mark.revision
        ))
    }

    /// The number of lease keys at the last revision seen, with that revision, if it can be compared with a later list.
    pub(super) fn count(&self, listed: &ListedKeys) -> Option<(i64, usize)> {
        let known = self.known();
        let comparable = known.mark.cluster != 0
            && known.skipped.is_none()
            && listed.revision >= known.mark.revision;
        comparable.then(|| (known.mark.revision, known.keys.len()))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Valid at every step, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of a cluster at a revision; keys by number, each with the revision of its last change.
    fn list_of(cluster: u64, revision: i64, keys: &[(u64, i64)], asked: Mark) -> ListedKeys {
        let digest = |&(key, modified): &(u64, i64)| KeyDigest {
            key,
            modified,
            content: hash(&modified),
        };
        ListedKeys {
            cluster,
            revision,
            asked,
            digests: keys.iter().map(digest).collect(),
        }
    }

    #[test]
    fn what_can_follow_from_what_was_known_is_the_same_history() {
        let history = History::default();
        let first = list_of(7, 10, &[(1, 3), (2, 9)], history.mark());
        assert_eq!(history.contradiction(&first), None);
        history.start_from(&first);
        let asked = history.mark();
        for (cluster, revision, keys, other) in [
            (7, 10, &[(1, 3), (2, 9)][..], false),
            // Changed, deleted and created since.
            (7, 40, &[(2, 11), (3, 40)][..], false),
            (8, 10, &[(1, 3), (2, 9)][..], true),
            (7, 9, &[(1, 3), (2, 9)][..], true),
            (7, 40, &[(1, 4), (2, 9)][..], true),
            (7, 40, &[(1, 3), (2, 9), (3, 10)][..], true),
        ] {
            let listed = list_of(cluster, revision, keys, asked);
            let found = history.contradiction(&listed);
            assert_eq!(found.is_some(), other, "{listed:?}: {found:?}");
        }
    }

    /// The watch saw up to 10, left out 11 to 19, and then saw 25.
    #[test]
    fn what_the_watch_left_out_is_no_contradiction_and_the_rest_still_is() {
        let history = History::default();
        history.start_from(&list_of(7, 10, &[(1, 3), (2, 9)], Mark::default()));
        history.skip_to(15);
        history.skip_to(20);
        // It is not ahead of this.
        history.skip_to(12);
        assert_eq!(history.mark().seen(), Some(19));
        history.reach(25);
        for (keys, other) in [
            // Changed, deleted and created while it was not seen.
            (&[(1, 3), (2, 11)][..], false),
            (&[(2, 9), (3, 19)][..], false),
            (&[(1, 4), (2, 9)][..], true),
            (&[(1, 3), (2, 9), (3, 20)][..], true),
        ] {
            let listed = list_of(7, 40, keys, history.mark());
            let found = history.contradiction(&listed);
            assert_eq!(found.is_some(), other, "{listed:?}: {found:?}");
            assert_eq!(history.count(&listed), None);
        }
        let listed = list_of(7, 40, &[(2, 30)], history.mark());
        history.start_from(&listed);
        assert_eq!(history.count(&listed), Some((40, 1)));
    }

    #[test]
    fn a_watch_that_went_on_while_a_list_was_made_is_no_step_back() {
        let history = History::default();
        history.start_from(&list_of(7, 10, &[(1, 3)], Mark::default()));
        let asked = history.mark();
        history.reach(12);
        let listed = list_of(7, 11, &[(1, 11)], asked);
        assert_eq!(history.contradiction(&listed), None);
        assert_eq!(history.count(&listed), None);
        assert_eq!(
            history.count(&list_of(7, 12, &[], history.mark())),
            Some((12, 1))
        );
    }
}
