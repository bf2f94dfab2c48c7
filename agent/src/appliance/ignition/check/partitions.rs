//! The partitions of a disk.

use ignition_config::v3_3::{Disk, Partition};

use super::super::locate::join_index;
use super::Findings;

/// The GPT has room for 36 UTF-16 units in a partition's name (UEFI §5.3.3).
const LABEL_MAX: usize = 36;

/// Checks the partitions of the disk at `disk_path`, each by itself and against earlier ones.
pub(super) fn check(disk_path: &str, disk: &Disk, findings: &mut Findings<'_>) {
    let partitions = disk.partitions.as_deref().unwrap_or_default();
    let list = format!("{disk_path}.partitions");
    let goes = |partition: &Partition| partition.should_exist == Some(false);
    if partitions.iter().any(goes) && partitions.iter().any(|p| number(p) == 0) {
        findings.error(
            &list,
            "where one partition should not exist, every partition needs a number",
        );
    }
    for (i, partition) in partitions.iter().enumerate() {
        let at = join_index(&list, i);
        check_partition(&at, partition, findings);
        for (j, earlier) in partitions[..i].iter().enumerate() {
            check_pair(&at, partition, &join_index(&list, j), earlier, findings);
        }
    }
}

fn number(partition: &Partition) -> i64 {
    partition.number.unwrap_or_default()
}

fn check_partition(at: &str, partition: &Partition, findings: &mut Findings<'_>) {
    let number = number(partition);
    let label = partition.label.as_deref().unwrap_or_default();
    if number == 0 && label.is_empty() {
        findings.error(at, "a partition needs a number from 1 or a label");
    } else if number < 0 {
        let message = format!("{number} is not a partition number");
        findings.error(format!("{at}.number"), message);
    }
    if label.encode_utf16().count() > LABEL_MAX {
        let message = format!("a partition label has at most {LABEL_MAX} characters");
        findings.error(format!("{at}.label"), message);
    }
    if label.contains(':') {
        let message = "sgdisk would cut the label off at its colon";
        findings.error(format!("{at}.label"), message);
    }
    let says_more = partition.label.is_some()
        || partition.start_mib.is_some()
        || partition.size_mib.is_some()
        || partition.guid.is_some()
        || partition.type_guid.is_some();
    if partition.should_exist == Some(false) && says_more {
        let message = "a partition that should not exist has nothing but a number";
        findings.error(format!("{at}.shouldExist"), message);
    }
    for (name, guid) in [
        ("guid", &partition.guid),
        ("typeGuid", &partition.type_guid),
    ] {
        let guid = guid.as_deref().unwrap_or_default();
        if !guid.is_empty() && !is_guid(guid) {
            findings.error(
                format!("{at}.{name}"),
                format!("{guid:?} is not a GUID: expected 01234567-89AB-CDEF-EDCB-A98765432101"),
            );
        }
    }
}

fn check_pair(
    at: &str,
    partition: &Partition,
    earlier_at: &str,
    earlier: &Partition,
    findings: &mut Findings<'_>,
) {
    if number(partition) > 0 && number(partition) == number(earlier) {
        let message = format!("{earlier_at} has the number {} too", number(partition));
        findings.error(format!("{at}.number"), message);
    }
    if partition.label.is_some() && partition.label == earlier.label {
        findings.error(
            format!("{at}.label"),
            format!("{earlier_at} has this label too"),
        );
    }
    if let (Some(one), Some(other)) = (extent(partition), extent(earlier))
        && (begins_in(one, other) || begins_in(other, one))
    {
        findings.error(at, format!("the partition overlaps {earlier_at}"));
    }
}

/// First MiB and size of a partition with a fixed position; 0 lets sgdisk choose.
fn extent(partition: &Partition) -> Option<(i64, i64)> {
    let start = partition.start_mib.filter(|start| *start > 0)?;
    Some((start, partition.size_mib?))
}

fn begins_in((start, _): (i64, i64), (other, size): (i64, i64)) -> bool {
    (other..other.saturating_add(size)).contains(&start)
}

fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let is_hex = |group: &str| group.bytes().all(|b| b.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.into_iter().all(is_hex)
}
