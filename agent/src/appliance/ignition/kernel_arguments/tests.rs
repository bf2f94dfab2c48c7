//! Which arguments go into the add-on, when the machine restarts, and a program that others read.

use proptest::prelude::*;

use super::*;

/// systemd's `addonx64.efi.stub` of version 257, which has 2048 bytes: headers, two sections, and nothing else.
fn stub() -> Vec<u8> {
    let mut program = vec![0; 2048];
    let mut put = |at: usize, bytes: &[u8]| program[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0\x64\x86\x02\0");
    put(0x54, &240_u16.to_le_bytes());
    put(0x58, &0x20b_u16.to_le_bytes());
    for (at, value) in [(0x78, 0x1000_u32), (0x7c, 512), (0x90, 12288), (0x94, 1024)] {
        put(at, &value.to_le_bytes());
    }
    for (at, name, address, offset) in [
        (0x148, b".text\0\0\0", 0x1000_u32, 0x400_u32),
        (0x170, b".sdmagic", 0x2000, 0x600),
    ] {
        put(at, name);
        for (i, value) in [0x34, address, 0x200, offset].into_iter().enumerate() {
            put(at + 8 + 4 * i, &value.to_le_bytes());
        }
    }
    program
}

/// A machine without Secure Boot, or with it.
struct Host(tempfile::TempDir);

impl Host {
    fn new(line: &str, secure_boot: u8) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        let secure = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        host.write(secure, &[6, 0, 0, 0, secure_boot]);
        host.write("usr/lib/systemd/boot/efi/addonx64.efi.stub", &stub());
        host.write("usr/lib/systemd/boot/efi/addonaa64.efi.stub", &stub());
        host.start(line);
        host
    }

    fn write(&self, path: &str, contents: &[u8]) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// The kernel starts, with what the add-on says after `line`.
    fn start(&self, line: &str) {
        let ours = self.addon().unwrap_or_default();
        let line = format!("{line} {ours} console=ttyS0");
        self.write("proc/cmdline", format!("{}\n", line.trim_end()).as_bytes());
    }

    fn addon(&self) -> Option<String> {
        let program = fs::read(self.0.path().join("efi").join(ADDON)).ok()?;
        Some(addon::arguments(&program).unwrap())
    }

    fn apply(&self, present: &[&str], absent: &[&str]) -> Result<bool, KernelArgumentsError> {
        let owned = |list: &[&str]| list.iter().map(|a| (*a).to_owned()).collect();
        let wanted = Wanted {
            present: owned(present),
            absent: owned(absent),
        };
        let places = Places {
            root: self.0.path(),
            image: self.0.path(),
            esp: &self.0.path().join("efi"),
        };
        command(places, &wanted)
    }
}

/// The arguments are those of fedora-coreos-docs `kernel-args.adoc` and coreos/ignition `docs/examples.md`.
#[test]
fn arguments_are_written_once_and_then_there() {
    let line = "root=PARTLABEL=selvage-root rw quiet";
    let host = Host::new(line, 0);
    let apply = || {
        host.apply(
            &["mitigations=auto", "systemd.unified_cgroup_hierarchy=0"],
            &["mitigations=auto,nosmt"],
        )
    };
    assert!(apply().unwrap());
    let addon = "mitigations=auto systemd.unified_cgroup_hierarchy=0";
    assert_eq!(host.addon().unwrap(), addon);
    // A kernel that was started without it does not restart for ever.
    let error = apply().unwrap_err().to_string();
    assert!(error.contains("started without"), "{error}");
    host.start(line);
    assert!(!apply().unwrap());
}

#[test]
fn what_a_config_no_longer_wants_is_taken_back() {
    let host = Host::new("rw quiet", 0);
    assert!(host.apply(&["a=1", "b=\"x y\""], &[]).unwrap());
    host.start("rw quiet");
    assert!(host.apply(&["c"], &["a=1"]).unwrap());
    assert_eq!(host.addon().unwrap(), "b=\"x y\" c");
    host.start("rw quiet");
    assert!(host.apply(&[], &["b=\"x y\"", "c", "d"]).unwrap());
    assert_eq!(host.addon(), None);
    host.start("rw quiet");
    assert!(!host.apply(&["quiet"], &["b=\"x y\""]).unwrap());
}

#[test]
fn what_is_built_in_stays() {
    let host = Host::new("rw console=ttyS0 quiet", 0);
    let error = host.apply(&["a"], &["quiet"]).unwrap_err().to_string();
    assert!(error.contains("quiet is on the command line"), "{error}");
    assert_eq!(host.addon(), None);
}

#[test]
fn secure_boot_refuses_only_what_would_change_something() {
    let host = Host::new("rw mitigations=auto", 1);
    assert!(!host.apply(&["mitigations=auto"], &["quiet"]).unwrap());
    let error = host.apply(&["a", "b=c"], &[]).unwrap_err().to_string();
    assert!(
        error.contains("Secure Boot on") && error.contains("asked for: a b=c"),
        "{error}"
    );
    assert_eq!(host.addon(), None);
}

#[test]
fn a_file_that_is_no_add_on_is_named() {
    let host = Host::new("rw", 0);
    host.write(&format!("efi/{ADDON}"), b"MZ");
    assert!(
        host.apply(&["a"], &[])
            .unwrap_err()
            .to_string()
            .contains("no add-on")
    );
    assert!(host.apply(&[], &[]).is_err());
}

#[test]
fn an_add_on_has_its_section_behind_the_others() {
    let addon = addon::with_arguments(&stub(), "mitigations=auto").unwrap();
    assert_eq!(addon.len(), 2048 + 512);
    assert_eq!(addon::arguments(&addon).unwrap(), "mitigations=auto");
    // Its place in memory, and the image's new end.
    assert_eq!(addon[0x198 + 12..0x198 + 16], 12288_u32.to_le_bytes());
    assert_eq!(addon[0x90..0x94], 16384_u32.to_le_bytes());
    assert!(addon::with_arguments(&addon, "a").is_none());
    // objdump(1) of binutils reads it as it reads systemd's.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.addon.efi");
    fs::write(&file, &addon).unwrap();
    let objdump = std::process::Command::new("objdump");
    let mut objdump = objdump;
    match objdump.arg("--section-headers").arg(&file).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains(".cmdline      00000010"), "{said}");
        }
        Err(error) => {
            eprintln!("SKIPPED: objdump cannot be run ({error}): the add-on is read by us only")
        }
    }
}

#[test]
fn words_are_the_kernels() {
    assert_eq!(
        words(" a  b=\"c d\" \"e f\"\n"),
        ["a", "b=\"c d\"", "\"e f\""]
    );
    assert_eq!(words("a=\"b c"), ["a=\"b c"]);
}

proptest! {
    #[test]
    fn damaged_programs_never_panic(at in 0..2048_usize, byte in any::<u8>(), cut in 0..2048_usize) {
        let mut program = stub();
        program[at] = byte;
        let _any_result = addon::with_arguments(&program, "a");
        let _any_result = addon::arguments(&program[..cut]);
        let _any_result = addon::with_arguments(&program[..cut], "a");
    }
}
