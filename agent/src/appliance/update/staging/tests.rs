use std::sync::LazyLock;

use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;
use crate::appliance::update::index::{Index, Part};
use crate::appliance::update::samples::{self, Site, noise};

/// One file that is downloaded, its index entry, and the directories.
struct World {
    staging: Staging,
    release: Release,
    _directory: tempfile::TempDir,
}

impl World {
    /// The file's packed bytes, and what the index says that they unpack to.
    fn new(packed: &[u8], unpacked: &[u8]) -> Self {
        let sha256 = |bytes: &[u8]| {
            digest::digest(&digest::SHA256, bytes)
                .as_ref()
                .try_into()
                .unwrap()
        };
        static RELEASE: LazyLock<Release> = LazyLock::new(|| {
            let mut site = Site::new();
            let release = samples::release("1.1", &mut site);
            samples::publish(&mut site, 1, &[release]);
            let mut index = Index::parse(&site["stable.json"], "stable", 0).unwrap();
            index.releases.remove(0)
        });
        let mut release = RELEASE.clone();
        release.files.retain(|file| file.part == Part::Usr);
        let file = &mut release.files[0];
        (file.size, file.sha256) = (packed.len() as u64, sha256(packed));
        (file.unpacked_size, file.unpacked_sha256) = (unpacked.len() as u64, sha256(unpacked));
        let directory = tempfile::tempdir().unwrap();
        let staging = Staging::new(directory.path());
        fs::create_dir_all(staging.of(&release)).unwrap();
        let world = Self {
            staging,
            release,
            _directory: directory,
        };
        fs::write(world.packed(), packed).unwrap();
        world
    }

    fn packed(&self) -> PathBuf {
        self.staging
            .of(&self.release)
            .join(self.release.files[0].name())
    }

    fn unpack(&self) -> Result<Vec<u8>, StagingError> {
        self.staging.unpack(&self.release, &mut |_| ())?;
        let name = self.release.files[0].unpacked_name();
        Ok(fs::read(self.staging.unpacked.join(name)).unwrap())
    }

    /// Whether nothing is left to install.
    fn is_empty(&self) -> bool {
        fs::read_dir(&self.staging.unpacked).map_or(0, Iterator::count) == 0
    }
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// Bytes that compress, with some that do not.
fn content() -> Vec<u8> {
    [
        vec![b'a'; 300_000],
        noise(3, 200_000),
        b"abc".repeat(50_000),
    ]
    .concat()
}

#[test]
fn a_file_unpacks_to_what_was_signed() {
    let content = content();
    let world = World::new(&pack(&content), &content);
    assert!(world.unpack().unwrap() == content);
    assert!(world.staging.is_downloaded(&world.release));
    world.staging.keep_only(Some(&world.release)).unwrap();
    assert!(world.is_empty() && world.packed().exists());
    world.staging.keep_only(None).unwrap();
    assert!(!world.packed().exists());
}

#[test]
fn frames_that_follow_each_other_and_skippable_ones_are_one_file() {
    let content = content();
    let (first, second) = content.split_at(123_456);
    // A skippable frame (RFC 8878 §3.1.2) of five bytes.
    let skippable = b"\x5f\x2a\x4d\x18\x05\x00\x00\x00hello";
    let packed = [&pack(first)[..], skippable, &pack(second), skippable].concat();
    let world = World::new(&packed, &content);
    assert!(world.unpack().unwrap() == content);
}

#[test]
fn what_another_program_packed_is_unpacked() {
    // printf 'slot\n' | zstd -19 | xxd -p
    let packed = b"\x28\xb5\x2f\xfd\x04\x68\x29\x00\x00slot\n\x3a\x28\x30\xd2";
    let world = World::new(packed, b"slot\n");
    assert_eq!(world.unpack().unwrap(), b"slot\n");
}

#[test]
fn a_packed_file_that_changed_is_removed_and_named() {
    let content = content();
    for at in [0, 5, 1000] {
        let world = World::new(&pack(&content), &content);
        let mut bytes = fs::read(world.packed()).unwrap();
        bytes[at] ^= 1;
        fs::write(world.packed(), bytes).unwrap();
        let error = world.unpack().unwrap_err();
        assert!(matches!(error, StagingError::Damaged { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(".usr.raw.zst is not what was downloaded"),
            "{error}"
        );
        assert!(world.is_empty() && !world.packed().exists());
    }
    let world = World::new(&pack(&content), &content);
    fs::remove_file(world.packed()).unwrap();
    assert!(matches!(world.unpack(), Err(StagingError::Damaged { .. })));
}

#[test]
fn nothing_but_what_was_signed_is_left_to_install() {
    let content = content();
    let mut other = content.clone();
    other[0] = b'b';
    let bomb = vec![0; 50_000_000];
    for (packed, unpacked, expected) in [
        (pack(&other), &content, "the SHA-256 differs"),
        (pack(&content[1..]), &content, "649999 of 650000 bytes"),
        (pack(&bomb), &content, "more than 650000 bytes"),
        (
            b"no zstd at all".to_vec(),
            &content,
            "unpacks to something else",
        ),
        (
            pack(&content)[..1000].to_vec(),
            &content,
            "unpacks to something else",
        ),
        // A window of 1 GiB.
        (
            b"\x28\xb5\x2f\xfd\x00\xa0\x01\x00\x00".to_vec(),
            &content,
            "unpacks to something else",
        ),
        (
            b"\x5f\x2a\x4d\x18\xff\xff\xff\xff".to_vec(),
            &content,
            "0 of 650000 bytes",
        ),
    ] {
        let world = World::new(&packed, unpacked);
        let error = world.unpack().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(world.is_empty());
    }
}

#[test]
fn what_an_older_run_left_is_not_installed() {
    let content = content();
    let world = World::new(&pack(&content), &content);
    fs::create_dir_all(world.staging.unpacked.join("directory")).unwrap();
    fs::write(world.staging.unpacked.join("selvage_0.9.efi"), "old").unwrap();
    world.unpack().unwrap();
    assert_eq!(fs::read_dir(&world.staging.unpacked).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn bad_input_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..200), at in 0usize..400, byte in any::<u8>()) {
        let mut frame = b"\x28\xb5\x2f\xfd".to_vec();
        frame.extend(&bytes);
        let _ = World::new(&frame, b"x").unpack();
        let mut packed = pack(&content()[299_900..300_100]);
        if let Some(slot) = packed.get_mut(at) {
            *slot = byte;
        }
        let _ = World::new(&packed, &content()[299_900..300_100]).unpack();
    }
}
