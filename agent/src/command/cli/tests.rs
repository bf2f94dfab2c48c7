use clap::CommandFactory;

use super::*;

fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
    let all = std::iter::once("selvage").chain(arguments.iter().copied());
    Cli::try_parse_from(all).map(|cli| cli.command)
}

#[test]
fn definition_has_no_contradictions() {
    Cli::command().debug_assert();
}

#[test]
fn truth_values_are_bare_or_in_any_of_gos_spellings() {
    for (flag, expected) in [
        ("--ip-masq", true),
        ("--ip-masq=1", true),
        ("--ip-masq=T", true),
        ("--ip-masq=false", false),
        ("--ip-masq=0", false),
    ] {
        let Command::Run(flags) = parse(&["run", flag]).unwrap() else {
            panic!("not run");
        };
        assert_eq!(flags.ip_masq, Some(expected), "from {flag}");
    }
    let error = parse(&["run", "--ip-masq=yes"]).unwrap_err();
    assert!(error.use_stderr());
    assert!(error.to_string().contains("true or false"), "{error}");
}

#[test]
fn network_set_reads_standard_input_by_default() {
    let Command::Network(NetworkCommand::Set {
        file, if_absent, ..
    }) = parse(&["network", "set", "--if-absent"]).unwrap()
    else {
        panic!("not network set");
    };
    assert_eq!(file, PathBuf::from("-"));
    assert!(if_absent);
}

#[test]
fn every_command_of_the_contract_is_there() {
    for arguments in [
        &["run", "--config", "/tmp/agent.toml"][..],
        &[
            "network",
            "get",
            "--json",
            "--etcd-endpoints",
            "http://[::1]:2379",
        ],
        &["network", "set", "-"],
        &["network", "set", "/etc/selvage/network.json"],
        &["cleanup", "--state-dir=/var/lib/selvage"],
        &[
            "ignition",
            "render",
            "cluster.toml",
            "--out",
            "target/ignition",
        ],
        &["ignition", "check", "node1.ign"],
    ] {
        assert!(parse(arguments).is_ok(), "{arguments:?} was refused");
    }
    for arguments in [
        &[][..],
        &["run", "extra"],
        &["run", "--resync", "soon"],
        &["walk"],
    ] {
        let error = parse(arguments).unwrap_err();
        assert!(error.use_stderr(), "{arguments:?}: {error}");
    }
    assert!(!parse(&["run", "--help"]).unwrap_err().use_stderr());
}
