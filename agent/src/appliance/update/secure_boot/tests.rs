use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::appliance::update::machine::{self, UpdateError};
use crate::appliance::update::samples::{self, server::TestServer};
use crate::appliance::update::state::Health;
use crate::settings::{self, Environment, SettingsFlags, Sources};

const PLAIN: &[u8] = include_bytes!("samples/plain.efi");
const BY_DB: &[u8] = include_bytes!("samples/db.efi");
const BY_OTHER: &[u8] = include_bytes!("samples/other.efi");
const BY_LEAF: &[u8] = include_bytes!("samples/leaf.efi");
const BY_SYSTEMD: &[u8] = include_bytes!("samples/systemd.efi");
const DB: &[u8] = include_bytes!("samples/db.der");
const OTHER: &[u8] = include_bytes!("samples/other.der");
const LEAF: &[u8] = include_bytes!("samples/leaf.der");

/// Types of lists, as `efi-readvar` and others write them.
const X509: &str = "a159c0a5e494a74a87b5ab155c2bf072";
const SHA256: &str = "2616c4c14c509240aca941f936934328";

/// A list of one type, with an owner of zeros.
fn list(kind: &str, entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend((0..16).map(|at| u8::from_str_radix(&kind[2 * at..2 * at + 2], 16).unwrap()));
        let size = u32::try_from(16 + entry.len()).unwrap();
        bytes.extend((28 + size).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(*entry);
    }
    bytes
}

struct Machine(TempDir);

impl Machine {
    /// A machine with Secure Boot on and these databases.
    fn new(db: &[u8], dbx: &[u8]) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(machine.0.path().join(VARIABLES)).unwrap();
        machine.set("SecureBoot", GLOBAL, &[1]);
        machine.set("db", DATABASE, db);
        machine.set("dbx", DATABASE, dbx);
        machine
    }

    fn set(&self, name: &str, namespace: &str, value: &[u8]) {
        let path = self.0.path().join(VARIABLES);
        let value = [&[0x27, 0, 0, 0], value].concat();
        fs::write(path.join(format!("{name}-{namespace}")), value).unwrap();
    }

    fn check(&self, program: &[u8]) -> Result<(), SecureBootError> {
        let uki = self.0.path().join("selvage_2.efi");
        fs::write(&uki, program).unwrap();
        check(self.0.path(), &uki)
    }

    /// Why it is refused.
    fn fault(&self, program: &[u8]) -> Fault {
        match self.check(program) {
            Err(SecureBootError::Refused { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_the_firmware_trusts_is_taken_and_nothing_else() {
    let machine = Machine::new(&list(X509, &[DB]), &[]);
    machine.check(BY_DB).unwrap();
    machine.check(BY_SYSTEMD).unwrap();
    // `db` vouches for `leaf`, but the program has only the leaf's own certificate with it.
    machine.check(BY_LEAF).unwrap();
    let other = "CN=sample other".to_owned();
    assert_eq!(machine.fault(BY_OTHER), Fault::Untrusted(other));
    assert_eq!(machine.fault(PLAIN), Fault::Unsigned);
    Machine::new(&list(X509, &[OTHER, DB]), &[])
        .check(BY_OTHER)
        .unwrap();
    // A leaf that is trusted itself vouches for nobody else.
    let leaf = Machine::new(&list(X509, &[LEAF]), &[]);
    leaf.check(BY_LEAF).unwrap();
    assert_eq!(
        leaf.fault(BY_DB),
        Fault::Untrusted("CN=sample db".to_owned())
    );
}

#[test]
fn without_secure_boot_everything_is_taken() {
    let machine = Machine::new(&list(X509, &[DB]), &[]);
    machine.set("SecureBoot", GLOBAL, &[0]);
    machine.check(PLAIN).unwrap();
    // No firmware variables at all: another kind of boot.
    let machine = Machine(tempfile::tempdir().unwrap());
    machine.check(PLAIN).unwrap();
}

#[test]
fn the_refusal_says_who_signed_whom_the_firmware_trusts_and_what_to_do() {
    let machine = Machine::new(&list(X509, &[DB]), &[]);
    let said = machine.check(BY_OTHER).unwrap_err().to_string();
    for part in [
        "selvage_2.efi",
        "signed by CN=sample other",
        "CN=sample db",
        "enrol",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_program_that_was_changed_after_it_was_signed_is_refused() {
    let machine = Machine::new(&list(X509, &[DB]), &[]);
    // In the header's time stamp, in the code and at the end of what was signed.
    for at in [72, 600, PLAIN.len() - 1] {
        let mut program = BY_DB.to_vec();
        program[at] ^= 1;
        assert_eq!(
            machine.fault(&program),
            Fault::Changed("CN=sample db".to_owned()),
            "byte {at}"
        );
    }
    // The last bytes are filling; the one before them is the signature's.
    let mut program = BY_DB.to_vec();
    let last = program.iter().rposition(|byte| *byte != 0).unwrap();
    program[last] ^= 1;
    assert_eq!(
        machine.fault(&program),
        Fault::Changed("CN=sample db".to_owned())
    );
}

#[test]
fn the_signature_of_another_program_is_of_no_use() {
    let machine = Machine::new(&list(X509, &[DB]), &[]);
    let mut program = BY_DB.to_vec();
    program[600] = 0x90;
    assert_eq!(
        machine.fault(&program),
        Fault::Changed("CN=sample db".to_owned())
    );
}

#[test]
fn digests_are_trusted_and_revoked_as_well() {
    let uki = tempfile::NamedTempFile::new().unwrap();
    fs::write(uki.path(), PLAIN).unwrap();
    let digest = program::read(uki.path()).unwrap().digest;
    let hash = list(SHA256, &[&digest]);
    Machine::new(&hash, &[]).check(PLAIN).unwrap();
    let machine = Machine::new(&list(X509, &[DB]), &hash);
    // The signature is no part of the digest.
    assert_eq!(machine.fault(BY_DB), Fault::Revoked(None));
    let machine = Machine::new(&list(X509, &[DB, LEAF]), &list(X509, &[DB]));
    let revoked = Some("CN=sample db".to_owned());
    assert_eq!(machine.fault(BY_DB), Fault::Revoked(revoked));
    machine.check(BY_LEAF).unwrap();
}

#[test]
fn a_file_that_is_no_program_is_named() {
    let machine = Machine::new(&list(X509, &[DB]), &[]);
    for bytes in [&b""[..], b"MZ", &[0; 4096], &BY_DB[..300], &BY_DB[..1600]] {
        let said = machine.check(bytes).unwrap_err().to_string();
        assert!(said.contains("selvage_2.efi"), "{said}");
    }
}

#[tokio::test]
async fn an_update_that_the_firmware_would_not_start_leaves_slot_and_entries_alone() {
    let mut site = samples::Site::new();
    let release = samples::release("1.1", &mut site);
    samples::publish(&mut site, 5, &[release]);
    let server = TestServer::start(site).await;
    let settings = format!("server = \"http://{}/releases\"", server.address);
    let root = samples::machine("1.0", &settings);
    let secure = Machine(root);
    fs::create_dir_all(secure.0.path().join(VARIABLES)).unwrap();
    secure.set("SecureBoot", GLOBAL, &[1]);
    let settings = settings::update::load(Sources {
        root: secure.0.path(),
        config: None,
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    });
    let machine = machine::Machine::new(secure.0.path(), settings.unwrap()).unwrap();
    let index = machine.check().await.unwrap();
    let mut hear = |_: machine::Step<'_>| ();
    let slot = secure.0.path().join("dev/vda4");
    let before = fs::read(&slot).ok();
    let apply = machine.apply(&index.releases[0], async || Health::default(), &mut hear);
    let error = apply.await.unwrap_err();
    assert!(matches!(error, UpdateError::SecureBoot(_)), "{error}");
    assert_eq!(fs::read(&slot).ok(), before);
    assert!(machine.state().pending.is_none());
    // The same release, by a firmware that does not look.
    secure.set("SecureBoot", GLOBAL, &[0]);
    let apply = machine.apply(&index.releases[0], async || Health::default(), &mut hear);
    apply.await.unwrap();
    assert_ne!(fs::read(&slot).ok(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_are_too_strange(
        at in 0..BY_DB.len(),
        with in proptest::collection::vec(any::<u8>(), 1..8),
        database in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut program = BY_DB.to_vec();
        let end = (at + with.len()).min(program.len());
        program[at..end].copy_from_slice(&with[..end - at]);
        let machine = Machine::new(&[list(X509, &[DB]), database].concat(), &[]);
        let unchanged = program == BY_DB;
        let said = machine.check(&program);
        prop_assert!(!unchanged || said.is_ok());
    }
}
