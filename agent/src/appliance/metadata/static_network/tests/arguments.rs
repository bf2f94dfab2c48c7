//! Arguments of the kernel command line, by systemd's own generator.

use super::super::*;
use super::given;
use crate::appliance::metadata::tests::site_of_vmware;

const GENERATOR: &str = "usr/lib/systemd/systemd-network-generator";
const GUESTINFO: &str = "guestinfo.afterburn.initrd.network-kargs";

/// A machine in a directory, with this host's generator; `None` where there is none.
fn machine(arguments: &str, command_line: &str) -> Option<(tempfile::TempDir, Site)> {
    let generator = Path::new("/").join(GENERATOR);
    if !generator.exists() {
        eprintln!("skipped: there is no {}", generator.display());
        return None;
    }
    let root = tempfile::tempdir().unwrap();
    for path in ["proc/cmdline", "run/x", GENERATOR] {
        fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
    }
    fs::write(root.path().join("proc/cmdline"), command_line).unwrap();
    std::os::unix::fs::symlink(generator, root.path().join(GENERATOR)).unwrap();
    let mut site = site_of_vmware(&[(GUESTINFO, arguments)]);
    root.path().clone_into(&mut site.root);
    Some((root, site))
}

/// The files that networkd has of it, one after the other.
fn files(root: &Path) -> String {
    given(root).into_values().collect()
}

#[test]
fn networks_are_those_of_the_kernel_command_line() {
    for (arguments, expected) in [
        // Fedora CoreOS's documentation of VMware ("Customizing network configuration"), with its names filled in.
        (
            "ip=10.20.30.42::10.20.30.254:255.255.255.0:example:ens192:off",
            &[
                "Name=ens192",
                "Address=10.20.30.42/24",
                "Gateway=10.20.30.254",
                "DHCP=no",
            ][..],
        ),
        // Two name servers, as an issue of OpenShift's installer has them.
        (
            "ip=192.168.1.20::192.168.1.1:255.255.255.0:::none nameserver=192.168.1.2 nameserver=192.168.1.3",
            &[
                "Address=192.168.1.20/24",
                "DNS=192.168.1.2",
                "DNS=192.168.1.3",
            ],
        ),
        // dracut.cmdline(7).
        (
            "ip=[2001:db8::10]::[2001:db8::1]:64::ens192:none\n",
            &["Address=2001:db8::10/64", "Gateway=2001:db8::1"],
        ),
    ] {
        let Some((root, site)) = machine(arguments, "quiet\n") else {
            return;
        };
        // In the initrd, and in the system that it starts.
        for _ in 0..2 {
            let used = write("vmware", &site).unwrap();
            assert_eq!(used.unwrap().gives, [arguments.trim()]);
        }
        let text = files(root.path());
        for line in expected {
            assert!(text.lines().any(|is| is == *line), "no {line:?} in {text}");
        }
        let left = fs::read_dir(root.path().join("run")).unwrap().count();
        assert_eq!(left, 1, "something is left in /run");
    }
}

#[test]
fn what_makes_no_network_is_refused_and_networkd_has_nothing_of_it() {
    for (arguments, expected) in [
        (
            "init=/bin/sh ip=dhcp",
            "has the argument \"init=/bin/sh\": expected ip=",
        ),
        ("10.20.30.42/24", "has the argument \"10.20.30.42/24\""),
        ("nameserver=10.0.0.1", "has no ip=, so it is not used"),
        (
            "ip=10.0.0.5",
            "does not take \"ip=10.0.0.5\" of VMware's guestinfo.afterburn",
        ),
    ] {
        let Some((root, site)) = machine(arguments, "") else {
            return;
        };
        let error = write("vmware", &site).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(files(root.path()), "");
    }
}

#[test]
fn the_kernel_command_line_counts_more_and_other_platforms_have_none() {
    let arguments = "ip=10.20.30.42::10.20.30.254:24::ens192:off";
    for (platform, line, arguments) in [
        ("vmware", "quiet ip=dhcp\n", arguments),
        ("vmware", "quiet\n", ""),
        ("metal", "quiet\n", arguments),
    ] {
        let Some((root, site)) = machine(arguments, line) else {
            return;
        };
        assert_eq!(write(platform, &site).unwrap(), None);
        assert_eq!(files(root.path()), "");
    }
}
