use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use super::esp::KIND;
use super::*;
use crate::appliance::gpt::tests::table;

const MIB: u64 = 1 << 20;

/// As the documentation of Fedora CoreOS has it ("Configuring Storage": a file from a data URL), with values of our
/// own.
const CONFIG: &str = r#"{"ignition":{"version":"3.3.0"},
"storage":{"files":[{"path":"/etc/zincati/config.d/51.toml","contents":{"source":"data:,a%3D1"}}]}}"#;

/// Where it comes to lie.
const EMBEDDED: &str = "loader/credentials/ignition.config.cred";

/// An image of `size` bytes in a directory of its own, whose EFI system partition goes from 1 MiB to 1 MiB before the
/// end.
struct Image {
    directory: tempfile::TempDir,
    size: u64,
}

impl Image {
    /// A table, and nothing else.
    fn of_table(size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = Self { directory, size };
        let sector = |byte: u64| byte / 512;
        let partitions = [
            Some(("selvage_1.0", sector(size - MIB), sector(size) - 34)),
            Some(("selvage-esp", sector(MIB), sector(size - MIB) - 1)),
        ];
        let mut start = table(512, &partitions);
        start[1024 + 128..][..16].copy_from_slice(&KIND);
        fs::write(image.path(), start).unwrap();
        image.file().set_len(size).unwrap();
        image.file().write_all_at(b"of slot A", size - MIB).unwrap();
        image
    }

    /// With a file system, made by mformat(1) with these options.
    fn of_fat(size: u64, options: &[&str]) -> Self {
        let image = Self::of_table(size);
        let done = Command::new("mformat")
            .arg("-i")
            .arg(format!("{}@@{MIB}", image.path().display()))
            .args(options)
            .arg("::")
            .output()
            .expect("mformat (package mtools) makes the partitions of these tests");
        assert!(done.status.success(), "{done:?}");
        image
    }

    /// One of ours, with a file system as systemd-repart makes it: large sectors, FAT32.
    fn new() -> Self {
        let image = Self::of_fat(514 * MIB, &["-F", "-M4096", "-c1", "-T131072"]);
        image.put("EFI/Linux/selvage_1.0+3-0.efi", &[7; 300_000]);
        image.put("EFI/BOOT/BOOTX64.EFI", b"loader");
        image.put("loader/loader.conf", b"timeout 0\n");
        image
    }

    /// A small one, with another kind of FAT; with a UKI or without.
    fn small(uki: bool) -> Self {
        let image = Self::of_fat(10 * MIB, &["-c1", "-T16384"]);
        if uki {
            image.put("EFI/Linux/Selvage_1.0.EFI", b"uki");
        }
        image
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("selvage.raw")
    }

    fn file(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).open(self.path()).unwrap()
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        Esp::new(&self.path(), MIB).write(path, bytes).unwrap();
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        Esp::new(&self.path(), MIB).read(path).unwrap()
    }

    /// Embeds a config; returns what is printed.
    fn embed(&self, config: &str) -> Result<String, Error> {
        let path = self.directory.path().join("node1.ign");
        fs::write(&path, config).unwrap();
        let mut output = Vec::new();
        embed(&self.path(), &path, &mut output)?;
        Ok(String::from_utf8(output).unwrap())
    }

    /// The bytes before and behind the partition.
    fn others(&self) -> [Vec<u8>; 2] {
        [0, self.size - MIB].map(|at| {
            let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
            self.file().read_exact_at(&mut bytes, at).unwrap();
            bytes
        })
    }

    /// All bytes, and how many files lie beside it.
    fn state(&self) -> (Vec<u8>, usize) {
        let beside = fs::read_dir(self.directory.path()).unwrap().count();
        (fs::read(self.path()).unwrap(), beside)
    }

    /// What another implementation of FAT thinks of the partition; `None` where it is not installed.
    fn judged(&self) -> Option<Output> {
        let path = self.directory.path().join("esp");
        let (mut from, mut to) = (self.file(), File::create(&path).unwrap());
        from.seek(SeekFrom::Start(MIB)).unwrap();
        io::copy(&mut (&from).take(self.size - 2 * MIB), &mut to).unwrap();
        ["fsck.vfat", "/usr/sbin/fsck.vfat"]
            .iter()
            .find_map(|program| Command::new(program).arg("-n").arg(&path).output().ok())
    }
}

#[test]
fn a_config_is_put_beside_what_is_there_and_replaced_by_the_next() {
    let image = Image::new();
    let (others, blocks) = (image.others(), image.file().metadata().unwrap().blocks());
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o640)).unwrap();
    let long = CONFIG.replace("a%3D1", &"x".repeat(20_000));
    let mut instead = String::new();
    for config in [&*long, CONFIG, &*long] {
        let said = image.embed(config).unwrap();
        let end = format!("{} bytes{instead})\n", config.len());
        assert!(said.ends_with(&end), "{said}");
        instead = format!(", in place of one of {} bytes", config.len());
        assert_eq!(image.read(EMBEDDED).as_deref(), Some(config.as_bytes()));
    }
    // The rest is as it was, the holes as well.
    assert!(image.others() == others);
    let uki = image.read("EFI/Linux/selvage_1.0+3-0.efi");
    assert!(uki == Some(vec![7; 300_000]));
    assert_eq!(image.read("loader/loader.conf").unwrap(), b"timeout 0\n");
    let metadata = image.file().metadata().unwrap();
    assert!(metadata.blocks() < blocks + 256, "{blocks}: {metadata:?}");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    match image.judged() {
        Some(judged) => assert!(judged.status.success(), "{judged:?}"),
        None => eprintln!("skipped fsck.vfat: it is not installed (package dosfstools)"),
    }
}

#[test]
fn configs_of_other_projects_arrive_as_they_are() {
    let image = Image::small(true);
    for config in [
        include_str!("../ignition/check/fixtures/flannel-of-flatcar.ign"),
        include_str!("../ignition/check/fixtures/docker.ign"),
        include_str!("../ignition/check/fixtures/spec-3-5.ign"),
    ] {
        image.embed(config).unwrap();
        assert_eq!(image.read(EMBEDDED).as_deref(), Some(config.as_bytes()));
    }
}

#[test]
fn the_same_config_makes_the_same_image() {
    let one = Image::small(true);
    let other = Image {
        directory: tempfile::tempdir().unwrap(),
        size: one.size,
    };
    fs::copy(one.path(), other.path()).unwrap();
    let [one, other] = [one, other].map(|image| {
        image.embed(CONFIG).unwrap();
        // FAT knows times to two seconds.
        std::thread::sleep(std::time::Duration::from_secs(2));
        image.state()
    });
    assert!(one == other);
}

#[test]
fn what_is_no_image_of_ours_is_refused_and_left_alone() {
    let starting = |bytes: &[u8]| {
        let image = Image::small(true);
        image.file().write_all_at(bytes, 0).unwrap();
        image
    };
    let cut = Image::small(true);
    cut.file().set_len(5 * MIB).unwrap();
    let outgrown = Image::small(true);
    // The number of its sectors: 10 MiB, in a partition of 8.
    outgrown
        .file()
        .write_all_at(&20480_u16.to_le_bytes(), MIB + 19)
        .unwrap();
    let short = Image::of_table(10 * MIB);
    short.file().set_len(700).unwrap();
    let full = CONFIG.replace("a%3D1", &"x".repeat(9 << 20));
    let raw = "make it a raw image";
    let no_uki = "has no EFI/Linux/selvage_VERSION.efi";
    let no_esp = "it has no partition table with an EFI system partition";
    for (image, config, expected) in [
        (
            starting(b"QFI\xfb"),
            CONFIG,
            &*format!("is a qcow2 image: {raw} (qemu-img convert -O raw)"),
        ),
        (
            starting(b"\x28\xb5\x2f\xfd"),
            CONFIG,
            &*format!("is packed by zstd: {raw} (zstd -d)"),
        ),
        (starting(&[0; 1024]), CONFIG, no_esp),
        (short, CONFIG, no_esp),
        (
            cut,
            CONFIG,
            "its EFI system partition is longer than the file",
        ),
        (outgrown, CONFIG, "has a file system that is larger than it"),
        (Image::of_table(10 * MIB), CONFIG, no_uki),
        (Image::small(false), CONFIG, no_uki),
        (
            Image::small(true),
            &full,
            "failed to put the config onto the EFI system partition of",
        ),
        (
            Image::small(true),
            "#cloud-config\n",
            "node1.ign: 2 faults that would stop the first boot",
        ),
        (Image::small(true), " \n", "node1.ign is empty"),
    ] {
        fs::write(image.directory.path().join("node1.ign"), "").unwrap();
        let before = image.state();
        let error = image.embed(config).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(expected), "{expected:?} is not in {said}");
        let is_config = said.contains("node1.ign");
        assert_eq!(error.is_bad_configuration(), is_config, "{said}");
        assert!(image.state() == before, "{said}: the image was changed");
    }
}

#[test]
fn only_files_are_images() {
    let image = Image::small(true);
    let config = image.directory.path().join("node1.ign");
    fs::write(&config, CONFIG).unwrap();
    for (disk, expected) in [
        (image.directory.path(), "is a directory"),
        (Path::new("/dev/null"), "is no regular file"),
        (
            Path::new("/nonexistent/selvage.raw"),
            "failed to open /nonexistent/selvage.raw",
        ),
    ] {
        let error = embed(disk, &config, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // What a link leads to is replaced, and the link stays.
    let link = image.directory.path().join("link.raw");
    std::os::unix::fs::symlink("selvage.raw", &link).unwrap();
    embed(&link, &config, &mut io::sink()).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(image.read(EMBEDDED).as_deref(), Some(CONFIG.as_bytes()));
}
