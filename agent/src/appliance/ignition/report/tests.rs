//! Outputs of systemd 257 in the image, and the report for them.

use super::judge::{Boot, Unit, judge};
use super::*;

/// `systemctl show` of machines as their names say; each block begins with the name that was asked for.
const RECORDED: &str = include_str!("recorded.txt");

/// Answers from [`RECORDED`].
fn show(names: &[String]) -> Result<Vec<Unit>, ReportError> {
    let block_of = |name: &String| {
        let mut blocks = RECORDED.split("\n\n");
        let block = blocks.find(|block| block.trim_start().starts_with(&format!("# {name}\n")));
        block.unwrap_or_else(|| panic!("{name} is not recorded"))
    };
    let text: Vec<&str> = names.iter().map(block_of).collect();
    Ok(Unit::parse(&text.join("\n\n")))
}

fn asked(enabled: &[&str], dropped_in: &[&str]) -> Asked {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let links = [
        ("needs-missing.service", "multi-user.target"),
        ("needs-masked.service", "multi-user.target"),
        ("needs-failed.service", "multi-user.target"),
        ("needs-left-out.service", "multi-user.target"),
        ("for-graphical.service", "graphical.target"),
        ("for-later.service", "later.target"),
        ("docker.service", "multi-user.target"),
        ("condition.service", "multi-user.target"),
        ("queued.service", "multi-user.target"),
    ];
    let links = links.map(|(unit, target)| (unit.to_owned(), vec![target.to_owned()]));
    Asked {
        enabled: owned(enabled),
        dropped_in: owned(dropped_in),
        wanted_by: links.into(),
        templates: vec!["serial-getty@.service".to_owned()],
    }
}

fn told(asked: &Asked, boot: Boot) -> Vec<String> {
    let faults = judge(asked, boot, &mut show).unwrap();
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn what_was_asked_in_vain_is_told_with_cause_and_remedy() {
    let asked = asked(
        &[
            "for-graphical.service",
            "masked.service",
            "missing.service",
            "needs-failed.service",
            "needs-left-out.service",
            "needs-masked.service",
            "needs-missing.service",
            "no-install.service",
            "restarting.service",
            "unreadable.service",
        ],
        &["docker.service", "elsewhere.service", "nowhere@.service"],
    );
    assert_eq!(
        told(&asked, Boot::First).join("\n") + "\n",
        include_str!("told.txt")
    );
}

#[test]
fn what_waits_is_done_or_is_not_wanted_here_is_not_told() {
    let asked = asked(
        &[
            "active.service",
            "activating.service",
            "by-socket.service",
            "condition.service",
            "done.service",
            "failed.service",
            "for-later.service",
            "queued.service",
            "restarted.service",
            "timer.timer",
        ],
        &[
            "off.service",
            "serial-getty@.service",
            "serial-getty@ttyS0.service",
        ],
    );
    assert_eq!(told(&asked, Boot::First), [""; 0]);
}

#[test]
fn later_boots_leave_an_administrators_choice_alone() {
    let asked = asked(&["disabled.service", "masked.service"], &[]);
    assert_eq!(told(&asked, Boot::First).len(), 2);
    assert_eq!(told(&asked, Boot::Later), [""; 0]);
}

#[test]
fn presets_name_units_and_instances() {
    let preset = "enable b.service\ndisable c.service\nenable echo@.service x y\nenable t@.service \nenable b.service\n# d\n";
    assert_eq!(
        enabled_units(preset),
        ["b.service", "echo@x.service", "echo@y.service"]
    );
}

#[test]
fn a_machine_is_read_from_its_files() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let asked = Asked::read(root.path()).unwrap();
    assert!(asked.enabled.is_empty() && asked.dropped_in.is_empty());

    write(PRESET, "enable a.service\n");
    write("etc/systemd/system/a.service.d/x.conf", "");
    write("etc/systemd/system/empty.service.d/README", "");
    write("etc/systemd/system/service.d/all.conf", "");
    write("etc/systemd/system/docker-.scope.d/x.conf", "");
    write("etc/systemd/system/app-.service.d/x.conf", "");
    write("etc/systemd/system/multi-user.target.wants/a.service", "");
    write("etc/systemd/system/own@.service", "");
    write("usr/lib/systemd/system/getty@.service", "");
    let asked = Asked::read(root.path()).unwrap();
    assert_eq!(asked.enabled, ["a.service"]);
    assert_eq!(asked.dropped_in, ["a.service"]);
    assert_eq!(asked.wanted_by["a.service"], ["multi-user.target"]);
    assert_eq!(asked.templates, ["own@.service", "getty@.service"]);

    write("proc/sys/kernel/random/boot_id", "this\n");
    assert_eq!(boot(root.path()), Boot::Later);
    write(
        RESULT,
        r#"{"provisioningBootID": "this", "provisioningDate": "x", "userConfigProvided": true}"#,
    );
    assert_eq!(boot(root.path()), Boot::First);
    write(RESULT, r#"{"provisioningBootID": "another"}"#);
    assert_eq!(boot(root.path()), Boot::Later);
}
