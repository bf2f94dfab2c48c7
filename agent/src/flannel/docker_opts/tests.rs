use super::*;

const FILE: &str = "\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
";

fn arguments(words: &str) -> Result<Arguments, arguments::Usage> {
    arguments::parse(words.split_whitespace().map(OsString::from).collect())
}

fn variables(text: &str) -> Variables {
    let mut variables = Variables::new();
    env_file::source(text, &mut variables).unwrap();
    variables
}

fn made(words: &str, text: &str) -> String {
    render(&arguments(words).unwrap(), variables(text)).unwrap()
}

#[test]
fn options_are_written_as_the_script_does() {
    let bip = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
    let ipmasq = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
    let mtu = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";
    let all = "=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";
    for (words, expected) in [
        ("", format!("{bip}{ipmasq}{mtu}DOCKER_OPTS{all}")),
        ("-i", format!("{bip}{ipmasq}{mtu}")),
        ("-c", format!("DOCKER_OPTS{all}")),
        ("-ic", format!("{bip}{ipmasq}{mtu}DOCKER_OPTS{all}")),
        (
            "-k CUSTOM_KEY",
            format!("{bip}{ipmasq}{mtu}CUSTOM_KEY{all}"),
        ),
        (
            "-ckDOCKER_NETWORK_OPTIONS",
            format!("DOCKER_NETWORK_OPTIONS{all}"),
        ),
        (
            "-m",
            format!("{bip}{mtu}DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"),
        ),
        ("-mi", format!("{bip}{mtu}")),
        (
            "-mc",
            "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n".to_owned(),
        ),
    ] {
        assert_eq!(made(words, FILE), expected, "{words}");
    }
}

#[test]
fn masquerading_is_done_by_one_side() {
    let file = |value: &str| FILE.replace("IPMASQ=false", &format!("IPMASQ={value}"));
    assert!(made("-i", &file("true")).contains("--ip-masq=false"));
    assert!(!made("-i", &file("")).contains("--ip-masq"));
    for value in ["yes", "TRUE", "1"] {
        let error = render(&arguments("").unwrap(), variables(&file(value))).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Invalid value of FLANNEL_IPMASQ: {value}")
        );
        // Who does not ask does not care.
        assert!(made("-mi", &file(value)).contains("--mtu"));
    }
}

#[test]
fn other_variables_with_the_mark_are_passed_on_in_order() {
    let file = format!(
        "{FILE}DOCKER_OPT_BIP=ignored\nDOCKER_OPT_DEBUG='--debug  --host x'\nMY_DOCKER_OPT_=1\nDOCKER_OPT_A=\n"
    );
    assert_eq!(
        made("", &file),
        "\
DOCKER_OPT_A=\"\"
DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"
DOCKER_OPT_DEBUG=\"--debug --host x\"
DOCKER_OPT_IPMASQ=\"--ip-masq=true\"
DOCKER_OPT_MTU=\"--mtu=1472\"
MY_DOCKER_OPT_=\"1\"
DOCKER_OPTS=\"  --bip=10.1.74.1/24 --debug --host x --ip-masq=true --mtu=1472 1\"
"
    );
}

#[test]
fn earlier_value_of_the_combined_variable_comes_first() {
    assert_eq!(
        made("-c", "DOCKER_OPTS='-H fd://'\nFLANNEL_MTU=1450\n"),
        "DOCKER_OPTS=\"-H fd://  --mtu=1450\"\n"
    );
    assert_eq!(
        made("-ck KEY", "KEY=\nFLANNEL_MTU=1450\n"),
        "KEY=\" --mtu=1450\"\n"
    );
}

#[test]
fn nothing_known_is_nothing_to_say() {
    assert_eq!(made("", ""), "DOCKER_OPTS=\"\"\n");
    assert_eq!(made("-i", "FLANNEL_SUBNET=\nFLANNEL_MTU=\n"), "");
}

#[test]
fn name_that_no_variable_can_have_is_refused() {
    for key in ["A-B", "1A", "$(id)", "A=B"] {
        let error = render(&arguments(&format!("-k {key}")).unwrap(), variables(FILE));
        assert!(matches!(error, Err(Error::Key(_))), "{key}");
    }
}

#[test]
fn subnet_that_is_none_is_refused() {
    assert!(subnet(&variables("")).unwrap().is_none());
    let found = subnet(&variables(FILE)).unwrap().unwrap();
    assert_eq!(found.to_string(), "10.1.74.0/24");
    for text in ["10.1.74.1", "fd00::1/64", "10.1.74.1/24,10.2.0.1/24"] {
        let error = subnet(&variables(&format!("FLANNEL_SUBNET={text}"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Invalid value of FLANNEL_SUBNET: {text}")
        );
    }
}

#[test]
fn arguments_are_read_as_getopts_does() {
    let parsed = arguments("-imf/a/b -d c -kKEY -- -c").unwrap();
    let expected = Arguments {
        subnet_file: "/a/b".into(),
        output: "c".into(),
        individual: true,
        combined: false,
        masquerade: false,
        key: "KEY".to_owned(),
    };
    assert_eq!(parsed, expected);
    assert!(!arguments("-i word -c").unwrap().combined);
    assert!(!arguments("-i - -c").unwrap().combined);
    // A value may look like an option.
    assert_eq!(arguments("-f -i").unwrap().subnet_file, Path::new("-i"));

    for words in ["-h", "-?", "-ih"] {
        assert_eq!(arguments(words), Err(arguments::Usage(None)), "{words}");
    }
    for (words, complaint) in [
        ("-x", "unknown option -x"),
        ("-if", "option -f needs an argument"),
        ("--help", "unknown option --"),
    ] {
        let usage = arguments::Usage(Some(complaint.to_owned()));
        assert_eq!(arguments(words), Err(usage), "{words}");
    }
}

#[test]
fn file_is_replaced_but_a_link_is_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("opts");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    write(&file, "a long first text\n").unwrap();
    write(&link, "second\n").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "second\n");
    assert!(link.is_symlink());
    assert!(write(directory.path(), "").is_err());
}
