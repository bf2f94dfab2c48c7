use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use super::*;

/// A request of a made log: sector, byte, sectors, flags.
pub(crate) type Request = (u64, u8, u64, u64);

pub(crate) const FLUSHED: Request = (0, 0, 0, FLUSH);

pub(crate) fn write(sector: u64, byte: u8, sectors: u64) -> Request {
    (sector, byte, sectors, 0)
}

pub(crate) fn discard(sector: u64, sectors: u64) -> Request {
    (sector, 0, sectors, DISCARD)
}

fn bytes(requests: &[Request]) -> Vec<u8> {
    let mut log = Vec::new();
    let mut sector = |numbers: &[u64]| {
        let start = log.len();
        log.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        log.resize(start + 512, 0);
        log.len()
    };
    sector(&[MAGIC, VERSION, requests.len() as u64, 512]);
    let mut whole = Vec::new();
    for (at, byte, sectors, flags) in requests {
        sector(&[*at, *sectors, *flags, 0]);
        if flags & DISCARD == 0 {
            for _ in 0..*sectors {
                let end = sector(&[]);
                whole.push((end - 512, *byte));
            }
        }
    }
    for (at, byte) in whole {
        log[at..at + 512].fill(byte);
    }
    log
}

/// A log of these requests.
pub(crate) fn log(requests: &[Request]) -> (TempDir, WriteLog) {
    let (dir, path) = file(&bytes(requests));
    let log = WriteLog::open(&path).unwrap();
    (dir, log)
}

fn file(contents: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, contents).unwrap();
    (dir, path)
}

#[test]
fn entries_have_place_flags_and_data() {
    let (_dir, log) = log(&[
        write(3, b'a', 2),
        discard(10, 5),
        FLUSHED,
        (1, b'b', 1, FLUSH | FUA),
    ]);
    let place = |entry: &Entry| (entry.at / 512, entry.length / 512);
    let places: Vec<_> = log.entries.iter().map(place).collect();
    assert_eq!(places, [(3, 2), (10, 5), (0, 0), (1, 1)]);
    let flags = log
        .entries
        .iter()
        .map(|entry| (entry.flush, entry.fua, entry.discard));
    assert_eq!(
        flags.collect::<Vec<_>>(),
        [
            (false, false, false),
            (false, false, true),
            (true, false, false),
            (true, true, false)
        ]
    );
    let mut data = [0; 512];
    log.file
        .read_exact_at(&mut data, log.entries[3].data)
        .unwrap();
    assert_eq!(data, [b'b'; 512]);
}

#[test]
fn a_mark_is_passed_over() {
    let mut contents = bytes(&[(0, 0, 0, MARK), write(1, b'a', 1)]);
    // 700 bytes of text, padded to two sectors.
    contents[512 + 24..512 + 32].copy_from_slice(&700_u64.to_le_bytes());
    contents.splice(1024..1024, [b'm'; 1024]);
    let (_dir, path) = file(&contents);
    let log = WriteLog::open(&path).unwrap();
    assert_eq!(log.entries.len(), 1);
    assert_eq!((log.entries[0].at, log.entries[0].data), (512, 2560));
}

#[test]
fn what_is_no_log_is_refused() {
    let good = bytes(&[write(1, b'a', 1), FLUSHED]);
    let changed = |at: usize, value: u64| {
        let mut contents = good.clone();
        contents[at..at + 8].copy_from_slice(&value.to_le_bytes());
        contents
    };
    for (contents, reason) in [
        (Vec::new(), "no super block"),
        (vec![0; 4096], "without a flush"),
        (changed(8, 2), "version 2"),
        (changed(24, 100), "sectors of 100 bytes"),
        (changed(24, 0), "sectors of 0 bytes"),
        (changed(16, u64::MAX), "entry 2 of"),
        (changed(512, u64::MAX), "first sector"),
        (changed(512 + 8, u64::MAX), "entry 0 of 2"),
        (changed(512 + 8, 1 << 40), "ends behind the log"),
        (changed(512 + 16, 16), "unknown flags 0x10"),
        (good[..good.len() - 512].to_vec(), "entry 1 of 2"),
    ] {
        let (_dir, path) = file(&contents);
        let error = format!("{:#}", WriteLog::open(&path).unwrap_err());
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

/// Runs requests on `disk`, with a log at `path`.
fn run_qemu_io(disk: &Path, path: &Path) {
    let node = format!(
        "driver=blklogwrites,discard=unmap,file.driver=file,file.discard=unmap,file.filename={},\
         log.driver=file,log.filename={}",
        disk.display(),
        path.display()
    );
    let mut command = Command::new("qemu-io");
    command.args(["--image-opts", &node]);
    for step in [
        "write -P 0x11 0 1M",
        "flush",
        "write -P 0x22 4096 512",
        "write -z 256k 256k",
        "discard 0 4k",
        "write -P 0x33 7M 4k",
        "flush",
    ] {
        command.args(["-c", step]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A log that QEMU wrote, not one that this file thinks QEMU would write.
#[test]
fn a_log_of_qemu_replays_to_the_same_disk() {
    if Command::new("qemu-io").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-io here (package qemu-utils)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let path = dir.path().join("log");
    File::create(&path).unwrap();
    File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    run_qemu_io(&disk, &path);
    let log = WriteLog::open(&path).unwrap();
    // QEMU flushes on its own as well.
    let requests = log.entries.iter().filter(|entry| entry.length > 0);
    let shape = requests.map(|entry| (entry.at, entry.length, entry.discard));
    assert_eq!(
        shape.collect::<Vec<_>>(),
        [
            (0, 1 << 20, false),
            (4096, 512, false),
            (256 << 10, 256 << 10, false),
            (0, 4096, true),
            (7 << 20, 4096, false),
        ]
    );
    let flushed = log.entries.iter().position(|entry| entry.flush);
    assert_eq!(flushed, Some(1));
    assert!(log.entries.last().unwrap().flush);
    let replayed = tempfile::tempfile().unwrap();
    replayed.set_len(8 << 20).unwrap();
    let mut replay = replay::Replay::new(&log, replayed);
    let end = cut::Moment {
        position: log.entries.len(),
        torn: None,
    };
    let cut = cut::Cut::new(&log, 0, end, &mut cut::Chance::new(0));
    replay.cut(&cut).unwrap();
    let mut found = vec![0; 8 << 20];
    replay.disk.read_exact_at(&mut found, 0).unwrap();
    assert!(found == std::fs::read(&disk).unwrap());
}
