//! Listing all leases page by page, and reporting keys that cannot be parsed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Store;
use super::history::{KeyDigest, ListedKeys};
use super::rpc::{Header, KeyValue, Range, Ranged, code};
use super::servers::Servers;
use super::settings::Keys;
use crate::base::go_json::shorten;
use crate::base::retry::random_seed;
use crate::cluster::lease::store::DEADLINE;
use crate::cluster::lease::store::spread::before_list;
use crate::cluster::lease::{Lease, LeaseAttrs, StoreError, SubnetKey};

/// Keys per page, unless there are many.
const PAGE: i64 = 5000;

/// The most keys per page: with many more than there are subnets in 10.0.0.0/8, a page would be too long for a message.
const LONGEST_PAGE: i64 = 16_384;

/// How many keys to ask for at once, given how many there are in all. With every page etcd counts what is left of the
/// range (`rangeKeys`, server/storage/mvcc/kvstore_txn.go), so that in pages of 5,000 a list of 65,000 leases cost it
/// twice what it costs in one. A page of a sixth takes this node some five MiB then.
pub(super) fn page_size(count: usize) -> i64 {
    let sixth = i64::try_from(count.div_ceil(6)).unwrap_or(i64::MAX);
    sixth.clamp(PAGE, LONGEST_PAGE)
}

/// All leases at one revision of the store.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) revision: i64,
    /// The revision up to which [`Self::refresh`] has added leases.
    pub(super) refreshed: i64,
    pub(super) entries: Vec<Entry>,
    /// All keys, including those that name no subnet.
    pub(super) listed: ListedKeys,
}

/// One lease key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: SubnetKey,
    /// `None` if the value cannot be parsed; the subnet is taken all the same.
    pub(super) attrs: Option<LeaseAttrs>,
    pub(super) created: i64,
    pub(super) modified: i64,
    /// The etcd lease that the key is attached to; `None` for a reservation, which never expires.
    pub(super) etcd_lease: Option<i64>,
}

impl Entry {
    pub(super) fn into_lease(self) -> Option<Lease> {
        Some(Lease {
            key: self.key,
            attrs: self.attrs?,
            created: to_unsigned(self.created),
        })
    }
}

/// Revisions are never negative.
pub(super) fn to_unsigned(revision: i64) -> u64 {
    revision.unsigned_abs()
}

impl Listing {
    /// Adds the leases that were written since, without listing all again unless another cluster answers, or one that is
    /// behind. Those that are gone stay, so some that are free may count as taken. A watch from [`Self::revision`] on
    /// reports everything once more.
    pub(super) async fn refresh(&mut self, store: &Store) -> Result<(), StoreError> {
        let Store { keys, reports, .. } = store;
        let range = Range {
            min_modified: self.refreshed.saturating_add(1),
            ..Range::between(keys.subnets.as_str(), keys.subnets_end.as_str())
        };
        let asked = Instant::now();
        let found = get(&store.servers, range).await.inspect_err(|error| {
            note_silence(store, asked, error);
        })?;
        let is_later = |header: Header| {
            header.cluster == self.listed.cluster && header.revision >= self.refreshed
        };
        if !found.header.is_some_and(is_later) {
            // Of another history, in which these leases may not be.
            *self = list(store).await?;
            return Ok(());
        }
        let written = found.kvs.iter().filter_map(|kv| reports.entry(keys, kv));
        let mut written: BTreeMap<_, _> = written.map(|entry| (entry.key, entry)).collect();
        for entry in &mut self.entries {
            if let Some(newer) = written.remove(&entry.key) {
                *entry = newer;
            }
        }
        self.entries.extend(written.into_values());
        self.refreshed = found
            .header
            .map_or(self.refreshed, |header| header.revision);
        Ok(())
    }

    /// Keeps it for the next attempt: [`Self::refresh`] got no answer. Servers that thousands of nodes ask at once must
    /// not send every lease again to each that lost a race.
    pub(super) fn keep(self, store: &Store) {
        *store.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some((self, Instant::now()));
    }

    /// One that was kept, if it can be refreshed still.
    pub(super) fn kept(store: &Store) -> Option<Self> {
        let kept = store
            .whole
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (listing, at) = kept?;
        listing.goes_on(store, at).then_some(listing)
    }

    /// Whether one that was kept at a time may be continued: what it was begun for is the same still.
    fn goes_on(&self, store: &Store, kept: Instant) -> bool {
        /// Longer than any pause before a list. If etcd compacts the revision meanwhile, the list starts over.
        const LONGEST: Duration = Duration::from_secs(1200);
        kept.elapsed() < LONGEST && self.listed.asked == store.servers.history.mark()
    }

    /// The readable leases, and the keys of the others.
    pub(super) fn into_leases(self) -> (Vec<Lease>, Vec<SubnetKey>) {
        let (mut leases, mut unreadable) = (Vec::with_capacity(self.entries.len()), Vec::new());
        for entry in self.entries {
            let key = entry.key;
            match entry.into_lease() {
                Some(lease) => leases.push(lease),
                None => unreadable.push(key),
            }
        }
        (leases, unreadable)
    }
}

/// Lists all leases as of one revision.
pub(super) async fn list(store: &Store) -> Result<Listing, StoreError> {
    let listed = list_in_pages(store).await;
    if listed.is_ok() {
        store.list_timed_out.store(false, Ordering::Relaxed);
    }
    listed
}

/// After a list that nobody answered in time, waits like a node of a cluster that lists again: servers that have more to
/// send than they can must not be asked again at once.
pub(super) async fn pause_after_timeout(store: &Store) -> Result<(), StoreError> {
    if !store.list_timed_out.load(Ordering::Relaxed) {
        return Ok(());
    }
    // Counted again each time: a cluster that starts grows meanwhile.
    let counted = count(store).await?;
    let nodes = store.state.hold_down().population().max(counted);
    sleep(before_list(nodes, &mut random_seed())).await;
    store.list_timed_out.store(false, Ordering::Relaxed);
    Ok(())
}

/// The number of lease keys.
async fn count(store: &Store) -> Result<usize, StoreError> {
    let keys = &store.keys;
    let range = Range {
        count_only: true,
        ..Range::between(keys.subnets.as_str(), keys.subnets_end.as_str())
    };
    let found = get(&store.servers, range).await?;
    Ok(usize::try_from(found.count).unwrap_or(0))
}

/// Pages shrink when a message is too long; a compaction between two pages starts the list over.
async fn list_in_pages(store: &Store) -> Result<Listing, StoreError> {
    const ATTEMPTS: u32 = 16;
    let mut longest = i64::MAX;
    for _ in 1..ATTEMPTS {
        match list_by(store, longest).await {
            Err(StoreError::Refused {
                code: code::OUT_OF_RANGE,
                reason,
                ..
            }) => {
                if !is_compaction(&reason) {
                    longest = (longest.min(PAGE) / 8).max(1);
                }
            }
            result => return result,
        }
    }
    list_by(store, longest).await
}

/// Whether an out-of-range error is about a compacted revision (etcd: `mvcc: required revision has been compacted`),
/// not about the length of a message.
pub(super) fn is_compaction(reason: &str) -> bool {
    reason.contains("compacted")
}

/// A list of which some pages are missing, for the next attempt: servers that are slow because thousands of nodes list
/// at once must not send all pages again for one that came too late.
#[derive(Debug)]
pub(super) struct Unfinished {
    listing: Listing,
    /// How many keys there are, as far as known.
    count: usize,
    /// Where the next page starts.
    start: Vec<u8>,
    /// When it was given up last.
    kept: Instant,
    /// How often in a row the next page was not there in time.
    silences: u32,
}

impl Unfinished {
    fn begin(store: &Store) -> Self {
        let listed = ListedKeys {
            asked: store.servers.history.mark(),
            ..ListedKeys::default()
        };
        Self {
            listing: Listing {
                revision: 0,
                refreshed: 0,
                entries: Vec::new(),
                listed,
            },
            count: 0,
            start: store.keys.subnets.clone().into_bytes(),
            kept: Instant::now(),
            silences: 0,
        }
    }

    /// How many keys to ask for at once. Servers that many nodes ask at the same time may be slow once; where the same
    /// page comes too late again, the way may be too slow for it.
    fn page_size(&self) -> i64 {
        match self.silences {
            0 | 1 => page_size(self.count),
            _ => PAGE,
        }
    }

    /// One that was begun earlier, if what it was begun for is the same still.
    fn resume(store: &Store) -> Option<Self> {
        let kept = store
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        kept.filter(|it| it.listing.goes_on(store, it.kept))
    }

    fn keep(mut self, store: &Store) {
        self.kept = Instant::now();
        if self.listing.revision != 0 {
            *store
                .unfinished
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(self);
        }
    }

    /// Adds a page. Returns whether it was the last; `None` if it comes from another cluster than the others.
    fn add(&mut self, store: &Store, page: &Ranged) -> Option<bool> {
        let Self {
            listing,
            start,
            count,
            silences,
            ..
        } = self;
        *silences = 0;
        let (cluster, revision) = page.header.map_or((0, 0), |it| (it.cluster, it.revision));
        if listing.revision == 0 {
            *count = usize::try_from(page.count).unwrap_or(0);
            store.state.hold_down().counted(*count);
            listing.revision = revision;
            listing.refreshed = revision;
            (listing.listed.cluster, listing.listed.revision) = (cluster, revision);
        } else if listing.listed.cluster != cluster {
            return None;
        }
        let kvs = page.kvs.iter();
        let entries = kvs
            .clone()
            .filter_map(|kv| store.reports.entry(&store.keys, kv));
        listing.entries.extend(entries);
        listing.listed.digests.extend(kvs.map(KeyDigest::new));
        if let Some(last) = page.kvs.last().filter(|_| page.more) {
            *start = [&last.key[..], b"\0"].concat();
            return Some(false);
        }
        Some(true)
    }
}

/// `longest`: the most keys per page.
async fn list_by(store: &Store, longest: i64) -> Result<Listing, StoreError> {
    let mut unfinished = Unfinished::resume(store).unwrap_or_else(|| Unfinished::begin(store));
    loop {
        let range = Range {
            limit: unfinished.page_size().min(longest),
            revision: unfinished.listing.revision,
            ..Range::between(unfinished.start.clone(), store.keys.subnets_end.as_str())
        };
        let asked = Instant::now();
        let found = match get(&store.servers, range).await {
            Ok(found) => found,
            Err(error) => {
                let is_silence = note_silence(store, asked, &error);
                if matches!(error, StoreError::Unreachable { .. }) {
                    unfinished.silences += u32::from(is_silence);
                    unfinished.keep(store);
                }
                return Err(error);
            }
        };
        match unfinished.add(store, &found) {
            Some(true) => return Ok(unfinished.listing),
            Some(false) => {}
            None => unfinished = Unfinished::begin(store),
        }
    }
}

/// Notes, and returns, whether a request for many leases failed because nobody answered in time. Who refuses a connection
/// does so at once.
fn note_silence(store: &Store, asked: Instant, error: &StoreError) -> bool {
    let is_unreachable = matches!(error, StoreError::Unreachable { .. });
    let is_silence = is_unreachable && asked.elapsed() >= DEADLINE;
    if is_unreachable {
        store.list_timed_out.store(is_silence, Ordering::Relaxed);
    }
    is_silence
}

/// One read of the store.
pub(super) async fn get(servers: &Servers, range: Range) -> Result<Ranged, StoreError> {
    let asked = servers.history.mark();
    let ranged = servers.call(|client| client.range(range.clone())).await?;
    // Reads are linearizable: a reply is never older than what any member has returned before.
    let revision = ranged.header.map(|header| header.revision);
    servers.history.check_reply(ranged.header, asked, revision);
    Ok(ranged)
}

/// Which unreadable keys were reported, so that each is reported once, and again only when its content changes.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Hash of the key → hash of the value that was reported.
    seen: Mutex<HashMap<u64, u64>>,
}

/// More unreadable keys than this are no accident; forgetting them only costs repeated messages.
const MOST_REPORTS: usize = 10_000;

impl Reports {
    /// Parses one key and value. `None` if the key names no subnet. Logs a warning once per key that cannot be parsed,
    /// or whose value cannot.
    pub(super) fn entry(&self, keys: &Keys, kv: &KeyValue) -> Option<Entry> {
        let key = keys
            .subnet(&kv.key)?
            .inspect_err(|error| self.report(kv, error))
            .ok()?;
        let attrs = match LeaseAttrs::parse(&kv.value) {
            Ok(attrs) => Some(attrs),
            Err(error) => {
                self.report(kv, &error);
                None
            }
        };
        Some(Entry {
            key,
            attrs,
            created: kv.created,
            modified: kv.modified,
            etcd_lease: Some(kv.lease).filter(|id| *id != 0),
        })
    }

    fn report(&self, kv: &KeyValue, error: &dyn std::error::Error) {
        if let Some(unreadable) = self.first_time(&kv.key, &kv.value) {
            let key = shorten(&String::from_utf8_lossy(&kv.key));
            let revision = kv.modified;
            warn!(
                key,
                revision, unreadable, "ignoring an unreadable lease: {error}"
            );
        }
    }

    /// The number of keys reported so far, if this content of this key was not among them.
    fn first_time(&self, key: &[u8], value: &[u8]) -> Option<usize> {
        let hash = |bytes: &[u8]| {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            hasher.finish()
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST_REPORTS {
            seen.clear();
        }
        let content = hash(value);
        (seen.insert(hash(key), content) != Some(content)).then_some(seen.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::EtcdStore;
    use super::*;
    use crate::settings::Etcd;

    #[test]
    fn a_page_that_is_late_again_is_asked_for_shorter_until_one_is_there() {
        let settings = Etcd {
            endpoints: vec!["http://etcd:2379".to_owned()],
            ..Etcd::default()
        };
        let store = EtcdStore::new(settings, "node".to_owned()).unwrap().store;
        let mut unfinished = Unfinished::begin(&store);
        unfinished.count = 65_000;
        unfinished.listing.revision = 7;
        for (silences, size) in [(0, 10_834), (1, 10_834), (2, PAGE), (3, PAGE)] {
            unfinished.silences = silences;
            // As the next attempt finds it.
            unfinished.keep(&store);
            unfinished = Unfinished::resume(&store).unwrap();
            assert_eq!(unfinished.page_size(), size, "{silences}");
        }
        let page = Ranged {
            header: None,
            kvs: Vec::new(),
            more: false,
            count: 65_000,
        };
        unfinished.add(&store, &page);
        assert_eq!(unfinished.page_size(), 10_834);
    }

    #[test]
    fn a_long_list_comes_in_seven_pages_at_most() {
        for (count, size) in [(0, 5000), (30_000, 5000), (30_001, 5001), (65_000, 10_834)] {
            assert_eq!(page_size(count), size, "{count}");
        }
        assert!(page_size(usize::MAX) > 0);
    }

    #[test]
    fn each_content_of_a_key_is_reported_once() {
        let reports = Reports::default();
        assert_eq!(reports.first_time(b"a", b"x"), Some(1));
        assert_eq!(reports.first_time(b"a", b"x"), None);
        assert_eq!(reports.first_time(b"b", b"x"), Some(2));
        assert_eq!(reports.first_time(b"a", b"y"), Some(2));
        assert_eq!(reports.first_time(b"a", b"y"), None);
    }
}
