//! The first ADD after a reboot frees what containers from before had, and never what a living one has.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::host::{Host, of_flannel};

/// The mark with the boot's ID.
const MARK: &str = "data/.boot";

/// Lets all files of the state directory be from long ago.
fn age(host: &Host) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    for name in host.remembered() {
        set_age(host, &name, long_ago);
    }
}

fn set_age(host: &Host, name: &str, time: SystemTime) {
    let file = File::options()
        .write(true)
        .open(host.path("data").join(name));
    file.unwrap().set_modified(time).unwrap();
}

/// The host as it is after a reboot.
fn reboot(host: &Host) {
    age(host);
    host.write(MARK, "6c2b1f0e-0000-4000-8000-000000000000\n");
}

/// The plugins' calls, of each the first words.
fn calls(host: &Host) -> Vec<String> {
    let words = |(variables, _): (String, String)| {
        let words: Vec<_> = variables.split(' ').collect();
        words[..words.len() - 3].join(" ")
    };
    host.calls().into_iter().map(words).collect()
}

fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()
}

/// A host with a container of one network, one of another, and one of flannel's plugin.
fn host() -> Host {
    let host = Host::new();
    host.record_host_local();
    let other = host.conf(json!({"name": "other"}));
    host.call_about("ADD", "a1", "eth0", &host.conf(json!({})))
        .result();
    host.call_about("ADD", "b2", "net1", &other).result();
    host.write("data/of-flannel", &of_flannel("net"));
    assert_eq!(calls(&host), ["ADD a1 eth0", "ADD b2 net1"]);
    assert_eq!(host.read(MARK), this_boot());
    host
}

#[test]
fn first_add_after_a_reboot_frees_what_the_reboot_ended() {
    let host = host();
    let added = host.read("data/a1:net:eth0");
    reboot(&host);
    let answer = host.call_about("ADD", "c3", "eth0", &host.conf(json!({})));
    assert!(
        answer
            .stderr
            .contains("freed the address of eth0 of container a1"),
        "{answer:?}"
    );
    answer.result();
    let mut all = host.calls();
    // host-local is called as the delegate would call it.
    assert_eq!(all[0].0, "host-local DEL a1 eth0 netns= args= path=plugins");
    assert_eq!(all[0].1, added);
    assert!(all.pop().unwrap().0.starts_with("ADD c3 eth0 "));
    assert!(all[1].0.starts_with("host-local DEL b2 net1 "));
    assert_eq!(all.len(), 2);
    assert_eq!(host.remembered(), ["c3", "c3:net:eth0", "of-flannel"]);
    assert_eq!(host.read(MARK), this_boot());
    // The runtime has not forgotten them after all.
    host.call_about("DEL", "a1", "eth0", &host.conf(json!({})))
        .result();
    host.call_about("ADD", "d4", "eth0", &host.conf(json!({})))
        .result();
    assert_eq!(calls(&host), ["ADD d4 eth0"]);
}

#[test]
fn nothing_is_taken_from_who_may_live() {
    let unchanged = |what: &str, prepare: fn(&Host)| {
        let host = host();
        prepare(&host);
        let before = host.remembered();
        host.call_about("ADD", "c3", "eth0", &host.conf(json!({})))
            .result();
        assert_eq!(calls(&host), ["ADD c3 eth0"], "{what}");
        let mut after = host.remembered();
        after.retain(|name| !name.starts_with("c3"));
        assert_eq!(after, before, "{what}");
        assert_eq!(host.read(MARK), this_boot(), "{what}");
    };
    unchanged("the same boot, and a clock that went forward", age);
    unchanged("what was there before the mark", |host| {
        reboot(host);
        host.remove(MARK);
    });
    unchanged("a mark of another boot, and files of this one", |host| {
        host.write(MARK, "another\n");
    });
    unchanged("flannel's plugin has added the container again", |host| {
        reboot(host);
        for name in ["a1", "b2"] {
            set_age(host, name, SystemTime::now());
        }
    });
    unchanged("another plugin gives out the addresses", |host| {
        for (name, network) in [("a1:net:eth0", "net"), ("b2:other:net1", "other")] {
            let conf = json!({"name": network, "type": "bridge", "ipam": {"type": "whereabouts"}});
            host.write(&format!("data/{name}"), &conf.to_string());
        }
        reboot(host);
    });
    unchanged("files that a crash of the host has left empty", |host| {
        for name in ["a1:net:eth0", "b2:other:net1"] {
            host.write(&format!("data/{name}"), "");
        }
        reboot(host);
    });
}

#[test]
fn address_that_cannot_be_freed_does_not_keep_a_container_from_starting() {
    let host = host();
    host.write("plugins/fail-DEL", r#"{"code":11,"msg":"locked"}"#);
    reboot(&host);
    let answer = host.call_about("ADD", "c3", "eth0", &host.conf(json!({})));
    assert!(
        answer.stderr.contains("failed to free the address of eth0"),
        "{answer:?}"
    );
    answer.result();
    let kept = host.remembered();
    assert!(kept.contains(&"a1:net:eth0".to_owned()), "{kept:?}");
    host.remove("plugins/fail-DEL");
    host.calls();
    // Not again in this boot, but after the next.
    host.call_about("ADD", "d4", "eth0", &host.conf(json!({})))
        .result();
    assert_eq!(calls(&host), ["ADD d4 eth0"]);
    reboot(&host);
    host.call_about("ADD", "e5", "eth0", &host.conf(json!({})))
        .result();
    let freed = calls(&host)
        .iter()
        .filter(|call| call.starts_with("host-local"))
        .count();
    assert_eq!(freed, 4, "a1, b2, c3 and d4");
}

#[test]
fn containers_that_start_at_once_wait_for_the_first() {
    let host = host();
    reboot(&host);
    // Takes long enough for all to arrive, and writes each line in one go.
    host.install(
        "host-local",
        "#!/bin/sh\nsleep 0.3\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >> \"${0%/*}/freed\"\n",
    );
    host.install(
        "bridge",
        "#!/bin/sh\necho \"ADD $CNI_CONTAINERID\" >> \"${0%/*}/freed\"\ncat \"${0%/*}/result\"\n",
    );
    let conf = host.conf(json!({}));
    thread::scope(|scope| {
        for container in ["n1", "n2", "n3", "n4", "n5", "n6"] {
            let (host, conf) = (&host, &conf);
            scope.spawn(move || {
                host.call_about("ADD", container, "eth0", conf)
                    .result()
                    .len()
            });
        }
    });
    let text = host.read("plugins/freed");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["DEL a1", "DEL b2"]);
    assert_eq!(lines.len(), 2 + 6, "{text}");
    let records = host.remembered();
    let records = records
        .iter()
        .filter(|name| name.ends_with(":net:eth0"))
        .count();
    assert_eq!(
        records, 6,
        "no record of a living container was taken for an old one"
    );
}

#[test]
fn add_fails_if_the_boot_cannot_be_marked() {
    let host = host();
    age(&host);
    host.remove(MARK);
    fs::create_dir(host.path(MARK)).unwrap();
    let (code, message) = host
        .call_about("ADD", "c3", "eth0", &host.conf(json!({})))
        .error();
    assert_eq!(code, 5);
    assert!(message.contains("data/.boot"), "{message}");
    assert_eq!(calls(&host), [""; 0]);
    assert!(!host.path("data/c3").exists());
}
