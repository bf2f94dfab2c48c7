//! The EFI system partition of an image file, by mtools(1): nothing is mounted, and what they write other systems read.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::appliance::gpt;

/// The GUID of such partitions, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as it lies on the disk.
pub(super) const KIND: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// Bytes of a sector. The image is made for disks with such.
const SECTOR: u64 = 512;

/// What is looked at of a FAT, in bytes, whatever its sectors are.
const FAT_START: usize = 512;

/// So many partitions a table has at the most.
const MOST_PARTITIONS: usize = 128;

/// Where the UKIs are, and how the names of ours start and end.
const UKIS: &str = "EFI/Linux";
const UKI: (&str, &str) = ("selvage_", ".efi");

/// The time of all that is written, in seconds since 1970: the first that FAT knows. The same config makes the same
/// image.
const TIME: &str = "315532800";

/// What an image of ours has, and this one has not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No GPT, or none with an EFI system partition.
    NoEsp,
    /// It ends behind the end of the file.
    Cut,
    /// The FAT says that it goes on behind the end of the partition, where other partitions are.
    Outgrown,
    /// No FAT with a UKI of ours.
    NoUki,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEsp => "it has no partition table with an EFI system partition",
            Self::Cut => {
                "its EFI system partition is longer than the file, which was not copied whole"
            }
            Self::Outgrown => "its EFI system partition has a file system that is larger than it",
            Self::NoUki => "its EFI system partition has no EFI/Linux/selvage_VERSION.efi",
        })
    }
}

/// Where the partition starts in the image file, in bytes; an error where there is none.
pub(super) fn start(image: &File) -> io::Result<Result<u64, Fault>> {
    let length = image.metadata()?.len();
    let entry = (1..=MOST_PARTITIONS)
        // A file that ends in its table has no such partition.
        .map_while(|number| gpt::entry(image, SECTOR, number).ok())
        .flatten()
        .find(|entry| entry.kind == KIND);
    let Some(entry) = entry else {
        return Ok(Err(Fault::NoEsp));
    };
    let end = |last: u64| last.checked_add(1)?.checked_mul(SECTOR);
    let place = (entry.first.checked_mul(SECTOR))
        .zip(end(entry.last))
        .filter(|(start, end)| start < end && *end <= length);
    let Some((start, end)) = place else {
        return Ok(Err(Fault::Cut));
    };
    let mut sector = [0; FAT_START];
    image.read_exact_at(&mut sector, start)?;
    Ok(match fat_bytes(&sector) {
        None => Err(Fault::NoUki),
        Some(bytes) if bytes > end - start => Err(Fault::Outgrown),
        Some(_) => Ok(start),
    })
}

/// The size of the FAT that begins with this sector, in bytes; `None` if none does. Every FAT has this signature at the
/// end of its first 512 bytes; mtools would call anything else a floppy disk.
fn fat_bytes(sector: &[u8; FAT_START]) -> Option<u64> {
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
    let (size, few, many) = (u16_at(11), u16_at(19), u16_at(32) | u16_at(34) << 16);
    let count = if few == 0 { many } else { few };
    sector.ends_with(&[0x55, 0xaa]).then_some(size * count)
}

/// The partition of an image file that is ours to write to.
pub(super) struct Esp<'a> {
    /// The image file.
    image: &'a Path,
    start: u64,
}

impl<'a> Esp<'a> {
    pub(super) fn new(image: &'a Path, start: u64) -> Self {
        Self { image, start }
    }

    /// Whether there is a UKI of ours.
    pub(super) fn has_uki(&self) -> io::Result<bool> {
        let done = self.run("mdir", &["-b", &format!("::/{UKIS}")], &[])?;
        let list = String::from_utf8_lossy(&done.output).to_ascii_lowercase();
        let (start, end) = UKI;
        let is_ours = |line: &str| {
            let name = line.rsplit('/').next().unwrap_or_default().trim();
            name.starts_with(start) && name.ends_with(end)
        };
        Ok(done.problem.is_none() && list.lines().any(is_ours))
    }

    /// A file's contents; `None` if it cannot be read.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let done = self.run("mtype", &[&format!("::/{path}")], &[])?;
        Ok(done.problem.is_none().then_some(done.output))
    }

    /// Writes a file, makes the directories above it, and reads it back.
    pub(super) fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        for parent in parents {
            // One that is there is left alone, with an exit status as if it failed.
            self.run("mmd", &["-D", "s", &format!("::/{parent}")], &[])?;
        }
        let done = self.run("mcopy", &["-o", "-", &format!("::/{path}")], bytes)?;
        if let Some(problem) = done.problem {
            return Err(io::Error::other(problem));
        }
        match self.read(path)? {
            Some(back) if back == bytes => Ok(()),
            _ => Err(io::Error::other(format!("{path} is not what was written"))),
        }
    }

    /// Runs one of the programs with bytes as its input.
    fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> io::Result<Done> {
        let mut image = self.image.as_os_str().to_owned();
        image.push(format!("@@{}", self.start));
        let mut child = Command::new(program)
            .arg("-i")
            .arg(image)
            .args(arguments)
            .env("SOURCE_DATE_EPOCH", TIME)
            // West of Greenwich that would be a year that FAT does not know.
            .env("TZ", "UTC")
            // Large sectors are no reason to take it for something else than FAT.
            .env("MTOOLS_SKIP_CHECK", "1")
            .env("MTOOLSRC", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                let hint = match error.kind() {
                    io::ErrorKind::NotFound => "; install the package mtools",
                    _ => "",
                };
                io::Error::new(error.kind(), format!("{program}: {error}{hint}"))
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends early says why by itself.
            let _ = stdin.write_all(input);
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let problem = || format!("{program}: {}, {}", said.trim(), output.status);
        Ok(Done {
            problem: (!output.status.success()).then(problem),
            output: output.stdout,
        })
    }
}

/// What a program of mtools did.
struct Done {
    /// Why it failed, if it did.
    problem: Option<String>,
    output: Vec<u8>,
}
