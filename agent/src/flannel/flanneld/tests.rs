use super::*;
use crate::settings::{Environment, Settings};

mod networks;

fn arguments(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn request(words: &[&str], variables: &[(&str, &str)]) -> Result<Request, Error> {
    read(arguments(words), |name| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn given(words: &[&str], variables: &[(&str, &str)]) -> Result<Flags, Error> {
    match request(words, variables)? {
        Request::Run(flags) => Ok(flags),
        Request::Help | Request::Version => panic!("{words:?} asks for no run"),
    }
}

fn ok(words: &[&str]) -> Flags {
    given(words, &[]).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn refusal(words: &[&str]) -> String {
    match request(words, &[]) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{words:?} was taken"),
    }
}

fn settings(words: &[&str], variables: &[(&str, &str)]) -> Settings {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let environment: Environment = variables.iter().map(owned).collect();
    load_flanneld(&given(words, variables).unwrap(), &environment, &|_, _| {
        true
    })
    .unwrap()
}

#[test]
fn one_dash_is_as_good_as_two_and_a_value_follows_or_is_attached() {
    for words in [
        &["-etcd-prefix=/a", "-ip-masq"][..],
        &["--etcd-prefix=/a", "--ip-masq"],
        &["-etcd-prefix", "/a", "--ip-masq=true"],
        &["--etcd-prefix", "/a", "-ip-masq=T"],
        &[
            "-ip-masq=0",
            "-etcd-prefix=/b",
            "-etcd-prefix=/a",
            "-ip-masq",
        ],
    ] {
        let flags = ok(words);
        assert_eq!(flags.text("etcd-prefix"), Some("/a"), "{words:?}");
        assert_eq!(flags.switch("ip-masq"), Some(true), "{words:?}");
    }
    // The first = divides; a value may be empty or begin with a dash.
    assert_eq!(ok(&["-etcd-prefix=a=b"]).text("etcd-prefix"), Some("a=b"));
    assert_eq!(ok(&["-etcd-prefix="]).text("etcd-prefix"), Some(""));
    assert_eq!(ok(&["-iface", "-ip-masq"]).text("iface"), Some("-ip-masq"));
}

#[test]
fn repeatable_flags_keep_their_order_and_the_environment_gives_one_value() {
    let flags = ok(&["-iface=eth1", "--iface", "eth0", "-iface-regex=^10\\."]);
    assert_eq!(flags.texts("iface").unwrap(), ["eth1", "eth0"]);
    assert_eq!(flags.texts("iface-regex").unwrap(), ["^10\\."]);
    let flags = given(&[], &[("FLANNELD_IFACE", "eth1,eth0")]).unwrap();
    assert_eq!(flags.texts("iface").unwrap(), ["eth1,eth0"]);
}

#[test]
fn flags_end_at_two_dashes_and_at_the_first_word() {
    for (words, unread) in [
        (&["-ip-masq", "--", "-v=9"][..], "-v=9"),
        // A switch takes no word, so this one ends the flags, as it does for flanneld.
        (&["-ip-masq", "false", "-v=9"], "false"),
        (&["-ip-masq", "-", "-v=9"], "-"),
        (&["-ip-masq", "", "-v=9"], ""),
    ] {
        let flags = ok(words);
        assert!(flags.is_on("ip-masq"), "{words:?}");
        assert_eq!(flags.number("v"), None, "{words:?}");
        assert_eq!(flags.unread.as_deref(), Some(unread), "{words:?}");
    }
    assert_eq!(ok(&["-ip-masq", "--"]).unread, None);
}

#[test]
fn numbers_are_those_of_go() {
    for (text, number) in [
        ("0", 0),
        ("-12", -12),
        ("+12", 12),
        ("0x1F", 31),
        ("0X1f", 31),
        ("017", 15),
        ("0o17", 15),
        ("0O17", 15),
        ("0b101", 5),
        ("-0B101", -5),
        ("1_000", 1000),
        ("0x_ff", 255),
        ("0_17", 15),
        ("00", 0),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
    ] {
        let flags = ok(&["-healthz-port", text]);
        assert_eq!(flags.number("healthz-port"), Some(number), "{text}");
    }
    for text in [
        "",
        "-",
        "+",
        "x",
        "1.5",
        "1e3",
        " 1",
        "1 ",
        "08",
        "0x",
        "0b2",
        "0o8",
        "_1",
        "1_",
        "1__0",
        "0__1",
        "0_",
        "0x-1",
        "--1",
        "1,2",
        "ff",
        "9223372036854775808",
        "-9223372036854775809",
        "99999999999999999999999999999999999999999999",
        "١",
    ] {
        let message = refusal(&["-healthz-port", text]);
        assert_eq!(
            message,
            format!(
                "flag --healthz-port: invalid value {text:?}: expected a whole number, such as 8472 or 0x2118"
            )
        );
    }
}

#[test]
fn truth_values_are_those_of_go() {
    for text in ["1", "t", "T", "TRUE", "true", "True"] {
        assert!(
            ok(&[&format!("-ip-masq={text}")]).is_on("ip-masq"),
            "{text}"
        );
    }
    for text in ["0", "f", "F", "FALSE", "false", "False"] {
        let flags = ok(&[&format!("-ip-masq={text}")]);
        assert_eq!(flags.switch("ip-masq"), Some(false), "{text}");
    }
    for text in ["", "yes", "tRUE", "2", "on"] {
        assert_eq!(
            refusal(&[&format!("-ip-masq={text}")]),
            format!("flag --ip-masq: invalid value {text:?}: expected true or false")
        );
    }
}

#[test]
fn wrong_command_lines_say_what_is_wrong() {
    for (words, message) in [
        (&["-foo"][..], "flag provided but not defined: -foo"),
        (&["--foo=1"], "flag provided but not defined: -foo"),
        (&["-IFACE=eth0"], "flag provided but not defined: -IFACE"),
        (&["---iface"], "bad flag syntax: ---iface"),
        (&["-=1"], "bad flag syntax: -=1"),
        (&["--=1"], "bad flag syntax: --=1"),
        (&["-iface"], "flag needs an argument: -iface"),
        (
            &["-v=2147483648"],
            "flag --v: invalid value \"2147483648\": expected a whole number of 32 bits",
        ),
    ] {
        assert_eq!(refusal(words), message, "{words:?}");
        let error = request(words, &[]).err().unwrap();
        assert!(error.is_usage(), "{words:?}");
    }
}

#[test]
fn flags_of_old_flannels_are_named_with_what_to_do() {
    let message = refusal(&["--watch-networks"]);
    assert!(
        message.starts_with("flag -watch-networks was removed in flannel 0.8: "),
        "{message}"
    );
    assert!(message.contains("--etcd-"), "{message}");
}

#[test]
fn client_and_server_flags_are_flannel_0_5_s() {
    use crate::settings::Listen;
    let remote = settings(
        &[
            "-remote=10.0.0.1:8889,10.0.0.2:8889",
            "-remote-cafile=/ca",
            "-remote-certfile=/cert",
            "-remote-keyfile=/key",
        ],
        &[],
    )
    .remote;
    assert_eq!(
        remote.servers,
        ["https://10.0.0.1:8889", "https://10.0.0.2:8889"]
    );
    assert_eq!((remote.network.as_str(), remote.listen), ("_", None));
    assert_eq!(remote.cafile.unwrap().to_str(), Some("/ca"));
    assert_eq!(remote.certfile.unwrap().to_str(), Some("/cert"));
    assert_eq!(remote.keyfile.unwrap().to_str(), Some("/key"));
    let by_variable = settings(&[], &[("FLANNELD_REMOTE", "10.0.0.1:8889")]).remote;
    assert_eq!(by_variable.servers, ["http://10.0.0.1:8889"]);
    let serving = settings(&["-listen=fd://4"], &[]).remote;
    assert_eq!(serving.listen, Some(Listen::Descriptor(4)));
    // As flannel, which had no word for it.
    assert!(serving.insecure);
    assert_eq!(
        refusal(&["-listen=:8889", "-remote=10.0.0.1:8889"]),
        "flag --listen and flag --remote exclude each other: a flanneld either serves leases or asks for one"
    );
    ok(&["-listen=:8889", "-remote="]);
}

#[test]
fn environment_gives_what_the_command_line_does_not() {
    let variables = [
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_SUBNET_FILE", ""),
        ("FLANNELD_LOG_BACKTRACE_AT", "main.go:12"),
        ("FLANNELD_V", "4"),
    ];
    let flags = given(&["-etcd-prefix=/flag", "-ip-masq=false"], &variables).unwrap();
    assert_eq!(flags.text("etcd-prefix"), Some("/flag"));
    assert_eq!(flags.switch("ip-masq"), Some(false));
    assert_eq!(flags.text("subnet-file"), None);
    assert_eq!(flags.text("log_backtrace_at"), Some("main.go:12"));
    assert_eq!(flags.number("v"), Some(4));
    assert_eq!(flags.place("v"), Source::Variable("FLANNELD_V".to_owned()));
}

#[test]
fn wrong_variables_are_errors_unless_the_flag_is_given() {
    let variables = [("FLANNELD_IP_MASQ", "yes")];
    let error = given(&[], &variables).err().unwrap();
    assert_eq!(
        error.to_string(),
        "environment variable FLANNELD_IP_MASQ: invalid value \"yes\": expected true or false"
    );
    assert!(!error.is_usage());
    assert!(given(&["-ip-masq"], &variables).is_ok());
}

#[test]
fn help_and_version_come_before_the_environment() {
    let wrong = [("FLANNELD_IP_MASQ", "yes"), ("FLANNELD_VERSION", "maybe")];
    for words in [["-h"], ["-help"], ["--help"], ["--h=1"]] {
        assert!(matches!(request(&words, &wrong), Ok(Request::Help)));
    }
    assert!(matches!(
        request(&["--version"], &wrong),
        Ok(Request::Version)
    ));
    assert!(matches!(
        request(&["-version=false"], &wrong[1..]),
        Ok(Request::Run(_))
    ));
}

#[test]
fn renew_margin_has_flannels_range() {
    for minutes in ["1", "60", "1439"] {
        ok(&["-subnet-lease-renew-margin", minutes]);
    }
    for minutes in ["0", "-1", "1440"] {
        let words = ["-subnet-lease-renew-margin", minutes];
        assert_eq!(
            refusal(&words),
            format!(
                "flag --subnet-lease-renew-margin: invalid value \"{minutes}\": expected 1 to 1439 minutes"
            )
        );
        assert!(!request(&words, &[]).err().unwrap().is_usage());
    }
    // What is no number is as wrong as in any other flag.
    for text in ["abc", "", "1e3"] {
        let words = ["-subnet-lease-renew-margin", text];
        assert!(request(&words, &[]).err().unwrap().is_usage(), "{text:?}");
    }
}

#[test]
fn values_are_taken_as_flannel_takes_them() {
    let of = |words: &[&str]| settings(words, &[]);
    let listen = of(&["--healthz-ip=localhost", "--healthz-port=80"])
        .health
        .listen();
    assert_eq!(listen, Some("127.0.0.1:80".parse().unwrap()));
    let resync = of(&["--iptables-resync=100000"]).firewall.resync;
    assert_eq!(resync.as_secs(), 86_400);
    let endpoints = of(&["--etcd-endpoints=HTTP://10.0.0.1:2379"])
        .etcd
        .endpoints;
    assert_eq!(endpoints, ["http://10.0.0.1:2379"]);
    assert_eq!(ok(&["-v=+2"]).number("v"), Some(2));
    for text in ["0x10", "1_0", "", "2147483648"] {
        let message = refusal(&["-v", text]);
        assert!(message.contains("a whole number of 32 bits"), "{message}");
    }
}

#[test]
fn kubernetes_flags_become_settings() {
    let given = settings(
        &[
            "--kube-subnet-mgr",
            "--kube-api-url=https://10.0.0.1:6443",
            "--kubeconfig-file=/etc/k.conf",
            "--kube-annotation-prefix=org.com/blue",
            "--net-config-path=/etc/n.json",
            "--set-node-network-unavailable=false",
        ],
        &[],
    )
    .kubernetes;
    assert!(given.enabled && !given.set_network_unavailable);
    assert_eq!(given.api_url.as_deref(), Some("https://10.0.0.1:6443"));
    assert_eq!(given.kubeconfig.as_deref(), Some("/etc/k.conf".as_ref()));
    assert_eq!(given.annotation_prefix, "org.com/blue-");
    assert_eq!(given.net_config.to_str(), Some("/etc/n.json"));
    let plain = settings(&["--kube-subnet-mgr=true"], &[]).kubernetes;
    assert_eq!(plain.annotation_prefix, "flannel.alpha.coreos.com/");
    assert_eq!(
        plain.net_config.to_str(),
        Some("/etc/kube-flannel/net-conf.json")
    );
    assert!(plain.set_network_unavailable);
    let by_variable = settings(&[], &[("FLANNELD_KUBE_SUBNET_MGR", "true")]);
    assert!(by_variable.kubernetes.enabled);
    for other in ["--remote=10.0.0.1:8889", "--listen=:8889"] {
        let message = refusal(&["--kube-subnet-mgr", other]);
        assert!(message.contains("exclude each other"), "{message}");
    }
}

#[test]
fn klogs_lists_and_places_are_checked() {
    ok(&["-vmodule=a=1,b*=2,", "-log_backtrace_at=main.go:1"]);
    ok(&["-vmodule=", "-log_backtrace_at="]);
    for words in [
        "-vmodule=a",
        "-vmodule==1",
        "-vmodule=a=b",
        "-log_backtrace_at=main:1",
        "-log_backtrace_at=main.go:0",
    ] {
        refusal(&[words]);
    }
}

#[test]
fn without_flags_the_settings_are_flanneld_s_defaults() {
    let settings = settings(&[], &[]);
    assert_eq!(
        settings.etcd.endpoints,
        ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
    );
    assert_eq!(settings.etcd.prefix, "/coreos.com/network");
    assert_eq!(
        settings.files.subnet_file.to_str(),
        Some("/run/flannel/subnet.env")
    );
    assert!(!settings.firewall.masquerade);
    assert!(settings.firewall.forward);
    assert!(settings.firewall.random_fully);
    assert_eq!(settings.agent.log, "info");
}

#[test]
fn flags_become_settings() {
    let settings = settings(
        &[
            "-etcd-endpoints=https://a:1,https://b:2",
            "-etcd-prefix=/x/",
            "-etcd-cafile=/ca",
            "-etcd-certfile=/cert",
            "-etcd-keyfile=/key",
            "-etcd-username=root",
            "-etcd-password=hunter2",
            "-public-ip=192.0.2.1",
            "-ip-masq",
            "-ip-masq-fully-random-disable",
            "-iptables-forward-rules=false",
            "-subnet-file=subnet.env",
            "-v=2",
        ],
        &[],
    );
    assert_eq!(settings.etcd.endpoints, ["https://a:1", "https://b:2"]);
    assert_eq!(settings.etcd.prefix, "/x");
    assert_eq!(settings.etcd.cafile.unwrap().to_str(), Some("/ca"));
    assert_eq!(settings.etcd.certfile.unwrap().to_str(), Some("/cert"));
    assert_eq!(settings.etcd.keyfile.unwrap().to_str(), Some("/key"));
    assert_eq!(settings.etcd.username.as_deref(), Some("root"));
    assert_eq!(settings.etcd.password.unwrap().expose(), "hunter2");
    assert_eq!(settings.underlay.public_ip, "192.0.2.1".parse().ok());
    assert!(settings.firewall.masquerade);
    assert!(!settings.firewall.random_fully);
    assert!(!settings.firewall.forward);
    let here = std::env::current_dir().unwrap();
    assert_eq!(settings.files.subnet_file, here.join("subnet.env"));
    assert_eq!(settings.agent.log, "info,selvage=debug");
}

#[test]
fn flags_beat_our_variables_and_those_beat_flannels() {
    let variables = [
        ("FLANNELD_ETCD_PREFIX", "/theirs"),
        ("SELVAGE_ETCD_PREFIX", "/ours"),
        ("FLANNELD_PUBLIC_IP", "192.0.2.1"),
        ("SELVAGE_STATE_DIR", "/state"),
    ];
    let by_variable = settings(&[], &variables);
    assert_eq!(by_variable.etcd.prefix, "/ours");
    assert_eq!(by_variable.underlay.public_ip, "192.0.2.1".parse().ok());
    assert_eq!(by_variable.files.state_dir.to_str(), Some("/state"));
    // flanneld has no such variables, and it takes a path from where it is.
    let settings_of = |variable| settings(&[], &[variable]);
    let unknown = settings_of(("FLANNELD_STATE_DIR", "/state"));
    assert_eq!(unknown.files.state_dir.to_str(), Some("/var/lib/selvage"));
    let relative = settings_of(("FLANNELD_SUBNET_FILE", "subnet.env"));
    let here = std::env::current_dir().unwrap();
    assert_eq!(relative.files.subnet_file, here.join("subnet.env"));
    let by_flag = settings(&["-etcd-prefix=/flag"], &variables);
    assert_eq!(by_flag.etcd.prefix, "/flag");
}

#[test]
fn flags_choose_the_interface() {
    use crate::settings::Interface;
    let underlay = settings(
        &[
            "-iface=eth1",
            "-iface=10.0.0.1",
            "-iface-regex=^10\\.",
            "-iface-regex=^eth{1,2}",
            "-iface-can-reach=192.0.2.9",
            "-public-ip=192.0.2.1",
            "-public-ipv6=2001:db8::1",
        ],
        &[],
    )
    .underlay;
    assert_eq!(
        underlay.interfaces,
        [
            Interface::Name("eth1".parse().unwrap()),
            Interface::Address("10.0.0.1".parse().unwrap()),
        ]
    );
    assert_eq!(underlay.interface_regex.len(), 2);
    assert_eq!(underlay.can_reach, "192.0.2.9".parse().ok());
    assert_eq!(underlay.public_ip, "192.0.2.1".parse().ok());
    assert_eq!(underlay.public_ipv6, "2001:db8::1".parse().ok());
    // A pattern may have commas.
    let underlay = settings(&[], &[("FLANNELD_IFACE_REGEX", "^eth{1,2}")]).underlay;
    assert_eq!(underlay.interface_regex.len(), 1);
    assert!(settings(&["-iface="], &[]).underlay.interfaces.is_empty());
}

#[test]
fn health_endpoints_are_off_without_a_port_and_everywhere_with_one() {
    let listen = |words: &[&str]| settings(words, &[]).health.listen();
    assert_eq!(listen(&[]), None);
    assert_eq!(listen(&["-healthz-ip=10.0.0.1"]), None);
    for port in ["0", "-1", "-70000"] {
        assert_eq!(listen(&["-healthz-port", port]), None, "{port}");
    }
    assert_eq!(
        listen(&["-healthz-port=0x1F90"]),
        "0.0.0.0:8080".parse().ok()
    );
    assert_eq!(
        listen(&["-healthz-port=8081", "-healthz-ip=::1"]),
        "[::1]:8081".parse().ok()
    );
}

#[test]
fn firewall_is_looked_at_every_five_seconds_or_as_often_as_said() {
    use std::time::Duration;
    let resync = |words: &[&str]| settings(words, &[]).firewall.resync;
    assert_eq!(resync(&[]), Duration::from_secs(5));
    assert_eq!(resync(&["-iptables-resync=30"]), Duration::from_secs(30));
    for never in ["0", "-5"] {
        assert_eq!(resync(&["-iptables-resync", never]), Duration::from_secs(1));
    }
    assert!(
        settings(&["-ip-blackhole-route"], &[])
            .firewall
            .blackhole_route
    );
}

#[test]
fn wrong_settings_name_the_flag_or_the_variable() {
    let refused = |words: &[&str], variables: &[(&str, &str)]| {
        let flags = given(words, variables).unwrap();
        load_flanneld(&flags, &Environment::default(), &|_, _| false)
            .unwrap_err()
            .to_string()
    };
    let message = refused(&["-public-ip=10.0.0.300"], &[]);
    assert!(message.starts_with("flag --public-ip: "), "{message}");
    let message = refused(&["-healthz-port=70000"], &[]);
    assert!(message.starts_with("flag --healthz-port: "), "{message}");
    let message = refused(&["-iface-regex=("], &[]);
    assert!(message.starts_with("flag --iface-regex: "), "{message}");
    let message = refused(&[], &[("FLANNELD_ETCD_ENDPOINTS", "ftp://x")]);
    assert!(
        message.starts_with("environment variable FLANNELD_ETCD_ENDPOINTS: "),
        "{message}"
    );
}

#[test]
fn usage_names_every_flag_and_is_as_wide_as_a_terminal() {
    let text = usage::text("/opt/bin/flanneld");
    assert!(text.starts_with("Usage: /opt/bin/flanneld [OPTION]...\n"));
    for definition in definition::ALL {
        assert!(text.contains(&format!("  --{}", definition.name)));
    }
    assert!(text.lines().all(|line| line.len() < 120), "{text}");
}

proptest::proptest! {
    #[test]
    fn no_command_line_makes_it_panic(words: Vec<String>, number in "[-+0-9xXbBoO_]{0,12}") {
        let _ = read(words.iter().map(OsString::from).collect(), |_| None);
        let _ = read(arguments(&["-v", &number]), |_| None);
    }
}
