//! The two halves of a version on a disk: its UKI, and the partitions of `/usr` that the UKI's root hash names.

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, bail, ensure};
use ring::digest::{Context, SHA256, digest};

use super::gpt::{Partition, number32, number64};

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// Blocks of data and of hashes; mkosi makes no others.
const BLOCK: usize = 4096;
/// Where the salt begins in the super block (cryptsetup, lib/verity/verity.c, struct verity_sb).
const SALT: usize = 88;
/// What is hashed at once.
const CHUNK: usize = 256 * BLOCK;

/// The SHA-256 of bytes.
pub(super) fn sha256(bytes: &[u8]) -> Hash {
    to_hash(digest(&SHA256, bytes).as_ref())
}

fn to_hash(bytes: &[u8]) -> Hash {
    // SHA-256 has 32 bytes.
    bytes.first_chunk().copied().unwrap_or_default()
}

/// The contents of a section of a PE file, as far as the file has them.
///
/// # Errors
/// When the headers are no PE file's, or there is no such section.
pub(super) fn section<'a>(file: &'a [u8], wanted: &str) -> Result<&'a [u8]> {
    ensure!(file.starts_with(b"MZ"), "no PE file");
    let header = usize::try_from(number32(file, 60))?;
    let headers = file.get(header..).context("no PE header")?;
    ensure!(headers.starts_with(b"PE\0\0"), "no PE header");
    let halves = number32(headers, 4) >> 16;
    let optional = usize::try_from(number32(headers, 20) & 0xffff)?;
    let table = headers.get(24 + optional..).context("no sections")?;
    for section in table.chunks_exact(40).take(usize::try_from(halves)?) {
        let name = section.first_chunk::<8>().copied().unwrap_or_default();
        if String::from_utf8_lossy(&name).trim_end_matches('\0') == wanted {
            let at = usize::try_from(number32(section, 20))?;
            // Padded in the file: what it has in memory is what counts.
            let length = number32(section, 8).min(number32(section, 16));
            return file
                .get(at..at + usize::try_from(length)?)
                .with_context(|| format!("{wanted} is cut off"));
        }
    }
    bail!("no section {wanted}")
}

/// The root hash of `/usr` in a UKI's command line.
///
/// # Errors
/// When there is none.
pub(super) fn root_hash(uki: &[u8]) -> Result<Hash> {
    let line = section(uki, ".cmdline")?;
    let line = String::from_utf8_lossy(line);
    let argument = line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("usrhash="))
        .context("no usrhash= in the command line")?;
    let bytes: Vec<u8> = (argument.trim_end_matches('\0').as_bytes())
        .chunks(2)
        .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16))
        .collect::<Result<_, _>>()
        .context("usrhash= is no number")?;
    <Hash>::try_from(bytes.as_slice()).context("usrhash= is no SHA-256")
}

/// The partitions of data and hashes that a root hash names: its two halves are their UUIDs.
///
/// # Errors
/// When one is not there.
pub(super) fn find<'a>(
    partitions: &'a [Partition],
    root: &Hash,
) -> Result<(&'a Partition, &'a Partition)> {
    let (data, hashes) = root.split_at(16);
    let find = |uuid: &[u8], what| {
        let found = partitions.iter().find(|partition| partition.uuid == uuid);
        found.with_context(|| format!("no partition is that of the {what}"))
    };
    Ok((find(data, "data")?, find(hashes, "hashes")?))
}

/// Checks every block of data against the tree, and the tree against the root hash, as dm-verity does while it reads
/// (Documentation/admin-guide/device-mapper/verity.rst).
///
/// # Errors
/// Says which part is not what it should be.
pub(super) fn verify(
    disk: &File,
    data: &Range<u64>,
    hashes: &Range<u64>,
    root: &Hash,
) -> Result<()> {
    let mut header = [0; 512];
    disk.read_exact_at(&mut header, hashes.start)
        .context("failed to read the super block of the hashes")?;
    ensure!(
        header.starts_with(b"verity\0\0") && header[32..64].starts_with(b"sha256\0"),
        "the hashes have no super block"
    );
    let blocks = number64(&header, 72);
    let salt = usize::try_from(number32(&header, 80) & 0xffff)?;
    let salt = header.get(SALT..SALT + salt).context("a salt too long")?;
    ensure!(
        blocks > 0 && blocks <= (data.end - data.start) / BLOCK as u64,
        "{blocks} blocks of data do not fit"
    );
    let mut levels = vec![level_of(disk, data, blocks, salt)?];
    while let Some(level) = levels.last()
        && level.len() > BLOCK
    {
        levels.push(hash_blocks(level, salt));
    }
    let top = levels.last().map_or(&[][..], Vec::as_slice);
    let found = hash_blocks(top, salt);
    ensure!(
        found.starts_with(root),
        "the data is not what the root hash says"
    );
    // The top of the tree comes first.
    let mut at = hashes.start + BLOCK as u64;
    for level in levels.iter().rev() {
        let mut stored = vec![0; level.len()];
        disk.read_exact_at(&mut stored, at)
            .context("failed to read the hashes")?;
        ensure!(stored == *level, "the tree of hashes is damaged");
        at += level.len() as u64;
    }
    Ok(())
}

fn level_of(disk: &File, data: &Range<u64>, blocks: u64, salt: &[u8]) -> Result<Vec<u8>> {
    let mut level = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let end = data.start + blocks * BLOCK as u64;
    let mut at = data.start;
    while at < end {
        let length = usize::try_from(end - at)?.min(CHUNK);
        let chunk = buffer.get_mut(..length).unwrap_or_default();
        disk.read_exact_at(chunk, at)
            .context("failed to read the data")?;
        for block in chunk.chunks(BLOCK) {
            level.extend(salted(block, salt));
        }
        at += length as u64;
    }
    level.resize(level.len().next_multiple_of(BLOCK), 0);
    Ok(level)
}

fn hash_blocks(level: &[u8], salt: &[u8]) -> Vec<u8> {
    let mut hashes: Vec<u8> = (level.chunks(BLOCK))
        .flat_map(|block| salted(block, salt))
        .collect();
    hashes.resize(hashes.len().next_multiple_of(BLOCK), 0);
    hashes
}

fn salted(block: &[u8], salt: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(salt);
    context.update(block);
    to_hash(context.finish().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE file with one section.
    fn pe(name: &str, contents: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 512];
        file[..2].copy_from_slice(b"MZ");
        file[60] = 64;
        file[64..68].copy_from_slice(b"PE\0\0");
        file[70] = 1;
        file[84] = 16;
        let section = 64 + 24 + 16;
        file[section..section + name.len()].copy_from_slice(name.as_bytes());
        let length = u32::try_from(contents.len()).unwrap();
        file[section + 8..section + 12].copy_from_slice(&length.to_le_bytes());
        file[section + 16..section + 20].copy_from_slice(&512_u32.to_le_bytes());
        file[section + 20..section + 24].copy_from_slice(&512_u32.to_le_bytes());
        file.extend(contents);
        file
    }

    #[test]
    fn the_root_hash_is_in_the_command_line() {
        let hash = "0123456789abcdef".repeat(4);
        let line = format!("root=x usrhash={hash} quiet");
        let found = root_hash(&pe(".cmdline", line.as_bytes())).unwrap();
        assert_eq!(found[..3], [0x01, 0x23, 0x45]);
        for (file, reason) in [
            (Vec::new(), "no PE file"),
            (b"MZ".to_vec(), "no PE header"),
            (pe(".osrel", b"ID=x"), "no section .cmdline"),
            (pe(".cmdline", b"quiet"), "no usrhash="),
            (pe(".cmdline", b"usrhash=12"), "no SHA-256"),
            (pe(".cmdline", b"usrhash=zz"), "no number"),
            (pe(".cmdline", &[b'x'; 300])[..700].to_vec(), "cut off"),
        ] {
            let error = format!("{:#}", root_hash(&file).unwrap_err());
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }

    /// Blocks of data, their tree behind them, and the root hash, made by the other way round: from the top down.
    fn tree(blocks: usize) -> (File, Range<u64>, Range<u64>, Hash) {
        let salt = [7; 32];
        let data: Vec<u8> = (0..blocks * BLOCK)
            .map(|at| u8::try_from(at % 253).unwrap())
            .collect();
        let mut levels: Vec<Vec<u8>> = Vec::new();
        let mut below = data.clone();
        while levels.is_empty() || below.len() > BLOCK {
            let mut level = Vec::new();
            for block in below.chunks(BLOCK) {
                level.extend(digest(&SHA256, &[&salt[..], block].concat()).as_ref());
            }
            level.resize(level.len().div_ceil(BLOCK) * BLOCK, 0);
            levels.insert(0, level.clone());
            below = level;
        }
        let root = sha256(&[&salt[..], &below].concat());
        let mut header = vec![0; BLOCK];
        header[..8].copy_from_slice(b"verity\0\0");
        header[32..38].copy_from_slice(b"sha256");
        header[72..80].copy_from_slice(&(blocks as u64).to_le_bytes());
        header[80] = 32;
        header[SALT..SALT + 32].copy_from_slice(&salt);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&data, 0).unwrap();
        let hashes = [header, levels.concat()].concat();
        let middle = data.len() as u64;
        file.write_all_at(&hashes, middle).unwrap();
        (file, 0..middle, middle..middle + hashes.len() as u64, root)
    }

    #[test]
    fn one_changed_byte_anywhere_is_found() {
        // One level, and two with a level that is not full.
        for blocks in [3, 300] {
            let (file, data, hashes, root) = tree(blocks);
            verify(&file, &data, &hashes, &root).unwrap();
            for at in [0, data.end - 1, hashes.start + 4096, hashes.end - 4096] {
                let mut old = [0];
                file.read_exact_at(&mut old, at).unwrap();
                file.write_all_at(&[old[0] ^ 1], at).unwrap();
                assert!(verify(&file, &data, &hashes, &root).is_err(), "{at}");
                file.write_all_at(&old, at).unwrap();
            }
            verify(&file, &data, &hashes, &root).unwrap();
            file.write_all_at(&[0; 512], hashes.start).unwrap();
            assert!(verify(&file, &data, &hashes, &root).is_err());
        }
    }
}
