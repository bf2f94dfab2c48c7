//! Every rule with a config that breaks it, compared with what Ignition's own validator says to the same config.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::tests::{ignition_validate, report_skip};
use super::*;

/// Who finds the fault.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Found {
    /// We and Ignition refuse.
    Both,
    /// We refuse what Ignition would accept, to fail on the machine.
    OursOnly,
    /// We and Ignition accept; we warn.
    Warned,
}
use Found::{Both, OursOnly, Warned};

/// A config of spec 3.3.0 with these sections.
fn config(sections: &str) -> String {
    format!("{{\"ignition\":{{\"version\":\"3.3.0\"}},{sections}}}")
}

fn storage(lists: &str) -> String {
    config(&format!("\"storage\":{{{lists}}}"))
}

fn boot_disk(fields: &str) -> String {
    storage(&format!(
        r#""disks":[{{"device":"/dev/disk/by-id/coreos-boot-disk",{fields}}}]"#
    ))
}

fn source(source: &str) -> String {
    storage(&format!(
        r#""files":[{{"path":"/a","contents":{{"source":"{source}"}}}}]"#
    ))
}

fn hash(hash: &str) -> String {
    storage(&format!(
        r#""files":[{{"path":"/a","contents":{{"source":"data:,x","verification":{{"hash":"{hash}"}}}}}}]"#
    ))
}

fn filesystem(format: &str) -> String {
    storage(&format!(
        r#""filesystems":[{{"device":"/dev/a","format":"{format}"}}]"#
    ))
}

/// Configs in the shapes that people publish, by name.
fn fixtures() -> BTreeMap<String, String> {
    let directory = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/appliance/ignition/check/fixtures"
    );
    let files = std::fs::read_dir(directory).unwrap();
    let configs = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "ign"));
    let configs = configs.map(|path| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).unwrap())
    });
    configs.collect()
}

fn unit(fields: &str) -> String {
    config(&format!(r#""systemd":{{"units":[{{{fields}}}]}}"#))
}

fn passwd(lists: &str) -> String {
    config(&format!("\"passwd\":{{{lists}}}"))
}

fn version(version: &str) -> String {
    format!("{{\"ignition\":{{\"version\":\"{version}\"}}}}")
}

/// The fault's name, the config, who finds it, the path of the finding and a part of its message.
fn bad_configs() -> Vec<(&'static str, String, Found, &'static str, &'static str)> {
    let file = "storage.files[0].path";
    let link = |rest: &str| storage(&format!(r#""links":[{{"path":"/l",{rest}}}]"#));
    vec![
        ("not_json", "{\"ignition\":".to_owned(), Both, "", "EOF"),
        ("trailing_text", version("3.3.0") + " x", Both, "", "trailing"),
        ("not_an_object", "[]".to_owned(), Both, "ignition.version", "missing"),
        ("no_version", "{\"ignition\":{}}".to_owned(), Both, "ignition.version", "missing"),
        ("version_not_one", version("1"), Both, "ignition.version", "not a spec version"),
        ("spec_2", version("2.2.0"), Both, "ignition.version", "ign-converter"),
        ("spec_too_new", version("3.6.0"), Both, "ignition.version", "fcos up to 1.6.0"),
        ("spec_experimental", version("3.4.0-experimental"), OursOnly, "ignition.version", "may change"),
        ("spec_patch", version("3.3.1"), Both, "ignition.version", "newer"),
        ("wrong_type", storage(r#""files":[{"path":5}]"#), Both, file, "invalid type: integer `5`"),
        ("object_for_list", storage(r#""files":{"path":"/a"}"#), Both, "storage.files", "invalid type"),
        ("missing_key", passwd(r#""users":[{"uid":7}]"#), OursOnly, "passwd.users[0]", "missing field `name`"),
        ("unknown_key", storage(r#""files":[{"path":"/a","x":1}]"#), Warned, "storage.files[0].x", "unknown key"),
        ("key_of_later_spec", r#"{"ignition":{"version":"3.0.0"},"kernelArguments":{}}"#.to_owned(), Warned, "kernelArguments", "unknown key"),
        ("relative_path", storage(r#""files":[{"path":"a"}]"#), Both, file, "not absolute"),
        ("empty_path", storage(r#""files":[{"path":""}]"#), Both, file, "required"),
        ("unclean_path", storage(r#""files":[{"path":"/a/../b"}]"#), Both, file, "shortest"),
        ("path_with_final_slash", storage(r#""directories":[{"path":"/a/"}]"#), Both, "storage.directories[0].path", "shortest"),
        ("file_twice", storage(r#""files":[{"path":"/a"},{"path":"/a"}]"#), Both, "storage.files[1].path", "storage.files[0]"),
        ("file_is_a_directory", storage(r#""directories":[{"path":"/a"}],"files":[{"path":"/a"}]"#), Both, file, "storage.directories[0]"),
        ("file_is_a_link", storage(r#""files":[{"path":"/a"}],"links":[{"path":"/a","target":"/b"}]"#), Both, "storage.links[0].path", "storage.files[0]"),
        ("file_below_a_link", storage(r#""files":[{"path":"/l/a/b"}],"links":[{"path":"/l","target":"/b"}]"#), Both, file, "which is a link"),
        ("directory_below_a_file", storage(r#""directories":[{"path":"/a/b"}],"files":[{"path":"/a"}]"#), OursOnly, "storage.directories[0].path", "which is a file"),
        ("link_without_target", link(r#""hard":false"#), Both, "storage.links[0].target", "target"),
        ("hard_link_to_directory", storage(r#""links":[{"path":"/l","target":"/d","hard":true}],"directories":[{"path":"/d"}]"#), Both, "storage.links[0]", "hard link"),
        ("mode_too_large", storage(r#""files":[{"path":"/a","mode":4096}]"#), Both, "storage.files[0].mode", "not a file mode"),
        ("mode_negative", storage(r#""directories":[{"path":"/a","mode":-1}]"#), Both, "storage.directories[0].mode", "not a file mode"),
        ("mode_meant_octal", storage(r#""files":[{"path":"/a","mode":644}]"#), Warned, "storage.files[0].mode", "644 is mode 1204; for mode 0644 write 420"),
        ("mode_with_sticky_bit", storage(r#""files":[{"path":"/a","mode":1023}]"#), Warned, "storage.files[0].mode", "sticky"),
        ("overwrite_with_nothing", storage(r#""files":[{"path":"/a","overwrite":true}]"#), Both, "storage.files[0].overwrite", "contents.source"),
        ("owner_id_and_name", storage(r#""files":[{"path":"/a","user":{"id":1,"name":"x"}}]"#), Both, "storage.files[0].user", "either"),
        ("group_id_and_name", link(r#""target":"/a","group":{"id":1,"name":"x"}"#), Both, "storage.links[0].group", "either"),
        ("source_scheme", source("ftp://x/y"), Both, "storage.files[0].contents.source", "not a source"),
        ("source_without_scheme", source("nonsense"), Both, "storage.files[0].contents.source", "not a source"),
        ("source_with_space", source("http://a b/"), Both, "storage.files[0].contents.source", "white space"),
        ("data_with_bare_space", source("data:,a b"), Both, "storage.files[0].contents.source", "character 2"),
        ("data_bad_escape", source("data:,%zz"), Both, "storage.files[0].contents.source", "hexadecimal"),
        ("data_bad_base64", source("data:;base64,AAA"), Both, "storage.files[0].contents.source", "base64"),
        ("data_without_comma", source("data:x"), Both, "storage.files[0].contents.source", "comma"),
        ("data_media_type", source("data:bogus,x"), Both, "storage.files[0].contents.source", "media type"),
        ("appended_data", storage(r#""files":[{"path":"/a","append":[{},{"source":"data:x"}]}]"#), Both, "storage.files[0].append[1].source", "comma"),
        ("hash_without_function", hash("00"), Both, "storage.files[0].contents.verification.hash", "not a checksum"),
        ("hash_unknown", hash("md5-00"), Both, "storage.files[0].contents.verification.hash", "does not know the hash \"md5\""),
        ("hash_too_short", hash("sha512-00"), Both, "storage.files[0].contents.verification.hash", "128 hexadecimal digits"),
        ("hash_not_hexadecimal", hash(&format!("sha256-{}", "z".repeat(64))), OursOnly, "storage.files[0].contents.verification.hash", "64 hexadecimal digits"),
        ("compression", storage(r#""files":[{"path":"/a","contents":{"source":"data:,x","compression":"xz"}}]"#), Both, "storage.files[0].contents.compression", "gzip"),
        ("headers_on_data", storage(r#""files":[{"path":"/a","contents":{"source":"data:,x","httpHeaders":[{"name":"a"}]}}]"#), Both, "storage.files[0].contents.httpHeaders", "http"),
        ("header_twice", storage(r#""files":[{"path":"/a","contents":{"source":"http://x","httpHeaders":[{"name":"a"},{"name":"a"}]}}]"#), Both, "storage.files[0].contents.httpHeaders[1]", "same name"),
        ("merge_without_source", r#"{"ignition":{"version":"3.3.0","config":{"merge":[{}]}}}"#.to_owned(), Both, "ignition.config.merge[0]", "source is required"),
        ("replace_scheme", r#"{"ignition":{"version":"3.3.0","config":{"replace":{"source":"x"}}}}"#.to_owned(), Both, "ignition.config.replace.source", "not a source"),
        ("proxy_scheme", r#"{"ignition":{"version":"3.3.0","proxy":{"httpProxy":"x"}}}"#.to_owned(), Both, "ignition.proxy.httpProxy", "not an http"),
        ("authority_twice", r#"{"ignition":{"version":"3.3.0","security":{"tls":{"certificateAuthorities":[{"source":"data:,a"},{"source":"data:,a"}]}}}}"#.to_owned(), Both, "ignition.security.tls.certificateAuthorities[1]", "same source"),
        ("argument_wanted_and_not", config(r#""kernelArguments":{"shouldExist":["a"],"shouldNotExist":["a"]}"#), Both, "kernelArguments.shouldNotExist[0]", "shouldExist"),
        ("user_twice", passwd(r#""users":[{"name":"a"},{"name":"a"}]"#), Both, "passwd.users[1]", "same name"),
        ("group_twice", passwd(r#""groups":[{"name":"a"},{"name":"a"}]"#), Both, "passwd.groups[1]", "same name"),
        ("user_without_name", passwd(r#""users":[{"name":""}]"#), OursOnly, "passwd.users[0].name", "required"),
        ("user_name_with_colon", passwd(r#""users":[{"name":"a:b"}]"#), OursOnly, "passwd.users[0].name", "useradd"),
        ("key_twice", passwd(r#""users":[{"name":"a","sshAuthorizedKeys":["x","x"]}]"#), Both, "passwd.users[0].sshAuthorizedKeys[1]", "same key"),
        ("key_not_one", passwd(r#""users":[{"name":"a","sshAuthorizedKeys":["x"]}]"#), Warned, "passwd.users[0].sshAuthorizedKeys[0]", "sshd"),
        ("membership_twice", passwd(r#""users":[{"name":"a","groups":["g","g"]}]"#), Both, "passwd.users[0].groups[1]", "same name"),
        ("unit_without_type", unit(r#""name":"a""#), Both, "systemd.units[0].name", "type of a unit"),
        ("unit_of_unknown_type", unit(r#""name":"a.foo""#), Both, "systemd.units[0].name", "type of a unit"),
        ("unit_is_a_path", unit(r#""name":"../a.service""#), OursOnly, "systemd.units[0].name", "not the name of a unit"),
        ("unit_twice", config(r#""systemd":{"units":[{"name":"a.service"},{"name":"a.service"}]}"#), Both, "systemd.units[1]", "same name"),
        ("section_not_closed", unit(r#""name":"a.service","contents":"[Unit""#), Both, "systemd.units[0].contents", "line 1"),
        ("not_an_assignment", unit(r#""name":"a.service","contents":"[Unit]\nfoo\n""#), Both, "systemd.units[0].contents", "line 2"),
        ("before_any_section", unit(r#""name":"a.service","contents":"foo""#), Warned, "systemd.units[0].contents", "outside of any section"),
        ("enabled_without_install", unit(r#""name":"a.service","enabled":true,"contents":"[Unit]\nA=b""#), Warned, "systemd.units[0].contents", "[Install]"),
        ("enabled_and_masked", unit(r#""name":"a.service","enabled":true,"mask":true"#), Warned, "systemd.units[0].mask", "masked wins"),
        ("drop_in_suffix", unit(r#""name":"a.service","dropins":[{"name":"x"}]"#), Both, "systemd.units[0].dropins[0].name", "NAME.conf"),
        ("drop_in_twice", unit(r#""name":"a.service","dropins":[{"name":"x.conf"},{"name":"x.conf"}]"#), Both, "systemd.units[0].dropins[1]", "same name"),
        ("drop_in_syntax", unit(r#""name":"a.service","dropins":[{"name":"x.conf","contents":"[x"}]"#), Both, "systemd.units[0].dropins[0].contents", "not closed"),
        ("disk_relative", storage(r#""disks":[{"device":"sda"}]"#), Both, "storage.disks[0].device", "not absolute"),
        ("disk_twice", storage(r#""disks":[{"device":"/dev/a"},{"device":"/dev/a"}]"#), Both, "storage.disks[1]", "same device"),
        ("partition_nameless", storage(r#""disks":[{"device":"/dev/a","partitions":[{"startMiB":5}]}]"#), Both, "storage.disks[0].partitions[0]", "number from 1 or a label"),
        ("partition_number_twice", storage(r#""disks":[{"device":"/dev/a","partitions":[{"number":1},{"number":1}]}]"#), Both, "storage.disks[0].partitions[1].number", "number 1 too"),
        ("partition_label_twice", storage(r#""disks":[{"device":"/dev/a","partitions":[{"label":"x"},{"label":"x"}]}]"#), Both, "storage.disks[0].partitions[1].label", "partitions[0] has this label"),
        ("partitions_overlap", storage(r#""disks":[{"device":"/dev/a","partitions":[{"number":1,"startMiB":1,"sizeMiB":10},{"number":2,"startMiB":10,"sizeMiB":0}]}]"#), Both, "storage.disks[0].partitions[1]", "overlaps storage.disks[0].partitions[0]"),
        ("partition_gone_with_size", storage(r#""disks":[{"device":"/dev/a","partitions":[{"number":1,"shouldExist":false,"sizeMiB":0}]}]"#), Both, "storage.disks[0].partitions[0].shouldExist", "nothing but a number"),
        ("partition_gone_beside_unnumbered", storage(r#""disks":[{"device":"/dev/a","partitions":[{"number":1,"shouldExist":false},{"label":"x"}]}]"#), Both, "storage.disks[0].partitions", "needs a number"),
        ("partition_label_long", storage(&format!(r#""disks":[{{"device":"/dev/a","partitions":[{{"label":"{}"}}]}}]"#, "x".repeat(37))), Both, "storage.disks[0].partitions[0].label", "36"),
        ("partition_label_colon", storage(r#""disks":[{"device":"/dev/a","partitions":[{"label":"a:b"}]}]"#), Both, "storage.disks[0].partitions[0].label", "colon"),
        ("partition_guid", storage(r#""disks":[{"device":"/dev/a","partitions":[{"number":1,"typeGuid":"x"}]}]"#), Both, "storage.disks[0].partitions[0].typeGuid", "GUID"),
        ("filesystem_format", storage(r#""filesystems":[{"device":"/dev/a","format":"zfs"}]"#), Both, "storage.filesystems[0].format", "not a format"),
        ("filesystem_without_format", storage(r#""filesystems":[{"device":"/dev/a","path":"/x"}]"#), Both, "storage.filesystems[0].format", "required"),
        ("filesystem_path", storage(r#""filesystems":[{"device":"/dev/a","format":"ext4","path":"x"}]"#), Both, "storage.filesystems[0].path", "not absolute"),
        ("filesystem_label_ext4", storage(&format!(r#""filesystems":[{{"device":"/dev/a","format":"ext4","label":"{}"}}]"#, "x".repeat(17))), Both, "storage.filesystems[0].label", "16"),
        ("filesystem_label_xfs", storage(&format!(r#""filesystems":[{{"device":"/dev/a","format":"xfs","label":"{}"}}]"#, "x".repeat(13))), Both, "storage.filesystems[0].label", "12"),
        ("filesystem_label_vfat", storage(&format!(r#""filesystems":[{{"device":"/dev/a","format":"vfat","label":"{}"}}]"#, "x".repeat(12))), Both, "storage.filesystems[0].label", "11"),
        ("filesystem_label_swap", storage(&format!(r#""filesystems":[{{"device":"/dev/a","format":"swap","label":"{}"}}]"#, "x".repeat(16))), Both, "storage.filesystems[0].label", "15"),
        ("filesystem_label_btrfs", storage(&format!(r#""filesystems":[{{"device":"/dev/a","format":"btrfs","label":"{}"}}]"#, "x".repeat(257))), Both, "storage.filesystems[0].label", "256"),
        ("filesystem_twice", storage(r#""filesystems":[{"device":"/dev/a"},{"device":"/dev/a"}]"#), Both, "storage.filesystems[1]", "same device"),
        ("raid_level", storage(r#""raid":[{"name":"r","level":"7","devices":["/dev/a"]}]"#), Both, "storage.raid[0].level", "not a RAID level"),
        ("raid_without_devices", storage(r#""raid":[{"name":"r","level":"raid1"}]"#), Both, "storage.raid[0].devices", "needs devices"),
        ("raid0_spares", storage(r#""raid":[{"name":"r","level":"raid0","devices":["/dev/a"],"spares":1}]"#), Both, "storage.raid[0].level", "no spares"),
        ("raid_device_relative", storage(r#""raid":[{"name":"r","level":"raid1","devices":["b"]}]"#), Both, "storage.raid[0].devices[0]", "not absolute"),
        ("luks_without_device", storage(r#""luks":[{"name":"l"}]"#), Both, "storage.luks[0].device", "required"),
        ("luks_label_long", storage(r#""luks":[{"name":"l","device":"/dev/a","label":"012345678901234567890123456789012345678901234567"}]"#), Both, "storage.luks[0].label", "47"),
        ("tang_url", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"tang":[{"url":"ftp://x","thumbprint":"x"}]}}]"#), Both, "storage.luks[0].clevis.tang[0].url", "not an http"),
        ("tang_without_thumbprint", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"tang":[{"url":"http://x"}]}}]"#), Both, "storage.luks[0].clevis.tang[0].thumbprint", "required"),
        ("tang_twice", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"tang":[{"url":"http://x","thumbprint":"x"},{"url":"http://x","thumbprint":"y"}]}}]"#), Both, "storage.luks[0].clevis.tang[1]", "same url"),
        ("clevis_pin", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"custom":{"pin":"foo","config":"{}"}}}]"#), Both, "storage.luks[0].clevis.custom.pin", "not a pin"),
        ("clevis_without_config", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"custom":{"pin":"sss"}}}]"#), Both, "storage.luks[0].clevis.custom.config", "required"),
        ("clevis_custom_and_tpm2", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"custom":{"pin":"sss","config":"{}"},"tpm2":true}}]"#), Both, "storage.luks[0].clevis.custom", "cannot be combined"),
        ("raid_device_twice", storage(r#""raid":[{"name":"r","level":"raid1","devices":["/dev/a","/dev/a"]}]"#), Both, "storage.raid[0].devices[1]", "same path"),
        ("array_for_object", r#"{"ignition":{"version":"3.3.0","timeouts":[]}}"#.to_owned(), Both, "ignition.timeouts", "expected an object"),
        ("merge_twice", r#"{"ignition":{"version":"3.3.0","config":{"merge":[{"source":"http://x"},{"source":"http://x"}]}}}"#.to_owned(), Both, "ignition.config.merge[1]", "same source"),
        ("proxy_empty", r#"{"ignition":{"version":"3.3.0","proxy":{"httpProxy":""}}}"#.to_owned(), Both, "ignition.proxy.httpProxy", "not an http"),
        ("no_proxy_twice", r#"{"ignition":{"version":"3.3.0","proxy":{"noProxy":["a","a"]}}}"#.to_owned(), Both, "ignition.proxy.noProxy[1]", "same text"),
        ("argument_twice", config(r#""kernelArguments":{"shouldNotExist":["a","a"]}"#), Both, "kernelArguments.shouldNotExist[1]", "same text"),
        ("tang", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"tang":[{"url":"http://x","thumbprint":"y"}]}}]"#), OursOnly, "storage.luks[0].clevis.tang", "no client of Tang"),
        ("tang_custom", storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"custom":{"pin":"sss","config":"{\"pins\":{\"tang\":[{\"url\":\"http://x\"}]}}"}}}]"#), OursOnly, "storage.luks[0].clevis.custom", "no client of Tang"),
        ("raid_linear", storage(r#""raid":[{"name":"r","level":"linear","devices":["/dev/a"]}]"#), OursOnly, "storage.raid[0].level", "use raid0"),
        ("boot_disk_wiped", boot_disk(r#""wipeTable":true"#), OursOnly, "storage.disks[0].wipeTable", "cannot be wiped"),
        ("boot_disk_whole", boot_disk(r#""partitions":[{"label":"data"}]"#), OursOnly, "storage.disks[0].partitions[0]", "set sizeMiB"),
        ("boot_disk_slot", boot_disk(r#""partitions":[{"number":2,"sizeMiB":99}]"#), OursOnly, "storage.disks[0].partitions[0].number", "are the image's"),
        ("boot_disk_root", boot_disk(r#""partitions":[{"number":4,"label":"root","sizeMiB":8192,"resize":true}]"#), Warned, "storage.disks[0].partitions[0].label", "does not size the root"),
        ("label_of_the_image", storage(r#""disks":[{"device":"/dev/a","partitions":[{"label":"selvage-root"}]}]"#), OursOnly, "storage.disks[0].partitions[0].label", "image's partitions"),
        ("partition_without_number", storage(r#""disks":[{"device":"/dev/a","partitions":[{"label":"d","sizeMiB":9}]}]"#), Warned, "storage.disks[0].partitions[0]", "adds one more"),
        ("filesystem_on_the_esp", storage(r#""filesystems":[{"device":"/dev/disk/by-partlabel/selvage-esp","format":"vfat","wipeFilesystem":true}]"#), OursOnly, "storage.filesystems[0].device", "partition of the image"),
        ("volume_on_a_slot", storage(r#""luks":[{"name":"l","device":"/dev/disk/by-partlabel/selvage_0.1.0"}]"#), OursOnly, "storage.luks[0].device", "partition of the image"),
        ("array_on_the_root", storage(r#""raid":[{"name":"r","level":"raid1","devices":["/dev/disk/by-partlabel/selvage-root"]}]"#), OursOnly, "storage.raid[0].devices[0]", "partition of the image"),
        ("xfs_too_small", storage(r#""disks":[{"device":"/dev/a","partitions":[{"label":"d","sizeMiB":200}]}],"filesystems":[{"device":"/dev/disk/by-partlabel/d","format":"xfs"}]"#), OursOnly, "storage.filesystems[0].format", "300 MiB"),
        ("filesystem_for_root", storage(r#""filesystems":[{"device":"/dev/disk/by-label/root","format":"xfs","path":"/"}]"#), OursOnly, "storage.filesystems[0].path", "selvage-root"),
        ("luks_name_slash", storage(r#""luks":[{"name":"a/b","device":"/dev/a"}]"#), Both, "storage.luks[0].name", "must not contain '/'"),
    ]
}

fn good_configs() -> Vec<String> {
    let specs = ["3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0"];
    let mut good: Vec<String> = specs.map(version).into();
    good.extend(["btrfs", "ext4", "none", "swap", "vfat", "xfs"].map(filesystem));
    let levels = [
        "raid0", "0", "stripe", "raid1", "1", "mirror", "raid4", "4", "raid5", "5", "raid6", "6",
        "raid10", "10",
    ];
    good.extend(levels.map(|level| {
        storage(&format!(
            r#""raid":[{{"name":"r","level":"{level}","devices":["/dev/a"]}}]"#
        ))
    }));
    let sources = [
        "",
        "data:,",
        "data:,a/b:c=d@e,f;g",
        "data:;base64,aGk=",
        "data:text/plain;charset=utf-8,a%20b",
        "http://x/y",
        "https://x/%20",
        "tftp://x/y",
        "s3://x/y",
        "gs://x/y",
    ];
    good.extend(sources.map(source));
    let units = [
        "automount",
        "device",
        "mount",
        "path",
        "scope",
        "service",
        "slice",
        "snapshot",
        "socket",
        "swap",
        "target",
        "timer",
    ];
    good.extend(units.map(|suffix| unit(&format!(r#""name":"a@b-1:\\x2d.{suffix}""#))));
    good.extend([
        hash(&format!("sha512-{}", "0f".repeat(64))),
        hash(&format!("sha256-{}", "0F".repeat(32))),
        storage(r#""files":null,"directories":[{"path":"/a","mode":493}],"links":[{"path":"/a/b","target":"../c"}]"#),
        storage(r#""files":[{"path":"/a","mode":420,"append":[{}],"user":{"id":0},"group":{"name":"root"}}]"#),
        config(r#""kernelArguments":{"shouldExist":["mitigations=auto"],"shouldNotExist":["nosmt"]}"#),
        storage(r#""disks":[{"device":"/dev/a","wipeTable":true,"partitions":[{"number":1,"typeGuid":"01234567-89AB-CDEF-EDCB-A98765432101","startMiB":1,"sizeMiB":10},{"label":"b","startMiB":11,"sizeMiB":0}]}]"#),
        storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"tpm2":true}},{"name":"k","device":"/dev/b","keyFile":{"source":"data:,k"}}]"#),
        storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"custom":{"pin":"tpm2","config":"{\"pcr_ids\":\"7\"}"}}}]"#),
        unit(r##""name":"a.service","enabled":true,"contents":"# c\n; d\n\n[Unit]\nA=b \\\n c=\\\n  d\n[Install]\nX=\n""##),
    ]);
    good
}

#[test]
fn every_fault_is_found_at_its_path() {
    let mut wrong = Vec::new();
    for (fault, text, found, path, part) in bad_configs() {
        let report = check(&text);
        let severity = if found == Warned {
            Severity::Warning
        } else {
            Severity::Error
        };
        let is_expected = |finding: &Finding| {
            finding.severity == severity && finding.path == path && finding.message.contains(part)
        };
        let is_accepted = report.errors() == 0;
        if !report.findings.iter().any(is_expected) || is_accepted != (found == Warned) {
            wrong.push(format!(
                "{fault}: expected {severity:?} {path}: …{part}…, got {:#?}",
                report.findings
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn good_configs_have_no_findings() {
    for text in good_configs() {
        assert_eq!(check(&text).findings, [], "{text}");
    }
}

/// `NAME.ign` gets the findings of `NAME.txt`, and none without such a file.
#[test]
fn published_shapes_get_their_findings() {
    let directory = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/appliance/ignition/check/fixtures"
    );
    let fixtures = fixtures();
    assert!(fixtures.len() >= 14, "{:?}", fixtures.keys());
    for (name, text) in fixtures {
        let expected =
            std::fs::read_to_string(format!("{directory}/{name}.txt")).unwrap_or_default();
        let findings = check(&text).findings;
        let found: String = findings
            .iter()
            .map(|finding| format!("{finding}\n"))
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn ignition_itself_agrees() {
    let mut wrong = Vec::new();
    let bad = bad_configs()
        .into_iter()
        .map(|(fault, text, found, ..)| (fault, text, found == Both));
    // As the initrd hands them over.
    let native = |text: String| translate::translate(&text).ok()?.or(Some(text));
    let good = [good_configs(), fixtures().into_values().collect()];
    let good = good.into_iter().flatten().filter_map(native);
    let good = good.map(|text| ("good", text, false));
    for (fault, text, is_refused) in bad.chain(good) {
        match ignition_validate(&text) {
            Ok(refusal) if refusal.is_some() == is_refused => {}
            Ok(refusal) => wrong.push(format!("{fault}: {text}: {refusal:?}")),
            Err(missing) => return report_skip(missing),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rules_follow_the_spec_version() {
    let as_spec = |spec: &str, text: String| check(&text.replace("3.3.0", spec)).errors();
    let sha256 = || hash(&format!("sha256-{}", "0f".repeat(32)));
    assert_eq!(
        ["3.0.0", "3.1.0"].map(|spec| as_spec(spec, sha256())),
        [1, 0]
    );
    let gs = || source("gs://x/y");
    assert_eq!(["3.1.0", "3.2.0"].map(|spec| as_spec(spec, gs())), [1, 0]);
}

/// Every key that a spec added, in one config.
const ALL_ADDED: &str = r#"
    "storage":{
        "files":[{"path":"/a","contents":{"source":"http://x","httpHeaders":[]},"append":[{"httpHeaders":null}]}],
        "filesystems":[{"device":"/dev/a","format":"ext4","mountOptions":[]}],
        "disks":[{"device":"/dev/a","partitions":[{"number":1},{"number":2,"resize":false}]}],
        "luks":[{"name":"l","device":"/dev/b"}]},
    "passwd":{"users":[{"name":"a","shouldExist":true}],"groups":[{"name":"b","shouldExist":true}]},
    "kernelArguments":{"shouldExist":[]}}"#;

#[test]
fn keys_of_later_specs_are_unknown_as_to_ignition_config_itself() {
    let references = [
        "config.merge[0]",
        "config.replace",
        "security.tls.certificateAuthorities[0]",
    ];
    for minor in 0..=3_u64 {
        let reference =
            r#"{"source":"http://x","compression":"","httpHeaders":[],"verification":{}}"#;
        let text = format!(
            r#"{{"ignition":{{"version":"3.{minor}.0","proxy":{{}},"config":{{"merge":[{reference}],"replace":{reference}}},
            "security":{{"tls":{{"certificateAuthorities":[{reference}]}}}}}},{ALL_ADDED}"#
        );
        let (_, warnings) = ignition_config::Config::parse_str(&text).unwrap();
        let expected = warnings.iter().map(|warning| {
            let path = warning.to_string();
            let parts = path.trim_start_matches("unused key: $.").split('.');
            parts.fold(String::new(), |path, part| match part.parse() {
                Ok(index) => join_index(&path, index),
                Err(_) => join_key(&path, part),
            })
        });
        let expected: BTreeSet<String> = expected.collect();
        let findings = check(&text).findings.into_iter();
        let unknown = findings.filter(|finding| finding.message.starts_with("unknown key"));
        let unknown: BTreeSet<String> = unknown.map(|finding| finding.path).collect();
        assert_eq!(unknown, expected, "3.{minor}.0");
        let has = |key: &str| unknown.contains(key);
        assert_eq!(has("kernelArguments"), minor < 3);
        assert_eq!(has("storage.luks"), minor < 2);
        for reference in references {
            assert_eq!(has(&format!("ignition.{reference}.httpHeaders")), minor < 1);
        }
    }
}

#[test]
fn what_a_spec_requires_is_missed_in_earlier_ones_too() {
    for (lists, path) in [
        (r#""links":[{"path":"/l"}]"#, "storage.links[0].target"),
        (
            r#""raid":[{"name":"r","level":"raid1"}]"#,
            "storage.raid[0].devices",
        ),
        (
            r#""raid":[{"name":"r","devices":["/dev/a"]}]"#,
            "storage.raid[0].level",
        ),
    ] {
        let report = check(&storage(lists).replace("3.3.0", "3.2.0"));
        let found = report
            .findings
            .iter()
            .any(|f| f.path == path && f.severity == Severity::Error);
        assert!(found, "{lists}: {report:?}");
    }
    let custom = storage(r#""luks":[{"name":"l","device":"/dev/a","clevis":{"custom":{}}}]"#);
    let errors = |spec| {
        let findings = check(&custom.replace("3.3.0", spec)).findings.into_iter();
        findings.filter(|f| f.path.contains("custom")).count()
    };
    assert_eq!([errors("3.2.0"), errors("3.3.0")], [2, 0]);
}

#[test]
fn an_empty_config_provisions_nothing() {
    let report = check(" \n");
    assert_eq!(report.errors(), 0);
    assert_eq!(report.to_string(), "no config");
    assert_eq!(report.findings.len(), 1);
}

#[test]
fn other_formats_are_recognised() {
    for (text, name) in [
        ("#cloud-config\nusers: []\n", "cloud-init"),
        ("#!/bin/sh\n", "script"),
        ("variant: flatcar\nversion: 1.0.0\n", "butane --strict"),
    ] {
        let report = check(text);
        assert!(
            report.findings.iter().any(|f| f.message.contains(name)),
            "{text}"
        );
    }
}

#[test]
fn findings_read_like_a_compilers() {
    let report = check(
        "{\"ignition\": {\"version\": \"3.3.0\"},\n \"storage\": {\"files\": [\n  {\"path\": \"/a\", \"mode\": 9999},\n  {\"path\": \"b\"}]}}",
    );
    let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "3:26: error: storage.files[0].mode: 9999 is not a file mode: expected 0 to 4095, in decimal (0644 is 420)",
            "4:12: error: storage.files[1].path: \"b\" is not absolute: it must begin with '/'",
        ]
    );
    assert_eq!(report.to_string(), "spec 3.3.0, 2 files, 0 units");
}

proptest! {
    /// Cuts and changes to a real config may be found or not, but never panic.
    #[test]
    fn checking_never_panics(cut in 0..6000_usize, at in 0..6000_usize, with in "[\\[\\]{}\",:0-9a-zé\\\\]{0,3}") {
        let mut text = include_str!("../golden/node1.ign").to_owned();
        let at = at.min(text.len());
        text.replace_range(at..(at + 1).min(text.len()), &with);
        check(&text);
        let cut = (0..=cut.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        check(&text[..cut]);
    }
}
