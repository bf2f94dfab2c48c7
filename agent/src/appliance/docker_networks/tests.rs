use std::io::Read;

use proptest::prelude::*;

use super::*;

mod pages;

/// What a power cut left while Docker 26.1 started: the bridge driver's `docker0` without its network, beside the
/// networks `host` and `none`.
const TORN: &[u8] = include_bytes!("power-cut.db.gz");
const ORPHAN: &str = "847e9894593b0b5fc7d0135f3a508d7b6e940f2eba58ce237b920f9c34dc93a3";

fn torn() -> Vec<u8> {
    let mut data = Vec::new();
    flate2::read::GzDecoder::new(TORN)
        .read_to_end(&mut data)
        .unwrap();
    data
}

/// A machine with this store.
fn machine(store: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(DATA).join(STORE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, store).unwrap();
    (root, path)
}

fn keys(data: Vec<u8>) -> Vec<String> {
    let records = Bolt::new(data).unwrap().records(BUCKET).unwrap();
    records
        .iter()
        .map(|record| String::from_utf8(record.key.clone()).unwrap())
        .collect()
}

#[test]
fn a_bridge_without_a_network_is_removed_and_nothing_else() {
    let before = keys(torn());
    assert_eq!(before.len(), 6, "{before:#?}");
    let (root, path) = machine(&torn());
    assert_eq!(mend(root.path()).unwrap(), [ORPHAN]);
    let after = keys(fs::read(&path).unwrap());
    let expected: Vec<_> = before
        .iter()
        .filter(|key| !key.starts_with(OF_DRIVER))
        .cloned()
        .collect();
    assert_eq!(after, expected);
    assert_eq!(after.len(), 5);
    // The values are those that were there: a record's place is counted anew.
    let data = fs::read(&path).unwrap();
    assert_eq!(data.len(), torn().len());
    let changed = data
        .iter()
        .zip(&torn())
        .filter(|(now, former)| now != former)
        .count();
    assert!(changed < 100, "{changed}");
    assert_eq!(
        fs::read(root.path().join(DATA).join(BACKUP)).unwrap(),
        torn()
    );
    assert!(mend(root.path()).unwrap().is_empty());
}

#[test]
fn docker_may_keep_its_data_elsewhere() {
    let (root, path) = machine(&torn());
    let elsewhere = root.path().join("srv/docker");
    fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    fs::rename(root.path().join(DATA), &elsewhere).unwrap();
    assert!(mend(root.path()).unwrap().is_empty() && !path.exists());
    fs::create_dir_all(root.path().join("etc/docker")).unwrap();
    fs::write(
        root.path().join(SETTINGS),
        r#"{"data-root": "/srv/docker", "live-restore": true}"#,
    )
    .unwrap();
    assert_eq!(mend(root.path()).unwrap(), [ORPHAN]);
}

#[test]
fn what_is_no_store_is_left_to_docker() {
    let whole = torn();
    for data in [
        &[][..],
        b"rubbish",
        &whole[..4096],
        &[0; 32768],
        &whole[..6000],
    ] {
        let (root, path) = machine(data);
        let _ = mend(root.path());
        assert_eq!(fs::read(&path).unwrap(), data);
    }
    assert!(mend(Path::new("/nonexistent")).unwrap().is_empty());
}

/// A power cut while the first pages are written: the other one counts, with the state before.
#[test]
fn of_two_first_pages_one_may_be_torn() {
    let mut data = torn();
    let size = 4096;
    let latest = [0, size]
        .into_iter()
        .max_by_key(|page| data[page + PAGE_OF_TRANSACTION])
        .unwrap();
    data[latest + 60] ^= 1;
    let former = Bolt::new(data.clone()).unwrap();
    assert!(former.records(BUCKET).is_some());
    data[size - latest + 60] ^= 1;
    assert!(Bolt::new(data).is_none());
}

#[test]
fn a_store_in_use_is_left_alone() {
    let (root, path) = machine(&torn());
    let dockerd = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
    assert!(mend(root.path()).unwrap().is_empty());
    assert_eq!(fs::read(&path).unwrap(), torn());
    drop(dockerd);
    assert_eq!(mend(root.path()).unwrap(), [ORPHAN]);
}

/// The lowest byte of the transaction's number in a first page.
const PAGE_OF_TRANSACTION: usize = 16 + 48;

proptest! {
    /// Whatever is in the file, nothing panics, and a store that is changed differs by the records that were named.
    #[test]
    fn a_damaged_store_is_never_made_worse(changes in prop::collection::vec((0..65536_usize, any::<u8>()), 0..12)) {
        let mut data = torn();
        for (at, byte) in changes {
            data[at] = byte;
        }
        let (root, path) = machine(&data);
        let mended = mend(root.path());
        let now = fs::read(&path).unwrap();
        match mended {
            Ok(gone) if !gone.is_empty() => {
                let records = |data| Bolt::new(data).unwrap().records(BUCKET).unwrap();
                prop_assert_eq!(records(now).len() + gone.len(), records(data).len());
            }
            _ => prop_assert_eq!(now, data),
        }
    }
}
