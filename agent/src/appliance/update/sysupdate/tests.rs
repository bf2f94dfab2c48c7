use super::*;
use crate::appliance::update::samples;

async fn update(text: &str) -> (Result<(), SysupdateError>, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("usr/lib/systemd")).unwrap();
    samples::program(&root.path().join("usr/lib/systemd/systemd-sysupdate"), text);
    let mut lines = Vec::new();
    let version = "1.1".parse().unwrap();
    let sysupdate = Sysupdate::new(root.path());
    let result = sysupdate
        .update(None, &version, &mut |line| lines.push(line.to_owned()))
        .await;
    (result, lines)
}

#[tokio::test]
async fn both_outputs_are_heard_in_their_order() {
    let (result, lines) =
        update("echo one; echo two >&2; printf three; echo \"[$NOTIFY_SOCKET]\" >&2").await;
    result.unwrap();
    assert_eq!(lines, ["one", "two", "three[]"]);
}

#[tokio::test]
async fn a_failure_tells_the_last_lines_and_how_it_ended() {
    let (result, _) = update("for i in 1 2 3 4 5 6 7 8; do echo line $i; done; exit 3").await;
    let error = result.unwrap_err().to_string();
    assert_eq!(
        error,
        "systemd-sysupdate failed (exit status: 3): line 3; line 4; line 5; line 6; line 7; line 8"
    );
    let (result, _) = update("kill -9 $$").await;
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("signal: 9") && error.contains("it said nothing"),
        "{error}"
    );
    let (result, lines) =
        update("head -c 100000 /dev/zero | tr '\\0' x; printf '\\377\\n'; exit 1").await;
    assert!(result.unwrap_err().to_string().len() < 2 * LONGEST_LINE);
    assert_eq!(lines[0].len(), LONGEST_LINE);
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let root = tempfile::tempdir().unwrap();
    let version = "1.1".parse().unwrap();
    let error = Sysupdate::new(root.path())
        .update(None, &version, &mut |_| ())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("usr/lib/systemd/systemd-sysupdate"),
        "{error}"
    );
}

#[tokio::test]
async fn the_transfers_name_the_disk_and_nothing_is_left_of_former_ones() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for directory in ["usr/lib/systemd", "usr/lib/sysupdate.d", DEFINITIONS] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    samples::program(
        &at("usr/lib/systemd/systemd-sysupdate"),
        "cd ${1#--definitions=} && grep -H Path= *",
    );
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image");
    let signed = "mkosi.profiles/signed/mkosi.extra/usr/lib/sysupdate.d";
    for transfers in ["mkosi.extra/usr/lib/sysupdate.d", signed] {
        for transfer in fs::read_dir(image.join(transfers)).unwrap() {
            let transfer = transfer.unwrap();
            let to = at("usr/lib/sysupdate.d").join(transfer.file_name());
            fs::copy(transfer.path(), to).unwrap();
        }
    }
    fs::write(at(DEFINITIONS).join("99-old.transfer"), "Path=old\n").unwrap();
    let (mut lines, version) = (Vec::new(), "1.1".parse().unwrap());
    Sysupdate::new(root.path())
        .update(Some(Path::new("/dev/vdx")), &version, &mut |line| {
            lines.push(line.to_owned());
        })
        .await
        .unwrap();
    lines.retain(|line| !line.ends_with("Path=/var/lib/selvage/update/staging"));
    assert_eq!(
        lines,
        [
            "05-usr-verity-sig.transfer:Path=/dev/vdx",
            "10-usr-verity.transfer:Path=/dev/vdx",
            "20-usr.transfer:Path=/dev/vdx",
            "90-uki.transfer:Path=/EFI/Linux",
        ]
    );
}
