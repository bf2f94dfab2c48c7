//! What `make install` puts on a host beside the agent.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a key.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix(key))
        .unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[test]
fn networkd_and_networkmanager_leave_the_same_devices_alone() {
    let networkd = repository("units/network/50-selvage.network");
    assert!(networkd.contains("Unmanaged=yes"));
    let networkd: BTreeSet<_> = value(&networkd, "Name=").split(' ').collect();
    let manager = repository("units/NetworkManager/conf.d/50-selvage.conf");
    assert!(manager.lines().any(|line| line == "[keyfile]"));
    // Added to the administrator's own list, not put in its place.
    let manager = value(&manager, "unmanaged-devices+=");
    let manager: BTreeSet<_> = manager
        .split(';')
        .map(|spec| spec.strip_prefix("interface-name:").expect(spec))
        // The administrator may have bridges of such names there.
        .map(|name| {
            if name == "br-????????????" {
                "br-*"
            } else {
                name
            }
        })
        .collect();
    assert_eq!(manager, networkd);
    for name in ["flannel*", "cni*", "docker*", "veth*"] {
        assert!(manager.contains(name), "{name}");
    }
}

#[test]
fn make_install_has_all_that_hosts_need() {
    let makefile = repository("Makefile");
    let recipe = makefile.split("\ninstall: ").nth(1).expect("the target");
    let recipe = recipe.split("\n\n").next().unwrap_or_default();
    for (source, destination) in [
        (
            "units/NetworkManager/conf.d/*",
            "/usr/lib/NetworkManager/conf.d ",
        ),
        (
            "units/system/systemd-sysctl.service.d/*",
            "/usr/lib/systemd/system/systemd-sysctl.service.d ",
        ),
        ("units/selvage/accept-ra", "/usr/lib/selvage "),
        ("units/network/50-selvage.*", "/usr/lib/systemd/network "),
    ] {
        let line = recipe
            .lines()
            .find(|line| line.contains(source))
            .unwrap_or_else(|| panic!("{source} is not installed"));
        assert!(line.contains(destination), "{line}");
    }
}
