//! The file format of an add-on: a UEFI program (PE32+) whose section `.cmdline` has the arguments as UTF-8.
//!
//! It is systemd's program without code, to which this adds the section: the header of one in the section table, for which
//! the headers have room, and its contents at the end. All numbers are little-endian (Microsoft, PE Format).

/// Where the offset of the signature `PE\0\0` stands.
const SIGNATURE_AT: usize = 0x3c;
/// From the signature: the number of sections, and the size of the optional header, which comes at the third.
const SECTIONS_AT: usize = 6;
const OPTIONAL_SIZE_AT: usize = 20;
const OPTIONAL_AT: usize = 24;
/// In the optional header: the alignments in memory and in the file, and the sizes of the image and of all headers.
const MEMORY_ALIGNMENT_AT: usize = 32;
const FILE_ALIGNMENT_AT: usize = 36;
const IMAGE_SIZE_AT: usize = 56;
const HEADERS_SIZE_AT: usize = 60;
/// One line of the section table, and in it: the size and address in memory, the size and offset in the file, the flags.
const SECTION_BYTES: usize = 40;
const NAME_BYTES: usize = 8;
const SIZE_AT: usize = 8;
const ADDRESS_AT: usize = 12;
const FILE_SIZE_AT: usize = 16;
const OFFSET_AT: usize = 20;
const FLAGS_AT: usize = 36;
/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const FLAGS: u32 = 0x4000_0040;

const NAME: [u8; NAME_BYTES] = *b".cmdline";

/// The add-on with these arguments, made of a program without any; `None` if it has no room, or is no such program.
pub(super) fn with_arguments(program: &[u8], arguments: &str) -> Option<Vec<u8>> {
    if self::arguments(program).is_some() {
        return None;
    }
    let headers = Headers::of(program)?;
    let optional = headers.signature + OPTIONAL_AT;
    let memory_alignment = u32_at(program, optional + MEMORY_ALIGNMENT_AT)?;
    let file_alignment = usize::try_from(u32_at(program, optional + FILE_ALIGNMENT_AT)?).ok()?;
    let headers_size = usize::try_from(u32_at(program, optional + HEADERS_SIZE_AT)?).ok()?;
    let line = headers.table + headers.sections * SECTION_BYTES;
    if line + SECTION_BYTES > headers_size || headers_size > program.len() {
        return None;
    }
    let address =
        u32_at(program, optional + IMAGE_SIZE_AT)?.checked_next_multiple_of(memory_alignment)?;
    let length = u32::try_from(arguments.len()).ok()?;
    let end = address
        .checked_add(length)?
        .checked_next_multiple_of(memory_alignment)?;
    let offset = program.len().checked_next_multiple_of(file_alignment)?;
    let file_size = arguments.len().checked_next_multiple_of(file_alignment)?;

    let mut addon = program.to_vec();
    addon.resize(offset, 0);
    addon.extend_from_slice(arguments.as_bytes());
    addon.resize(offset + file_size, 0);
    let sections = u16::try_from(headers.sections + 1).ok()?;
    put(
        &mut addon,
        headers.signature + SECTIONS_AT,
        &sections.to_le_bytes(),
    )?;
    put(&mut addon, optional + IMAGE_SIZE_AT, &end.to_le_bytes())?;
    put(&mut addon, line, &NAME)?;
    for (at, value) in [
        (SIZE_AT, length),
        (ADDRESS_AT, address),
        (FILE_SIZE_AT, u32::try_from(file_size).ok()?),
        (OFFSET_AT, u32::try_from(offset).ok()?),
        (FLAGS_AT, FLAGS),
    ] {
        put(&mut addon, line + at, &value.to_le_bytes())?;
    }
    Some(addon)
}

/// The arguments in an add-on; `None` if it is none.
pub(super) fn arguments(addon: &[u8]) -> Option<String> {
    let headers = Headers::of(addon)?;
    let mut lines = (0..headers.sections).map(|i| headers.table + i * SECTION_BYTES);
    let line = lines.find(|line| addon.get(*line..line + NAME_BYTES) == Some(&NAME[..]))?;
    let length = usize::try_from(u32_at(addon, line + SIZE_AT)?).ok()?;
    let offset = usize::try_from(u32_at(addon, line + OFFSET_AT)?).ok()?;
    let text = addon.get(offset..offset.checked_add(length)?)?;
    let text = std::str::from_utf8(text).ok()?;
    Some(text.trim_end_matches('\0').to_owned())
}

/// Places in a program's headers.
struct Headers {
    signature: usize,
    table: usize,
    sections: usize,
}

impl Headers {
    fn of(program: &[u8]) -> Option<Self> {
        let signature = usize::try_from(u32_at(program, SIGNATURE_AT)?).ok()?;
        let is_program =
            program.starts_with(b"MZ") && program.get(signature..)?.starts_with(b"PE\0\0");
        let number = |at: usize| {
            let bytes = program.get(at..at + 2)?.try_into().ok()?;
            Some(usize::from(u16::from_le_bytes(bytes)))
        };
        let optional_size = number(signature + OPTIONAL_SIZE_AT)?;
        is_program.then_some(Self {
            signature,
            table: signature + OPTIONAL_AT + optional_size,
            sections: number(signature + SECTIONS_AT)?,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + value.len())?.copy_from_slice(value);
    Some(())
}
