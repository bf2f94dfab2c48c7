use std::fs;
use std::time::Duration;

use super::flags::parse as flags;
use super::kind::Kind;
use super::table::ALL;
use super::*;

/// A root directory with settings files, given as path and text.
fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn load_from(
    files: &[(&str, &str)],
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> Result<Settings, Error> {
    let root = root(files);
    load(Sources {
        root: root.path(),
        config: None,
        environment: &environment(variables),
        flags: &flags(arguments),
    })
}

/// The message and the exit status for one line below a table's header.
fn refusal(table: &str, line: &str) -> String {
    let text = format!("[{table}]\n{line}\n");
    match check_file(&text, Path::new("/etc/selvage/agent.toml")) {
        Ok(()) => panic!("{line} in [{table}] was accepted"),
        Err(error) => {
            assert_eq!(error.exit_code(), EXIT_CONFIG);
            error.to_string()
        }
    }
}

#[test]
fn nothing_said_gives_the_defaults() {
    let settings = load_from(&[], &[], &[]).unwrap();
    assert_eq!(settings.etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(settings.etcd.prefix, "/coreos.com/network");
    assert_eq!(settings.etcd.lease_ttl, Duration::from_secs(86_400));
    assert_eq!(settings.underlay, Underlay::default());
    assert_eq!(settings.firewall.mode, FirewallMode::Auto);
    assert_eq!(settings.firewall.masquerade_exclude, []);
    assert_eq!(settings.firewall.resync, Duration::from_secs(5));
    assert!(!settings.firewall.blackhole_route);
    assert_eq!(settings.health.listen(), None);
    assert!(!settings.agent.leave_on_stop);
    assert!(!settings.firewall.masquerade);
    assert!(settings.firewall.forward && settings.firewall.random_fully);
    assert_eq!(
        settings.files.subnet_file,
        Path::new("/run/flannel/subnet.env")
    );
    assert_eq!(settings.files.state_dir, Path::new("/var/lib/selvage"));
    assert_eq!(settings.agent.log, "info");
    assert_eq!(settings.agent.resync, Duration::from_secs(300));
}

#[test]
fn a_named_network_has_files_and_keys_of_its_own() {
    let files = |settings: &Settings| {
        let (subnet_file, state_dir) = (&settings.files.subnet_file, &settings.files.state_dir);
        format!("{} {}", subnet_file.display(), state_dir.display())
    };
    let own = "/run/flannel/networks/blue.env /var/lib/selvage/networks/blue";
    for blue in [
        load_from(&[], &[], &["--network=blue"]).unwrap(),
        load_from(&[], &[("SELVAGE_NETWORK", "blue")], &[]).unwrap(),
        load_from(
            &[("etc/selvage/agent.toml", "[agent]\nnetwork = \"blue\"\n")],
            &[],
            &[],
        )
        .unwrap(),
    ] {
        assert_eq!(blue.agent.network.as_ref().unwrap().as_str(), "blue");
        assert_eq!(blue.etcd.prefix, "/coreos.com/network/blue");
        assert_eq!(files(&blue), own);
        let socket = Path::new("/run/selvage/networks/blue.sock");
        assert_eq!(blue.files.socket, socket);
        assert_eq!(blue.remote.network, "blue");
    }

    // Settings that all networks share, and those that they cannot.
    let shared = (
        "etc/selvage/agent.toml",
        "[etcd]\nprefix = \"/demo\"\nlease-ttl = 3600\n[files]\nstate-dir = \"/s\"\nsubnet-file = \"/f\"\n\
         [health]\nport = 8080\naddress = \"::1\"\n",
    );
    let first = load_from(&[shared], &[], &[]).unwrap();
    assert_eq!(
        (first.etcd.prefix.as_str(), files(&first).as_str()),
        ("/demo", "/f /s")
    );
    let blue = load_from(&[shared], &[], &["--network=blue"]).unwrap();
    assert_eq!(blue.etcd.prefix, "/demo/blue");
    assert_eq!(blue.etcd.lease_ttl, Duration::from_secs(3600));
    assert_eq!((files(&blue).as_str(), blue.health.listen()), (own, None));

    // Settings for this network alone apply.
    let one = (
        "etc/selvage/networks/blue.toml",
        "[etcd]\nprefix = \"/blue\"\n[files]\nsubnet-file = \"/b\"\n[health]\nport = 8081\n",
    );
    let other = ("etc/selvage/networks/green.toml", "[nonsense]\n");
    let blue = load_from(&[shared, one, other], &[], &["--network=blue"]).unwrap();
    assert_eq!(blue.etcd.prefix, "/blue");
    assert_eq!(blue.files.subnet_file, Path::new("/b"));
    assert_eq!(blue.health.listen(), "[::1]:8081".parse().ok());
    let flags = ["--network=blue", "--etcd-prefix=/x", "--state-dir=/y"];
    let blue = load_from(&[shared, one], &[], &flags).unwrap();
    assert_eq!(
        (blue.etcd.prefix.as_str(), files(&blue).as_str()),
        ("/x", "/b /y")
    );
    let root_prefix = ("etc/selvage/agent.toml", "[etcd]\nprefix = \"/\"\n");
    let blue = load_from(&[root_prefix], &[], &["--network=blue"]).unwrap();
    assert_eq!(blue.etcd.prefix, "/blue");

    let error = load_from(&[], &[], &["--network=Blue"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "flag --network: agent.network = \"Blue\": expected 1 to 10 characters of a-z, 0-9 and -, starting with a letter, except config and subnets"
    );
    let error = load_from(&[other], &[], &["--network=green"]).unwrap_err();
    assert!(
        error.to_string().contains("networks/green.toml:1"),
        "{error}"
    );
    assert_eq!(
        load_from(&[], &[], &["--network="]).unwrap().agent.network,
        None
    );
}

#[test]
fn whole_file_is_understood() {
    let text = include_str!("tests/whole.toml");
    let settings = load_from(&[("etc/selvage/agent.toml", text)], &[], &[]).unwrap();
    assert_eq!(
        settings.etcd.endpoints,
        ["https://10.77.0.11:2379", "http://[fd00::1]:2379"]
    );
    assert_eq!(settings.etcd.prefix, "/demo/network");
    assert_eq!(settings.etcd.certfile, Some("/etc/selvage/node.pem".into()));
    assert_eq!(settings.etcd.username, None);
    assert_eq!(settings.etcd.lease_ttl, Duration::from_secs(3600));
    assert!(settings.cni.install);
    assert_eq!(settings.cni.bin_dir, Path::new("/usr/lib/cni"));
    assert_eq!(
        settings.cni.conf_from,
        Some("/etc/selvage/cni.conflist".into())
    );
    let changes = Settings::default().changes(&settings);
    let changes = changes.iter().filter_map(|change| {
        let table = change.key.split('.').next().unwrap();
        ["underlay", "firewall"]
            .contains(&table)
            .then(|| format!("{} = {}", change.key, change.new))
    });
    assert_eq!(
        changes.collect::<Vec<_>>(),
        [
            "underlay.interfaces = 10.77.0.11, eth1",
            r"underlay.interface-regex = ^eth\d$",
            "underlay.can-reach = fd00::1",
            "underlay.interface-cidr = 10.77.0.0/16, fd00:77::/64",
            "underlay.public-ip = 203.0.113.5",
            "underlay.public-ipv6 = 2001:db8::5",
            "firewall.mode = nftables",
            "firewall.masquerade = true",
            "firewall.forward = false",
            "firewall.random-fully = false",
            "firewall.masquerade-exclude = 10.0.0.0/8",
            "firewall.resync = 60 s",
            "firewall.blackhole-route = true",
        ]
    );
    assert_eq!(settings.health.listen(), "[::1]:8080".parse().ok());
    assert!(settings.agent.leave_on_stop);
    assert_eq!(settings.agent.log, "info,selvage::host::firewall=debug");
    assert_eq!(settings.agent.resync, Duration::from_secs(60));
}

#[test]
fn later_sources_are_stronger() {
    let prefix = |name: &str| format!("[etcd]\nprefix = \"/{name}\"\n");
    let (image, run, etc) = (prefix("image"), prefix("run"), prefix("etc"));
    let (early, late) = (prefix("early"), prefix("late"));
    let files = [
        ("usr/lib/selvage/agent.toml", image.as_str()),
        ("run/selvage/agent.toml", run.as_str()),
        ("etc/selvage/agent.toml", etc.as_str()),
        ("etc/selvage/agent.d/10-early.toml", early.as_str()),
        ("usr/lib/selvage/agent.d/90-late.toml", late.as_str()),
    ];
    let found = |count: usize, variables: &[(&str, &str)], arguments: &[&str]| {
        load_from(&files[..count], variables, arguments)
            .unwrap()
            .etcd
            .prefix
    };
    let flannels = ("FLANNELD_ETCD_PREFIX", "/flannel");
    let ours = ("SELVAGE_ETCD_PREFIX", "/ours");
    for (count, name) in [
        (1, "/image"),
        (2, "/run"),
        (3, "/etc"),
        (4, "/early"),
        (5, "/late"),
    ] {
        assert_eq!(found(count, &[], &[]), name);
    }
    assert_eq!(found(5, &[flannels], &[]), "/flannel");
    assert_eq!(found(5, &[flannels, ours], &[]), "/ours");
    assert_eq!(
        found(5, &[("SELVAGE_ETCD_PREFIX", ""), flannels], &[]),
        "/flannel"
    );
    assert_eq!(found(5, &[ours], &["--etcd-prefix", "/flag"]), "/flag");
}

#[test]
fn drop_in_hides_its_namesake_in_weaker_directories() {
    let root = root(&[
        (
            "usr/lib/selvage/agent.d/50-a.toml",
            "[agent]\nresync = 10\n",
        ),
        (
            "run/selvage/agent.d/50-a.toml",
            "[agent]\nlog = \"debug\"\n",
        ),
        (
            "usr/lib/selvage/agent.d/60-b.toml",
            "[firewall]\nmasquerade = true\n",
        ),
        ("etc/selvage/agent.d/.60-b.toml.swp", "not TOML"),
        ("etc/selvage/agent.d/README", "not TOML"),
    ]);
    let masked = root.path().join("etc/selvage/agent.d/60-b.toml");
    std::os::unix::fs::symlink("/dev/null", masked).unwrap();
    let settings = load(Sources {
        root: root.path(),
        config: None,
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    })
    .unwrap();
    assert_eq!(settings.agent.resync, Duration::from_secs(300));
    assert_eq!(settings.agent.log, "debug");
    assert!(!settings.firewall.masquerade);
}

#[test]
fn config_flag_reads_that_file_alone() {
    let root = root(&[
        ("etc/selvage/agent.toml", "[agent]\nresync = 10\n"),
        ("mine.toml", "[firewall]\nmasquerade = true\n"),
    ]);
    let config = root.path().join("mine.toml");
    let missing = root.path().join("missing.toml");
    let sources = Sources {
        root: root.path(),
        config: Some(&config),
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    };
    let settings = load(sources).unwrap();
    assert!(settings.firewall.masquerade);
    assert_eq!(settings.agent.resync, Duration::from_secs(300));

    let config = Some(missing.as_path());
    let error = load(Sources { config, ..sources }).unwrap_err();
    assert!(error.to_string().contains("missing.toml"), "{error}");
}

#[test]
fn every_mistake_in_a_file_has_its_line_and_what_is_allowed() {
    for (table, line, expected) in [
        (
            "agent",
            "resync = 0",
            "agent.resync = 0: expected 1 to 86400 seconds",
        ),
        (
            "agent",
            "resync = -5",
            "agent.resync = -5: expected 1 to 86400 seconds",
        ),
        (
            "agent",
            "log = \"loud\"",
            "agent.log = \"loud\": expected error, warn, info",
        ),
        (
            "agent",
            "resync = \"5\"",
            "resync: invalid type: string \"5\"",
        ),
        (
            "agent",
            "resink = 5",
            "resink: unknown field `resink`, expected one of `network`, `node-id`, `log`, `resync`, `leave-on-stop`",
        ),
        ("agent", "resync = ", "resync: "),
        (
            "agents",
            "resync = 5",
            "unknown field `agents`, expected one of `etcd`",
        ),
        (
            "firewall",
            "masquerade = \"yes\"",
            "masquerade: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "files",
            "subnet-file = \"subnet.env\"",
            "= \"subnet.env\": expected an absolute path",
        ),
        (
            "files",
            "state-dir = \"\"",
            "files.state-dir = \"\": expected an absolute path",
        ),
        (
            "etcd",
            "endpoints = []",
            "etcd.endpoints = []: expected at least one URL",
        ),
        (
            "etcd",
            "prefix = \"\"",
            "etcd.prefix = \"\": expected a key prefix",
        ),
        ("etcd", "prefix = \"/a/../b\"", "expected a key prefix"),
        (
            "etcd",
            "cafile = \"ca.pem\"",
            "etcd.cafile = \"ca.pem\": expected an absolute path",
        ),
        (
            "etcd",
            "certfile = \"/c\"",
            "etcd.certfile is set, but etcd.keyfile is not",
        ),
        (
            "etcd",
            "keyfile = \"/k\"",
            "etcd.keyfile is set, but etcd.certfile is not",
        ),
        (
            "etcd",
            "username = \"u\"",
            "etcd.username is set, but etcd.password-file is not",
        ),
        (
            "etcd",
            "password-file = \"/p\"",
            "etcd.password-file is set, but etcd.username is not",
        ),
    ] {
        let message = refusal(table, line);
        assert!(message.contains(expected), "{line}: {message}");
        let place = if table == "agents" { 1 } else { 2 };
        let start = format!("/etc/selvage/agent.toml:{place}: ");
        assert!(message.starts_with(&start), "{line}: {message}");
    }
}

#[test]
fn endpoints_are_those_of_the_lease_store() {
    for url in ["http://10.0.0.1", "ftp://10.0.0.1:2379", ""] {
        let message = refusal("etcd", &format!("endpoints = [\"http://good:1\", {url:?}]"));
        let start = "/etc/selvage/agent.toml:2: etcd.endpoints = [\"http://good:1\", ";
        assert!(message.starts_with(start), "{url}: {message}");
        assert!(message.contains("http://HOST:PORT"), "{url}: {message}");
    }
    let message = refusal("etcd", "endpoints = [\"http://user:hunter2@host:2379\"]");
    assert!(message.contains("***@host"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");

    let given = "http://a:1/, https://b-c.d:65535, 10.0.0.1:2379,";
    let endpoints = |more: &[&str]| {
        let arguments = [&["--etcd-endpoints", given], more].concat();
        load_from(&[], &[], &arguments).unwrap().etcd.endpoints
    };
    assert_eq!(
        endpoints(&[]),
        ["http://a:1", "https://b-c.d:65535", "http://10.0.0.1:2379"]
    );
    assert_eq!(
        endpoints(&["--etcd-cafile", "/ca.pem"])[2],
        "https://10.0.0.1:2379"
    );
}

#[test]
fn prefix_is_cleaned_as_flannel_cleans_it() {
    for (given, expected) in [
        ("/coreos.com/network/", "/coreos.com/network"),
        ("//a//b", "/a/b"),
        ("a/b", "a/b"),
        ("/", ""),
    ] {
        let settings = load_from(&[], &[("SELVAGE_ETCD_PREFIX", given)], &[]).unwrap();
        assert_eq!(settings.etcd.prefix, expected, "from {given}");
    }
}

#[test]
fn mistakes_elsewhere_name_the_variable_or_the_flag() {
    let error = load_from(&[], &[("FLANNELD_IP_MASQ", "yes")], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable FLANNELD_IP_MASQ: firewall.masquerade = \"yes\": expected true or false"
    );
    assert_eq!(error.exit_code(), EXIT_CONFIG);
    let error = load_from(&[], &[("SELVAGE_RESYNC", "0")], &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("environment variable SELVAGE_RESYNC: "),
        "{error}"
    );
    let error = load_from(&[], &[], &["--resync", "0"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "flag --resync: agent.resync = 0: expected 1 to 86400 seconds"
    );
    assert_eq!(error.exit_code(), EXIT_USAGE);
}

#[test]
fn password_is_read_from_its_file_and_never_shown() {
    let root = root(&[
        ("password", "hunter2\n"),
        ("empty", "\n"),
        ("two", "a\nb\n"),
    ]);
    let load = |file: &str, variables: &[(&str, &str)]| {
        let file = root.path().join(file);
        let file = file.to_str().unwrap();
        load_from(
            &[],
            variables,
            &["--etcd-username", "root", "--etcd-password-file", file],
        )
    };
    let settings = load("password", &[("FLANNELD_ETCD_PASSWORD", "weaker")]).unwrap();
    assert_eq!(settings.etcd.password.as_ref().unwrap().expose(), "hunter2");
    assert!(!format!("{settings:?}").contains("hunter2"));

    for file in ["empty", "two", "missing"] {
        let error = load(file, &[]).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(error.exit_code(), EXIT_USAGE);
    }
}

#[test]
fn flannels_password_variable_counts_only_with_a_user_name() {
    let password = ("FLANNELD_ETCD_PASSWORD", "hunter2");
    let user = ("FLANNELD_ETCD_USERNAME", "root");
    let settings = load_from(&[], &[password, user], &[]).unwrap();
    assert_eq!(settings.etcd.password.unwrap().expose(), "hunter2");
    assert_eq!(
        load_from(&[], &[password], &[]).unwrap().etcd.password,
        None
    );
}

#[test]
fn unreadable_file_is_named() {
    let root = root(&[("etc/selvage/agent.d/10-a.toml/file", "")]);
    let error = load(Sources {
        root: root.path(),
        config: None,
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    })
    .unwrap_err();
    assert!(error.to_string().contains("agent.d/10-a.toml"), "{error}");
}

#[test]
fn every_setting_is_read_from_every_source() {
    for setting in ALL {
        // The helper defines every flag, and panics for an unknown one.
        let given = match setting.kind {
            Kind::Number => format!("--{}=1", setting.flag),
            Kind::Switch => format!("--{}", setting.flag),
            _ => format!("--{}=x", setting.flag),
        };
        assert!(flags(&[&given]).has(setting), "{given}");

        let value = "\u{1} \u{1}";
        let [ours, _] = setting.variables();
        let by_variable = load_from(&[], &[(&ours, value)], &[]);
        let (table, name) = (setting.table, setting.name);
        // Invalid both as a string and as a list.
        let line = format!("{name} = [[\"\"]]");
        assert!(
            refusal(table, &line).contains("invalid type"),
            "{}",
            setting.path
        );
        let message = by_variable.unwrap_err().to_string();
        assert!(message.contains(&ours), "{message}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_check_panic(text: String, tail in "[a-z\\[\\]=\"'.#\n -]{0,80}") {
        let _ = check_file(&text, Path::new("agent.toml"));
        let _ = check_file(&tail, Path::new("agent.toml"));
    }

    #[test]
    fn no_value_makes_the_check_panic(value: String) {
        for setting in ALL {
            let (table, name) = (setting.table, setting.name);
            let text = format!("[{table}]\n{name} = {}\n", toml::Value::from(value.as_str()));
            let _ = check_file(&text, Path::new("agent.toml"));
        }
        let list = toml::Value::from(vec![value.as_str()]);
        for key in ["etcd.endpoints", "underlay.interface-regex", "underlay.interface-cidr"] {
            let _ = check_file(&format!("{key} = {list}"), Path::new("agent.toml"));
        }
    }
}

mod lists;

#[test]
fn a_variable_of_the_platforms_metadata_can_be_a_value() {
    let iface = ("FLANNELD_IFACE", "${COREOS_EC2_IPV4_LOCAL}");
    let public = ("FLANNELD_PUBLIC_IP", "${AFTERBURN_AWS_IPV4_PUBLIC}");
    let metadata = [
        ("COREOS_EC2_IPV4_LOCAL", "10.0.0.1"),
        ("AFTERBURN_AWS_IPV4_PUBLIC", "52.1.2.3"),
        ("COREOS_UNRELATED", "no setting"),
    ];
    let settings = load_from(&[], &[&[iface, public][..], &metadata].concat(), &[]).unwrap();
    let address = Interface::Address("10.0.0.1".parse().unwrap());
    assert_eq!(settings.underlay.interfaces, [address]);
    let error = load_from(&[], &[iface], &[]).unwrap_err().to_string();
    for part in [
        "FLANNELD_IFACE",
        "COREOS_EC2_IPV4_LOCAL to be set; the unit needs Requires= and After=coreos-metadata.service",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // Other references are not ours to resolve.
    let prefix = ("FLANNELD_ETCD_PREFIX", "/${COREOS_EC2_IPV4_LOCAL}");
    let settings = load_from(&[], &[&[prefix][..], &metadata].concat(), &[]).unwrap();
    assert_eq!(settings.etcd.prefix, "/${COREOS_EC2_IPV4_LOCAL}");
}
