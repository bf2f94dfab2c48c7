//! A program for UEFI: its digest and its signatures (Microsoft, PE Format and Windows Authenticode Portable Executable
//! Signature Format).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use ring::digest;

use super::SecureBootError;

/// More than the headers of any program.
const MOST_HEADER_BYTES: u64 = 1 << 16;
/// More than the signatures of any.
const MOST_SIGNATURES_BYTES: u64 = 1 << 20;
/// From the signature `PE\0\0` to the optional header, and the length of a line in the section table.
const OPTIONAL_HEADER: usize = 24;
const SECTION_BYTES: usize = 40;
/// In the optional header: the checksum, the size of all headers, and the entry of the certificate table in the data
/// directories of both formats.
const CHECKSUM: usize = 64;
const SIZE_OF_HEADERS: usize = 60;
const CERTIFICATES_32: usize = 128;
const CERTIFICATES_64: usize = 144;
/// `WIN_CERT_TYPE_PKCS_SIGNED_DATA`, and what comes before the data of a signature.
const PKCS_SIGNED_DATA: u16 = 2;
const SIGNATURE_HEADER: usize = 8;

/// What firmware looks at.
#[derive(Debug)]
pub(super) struct Program {
    /// The Authenticode digest, by SHA-256.
    pub digest: Vec<u8>,
    /// Each in the form of PKCS #7.
    pub signatures: Vec<Vec<u8>>,
}

/// Reads a program, piece by piece: it is larger than the memory that an update may take.
pub(super) fn read(path: &Path) -> Result<Program, SecureBootError> {
    let failed = |source| SecureBootError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let header = piece(&mut file, 0..length.min(MOST_HEADER_BYTES)).map_err(failed)?;
    let no_program = |fault| SecureBootError::NoProgram {
        path: path.to_owned(),
        fault,
    };
    let layout = Layout::parse(&header, length).map_err(no_program)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    for range in &layout.hashed {
        add(&mut file, range.clone(), &mut hash).map_err(failed)?;
    }
    let table = piece(&mut file, layout.signatures).map_err(failed)?;
    Ok(Program {
        digest: hash.finish().as_ref().to_vec(),
        signatures: signatures(&table),
    })
}

fn piece(file: &mut File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(range.start))?;
    file.take(range.end - range.start).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn add(file: &mut File, range: Range<u64>, hash: &mut digest::Context) -> io::Result<()> {
    file.seek(SeekFrom::Start(range.start))?;
    let mut rest = file.take(range.end - range.start);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Where things are in the file.
struct Layout {
    hashed: Vec<Range<u64>>,
    signatures: Range<u64>,
}

/// Why a header that ends too early is refused.
const CUT: &str = "its header is cut short";

impl Layout {
    fn parse(header: &[u8], length: u64) -> Result<Self, &'static str> {
        if !header.starts_with(b"MZ") {
            return Err("it does not begin with MZ");
        }
        let pe = usize::try_from(long(header, 60)?).map_err(|_| CUT)?;
        if number::<4>(header, pe) != Some(*b"PE\0\0") {
            return Err("it has no PE header");
        }
        let optional = pe + OPTIONAL_HEADER;
        let entry = optional
            + match short(header, optional)? {
                0x10b => CERTIFICATES_32,
                0x20b => CERTIFICATES_64,
                _ => return Err("it is neither PE32 nor PE32+"),
            };
        let headers = u64::from(long(header, optional + SIZE_OF_HEADERS)?);
        let certificates = u64::from(long(header, entry)?);
        let size = u64::from(long(header, entry + 4)?);
        // Without signatures all of the file counts.
        let table = match size {
            0 => length,
            _ => certificates,
        };
        let (checksum, entry) = (position(optional + CHECKSUM), position(entry));
        if headers < entry + 8 || table < headers || table.checked_add(size) > Some(length) {
            return Err("its parts overlap or lie outside of it");
        }
        if size > MOST_SIGNATURES_BYTES {
            return Err("its signatures are larger than any can be");
        }
        let sections = sections(header, pe, optional)?;
        if sections.iter().any(|section| section.end > table) {
            return Err("a section lies outside of it");
        }
        let sum: u64 = sections
            .iter()
            .map(|section| section.end - section.start)
            .sum();
        let done = headers + sum;
        let mut hashed = vec![0..checksum, checksum + 4..entry, entry + 8..headers];
        hashed.extend(sections);
        // What is behind the sections counts as well.
        if done < table {
            hashed.push(done..table);
        }
        Ok(Self {
            hashed,
            signatures: table..table + size,
        })
    }
}

/// Where the sections are, in the order in which they are hashed.
fn sections(header: &[u8], pe: usize, optional: usize) -> Result<Vec<Range<u64>>, &'static str> {
    let table = optional + usize::from(short(header, pe + 20)?);
    let mut sections = Vec::new();
    for index in 0..usize::from(short(header, pe + 6)?) {
        let line = table + index * SECTION_BYTES;
        let bytes = u64::from(long(header, line + 16)?);
        let start = u64::from(long(header, line + 20)?);
        if bytes > 0 {
            sections.push(start..start + bytes);
        }
    }
    sections.sort_by_key(|section| section.start);
    Ok(sections)
}

fn short(header: &[u8], at: usize) -> Result<u16, &'static str> {
    number(header, at).map(u16::from_le_bytes).ok_or(CUT)
}

fn long(header: &[u8], at: usize) -> Result<u32, &'static str> {
    number(header, at).map(u32::from_le_bytes).ok_or(CUT)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn position(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}

/// The signatures in a certificate table: each with its length, revision and type before it, at multiples of eight.
fn signatures(mut table: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (number(table, 0), number(table, 6)) {
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let Some(data) = table.get(SIGNATURE_HEADER..length) else {
            break;
        };
        if u16::from_le_bytes(kind) == PKCS_SIGNED_DATA {
            found.push(data.to_vec());
        }
        table = table.get(length.next_multiple_of(8)..).unwrap_or(&[]);
    }
    found
}
