//! What the headers of a boot entry's file say: whether it is all there, and which machines it is for.
//!
//! FAT has no journal: after a power cut, a name may have reached the disk without the content, or with a part of it. The
//! header of a UKI (a PE file) says where each section lies, so a file that was cut off shows it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// How much of a file is read: the headers of a UKI with its dozen of sections have less than 2 KiB.
const HEADERS: u64 = 16 << 10;

/// The machines that this program is for, as a PE file names them (Microsoft, "PE Format", Machine Types).
pub(crate) const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    0xaa64
} else {
    0x8664
};

/// Which machines a file is for, as [`MACHINE`]; `None` if it is no PE file.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn machine(path: &Path) -> io::Result<Option<u16>> {
    let headers = headers(&File::open(path)?)?;
    Ok(pe_header(&headers).and_then(|pe| u16_at(pe, 4)))
}

/// Whether a file is a PE file whose sections and signature end before the file does. Says nothing of what is in them.
///
/// # Errors
/// The file cannot be read.
pub(super) fn is_whole(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    Ok(end(&headers(&file)?).is_some_and(|end| end <= length))
}

fn headers(file: &File) -> io::Result<Vec<u8>> {
    let mut headers = Vec::new();
    file.take(HEADERS).read_to_end(&mut headers)?;
    Ok(headers)
}

/// Where the last byte that the headers name ends; `None` if these are no headers of a PE file.
///
/// Microsoft, "PE Format": the offset of the PE header is at 0x3c; the header has the signature (4 bytes), the COFF header
/// (20), the optional header, and 40 bytes for each section.
fn end(headers: &[u8]) -> Option<u64> {
    let pe = pe_header(headers)?;
    let (sections, optional) = (
        usize::from(u16_at(pe, 6)?),
        usize::from(u16_at(pe, 4 + 16)?),
    );
    let mut last = signature_end(pe.get(24..24 + optional)?).unwrap_or(0);
    for section in 0..sections {
        let header = pe.get(24 + optional + 40 * section..)?;
        // The rest of a section in the file is padding, which not every linker writes.
        let data = u32_at(header, 8)?.min(u32_at(header, 16)?);
        last = last.max(u64::from(u32_at(header, 20)?) + u64::from(data));
    }
    (last > 0).then_some(last)
}

fn pe_header(headers: &[u8]) -> Option<&[u8]> {
    headers.starts_with(b"MZ").then_some(())?;
    let at = usize::try_from(u32_at(headers, 0x3c)?).ok()?;
    let pe = headers.get(at..)?;
    pe.starts_with(b"PE\0\0").then_some(pe)
}

/// Where the signatures end: the fifth data directory, which holds an offset in the file.
fn signature_end(optional: &[u8]) -> Option<u64> {
    const PE32_PLUS: u16 = 0x20b;
    let directories = match u16_at(optional, 0)? {
        PE32_PLUS => 112,
        _ => 96,
    };
    let entry = optional.get(directories + 4 * 8..)?;
    Some(u64::from(u32_at(entry, 0)?) + u64::from(u32_at(entry, 4)?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*found))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*found))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::appliance::update::samples::uki;

    fn is_whole_with(bytes: &[u8]) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        is_whole(file.path()).unwrap()
    }

    #[test]
    fn a_file_that_was_cut_off_anywhere_is_not_whole() {
        let whole = uki(1, 5000);
        assert!(is_whole_with(&whole));
        for length in [0, 1, 2, 0x3c, 64, 88, 100, 511, 512, 4999] {
            assert!(!is_whole_with(&whole[..length]), "{length}");
        }
        // The length reached the disk, the content did not.
        assert!(!is_whole_with(&[0; 5000]));
    }

    #[test]
    fn a_file_says_which_machines_it_is_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            machine(file.path()).unwrap()
        };
        let mut bytes = uki(1, 600);
        assert_eq!(of(&bytes), Some(MACHINE));
        bytes[68..70].copy_from_slice(&0x5064_u16.to_le_bytes());
        assert_eq!(of(&bytes), Some(0x5064));
        assert_eq!(of(&bytes[..69]), None);
        assert_eq!(of(b"no program"), None);
        assert!(machine(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn the_signature_counts_and_padding_does_not() {
        let mut signed = uki(1, 4096);
        // An optional header, which moves the section, with 64 bytes of signatures at the end.
        let section = signed[88..128].to_vec();
        let mut optional = vec![0; 240];
        optional[..2].copy_from_slice(&0x20b_u16.to_le_bytes());
        optional[144..148].copy_from_slice(&4096_u32.to_le_bytes());
        optional[148..152].copy_from_slice(&64_u32.to_le_bytes());
        signed[84..86].copy_from_slice(&240_u16.to_le_bytes());
        signed[88..328].copy_from_slice(&optional);
        signed[328..368].copy_from_slice(&section);
        assert!(!is_whole_with(&signed));
        signed.resize(4096 + 64, 1);
        assert!(is_whole_with(&signed));

        let mut padded = uki(1, 4096);
        // 0x80 less in memory than in the file.
        let size = u32_at(&padded, 96).unwrap() - 0x80;
        padded[96..100].copy_from_slice(&size.to_le_bytes());
        assert!(is_whole_with(&padded[..4096 - 0x80]));
        assert!(!is_whole_with(&padded[..4096 - 0x81]));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0_usize..128, byte: u8) {
            let _ = end(&bytes);
            let mut headers = uki(1, 600);
            headers[at] = byte;
            let _ = end(&headers);
        }
    }
}
