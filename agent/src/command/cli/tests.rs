use clap::CommandFactory;

use super::*;
use crate::settings::kind::Value;
use crate::settings::table::{ALL, key};

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
        let given = [(&key::firewall::masquerade, Value::Switch(expected))];
        assert_eq!(flags.given(), given, "from {flag}");
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
        &["image", "embed", "selvage.raw", "node1.ign"],
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

#[test]
fn migrate_shows_how_to_reach_a_cluster_and_run_does_not() {
    let Command::Migrate(MigrateCommand::Back(flags)) = parse(&[
        "migrate",
        "back",
        "--json",
        "--kubeconfig-file",
        "admin.conf",
    ])
    .unwrap() else {
        panic!("not migrate back");
    };
    assert!(flags.json && flags.settings.has(&key::kubernetes::kubeconfig));
    for (arguments, is_shown) in [
        (&["migrate", "from-flannel", "-h"][..], true),
        (&["run", "-h"], false),
        (&["run", "--kubeconfig-file", "x", "-h"], false),
    ] {
        let help = parse(arguments).unwrap_err().to_string();
        for flag in [
            "--kubeconfig-file",
            "--kube-api-url",
            "--kube-annotation-prefix",
        ] {
            assert_eq!(
                help.contains(flag),
                is_shown,
                "{flag} of {arguments:?}: {help}"
            );
        }
    }
    assert!(parse(&["migrate"]).is_err() && parse(&["migrate", "forth"]).is_err());
}

/// Each command with what its `--help` prints, 100 columns wide; hidden ones are for programs.
fn helps(command: &clap::Command, words: &[&str], all: &mut Vec<(String, String)>) {
    let mut asked = vec!["selvage"];
    asked.extend(words);
    asked.push("--help");
    let error = Cli::command()
        .term_width(100)
        .try_get_matches_from(&asked)
        .unwrap_err();
    all.push((asked.join(" "), error.to_string()));
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        helps(below, &[words, &[below.get_name()]].concat(), all);
    }
}

#[test]
fn help_of_every_command_fits_a_screen_of_60_lines() {
    let mut all = Vec::new();
    helps(&Cli::command(), &[], &mut all);
    assert!(all.len() > 20, "{}", all.len());
    for (asked, help) in all {
        let lines = help.lines().count();
        assert!(lines <= 60, "{asked} has {lines} lines:\n{help}");
        assert!(help.contains("Usage: selvage"), "{asked}:\n{help}");
    }
}

#[test]
fn command_refuses_flags_that_it_does_not_use() {
    for arguments in [
        &["network", "set", "--ip-masq"][..],
        &["network", "get", "--public-ip=10.0.0.1"],
        &["peers", "--etcd-endpoints=http://10.0.0.1:2379"],
        &["options", "docker", "--state-dir=/x"],
        &["cleanup", "--iface=eth0"],
        &["run", "--insecure"],
    ] {
        let error = parse(arguments).unwrap_err();
        assert_eq!(
            error.kind(),
            clap::error::ErrorKind::UnknownArgument,
            "{arguments:?}"
        );
    }
    for arguments in [
        &["network", "reserve", "10.5.1.0/24", "--public-ip=10.0.0.1"][..],
        &["options", "docker", "--network=blue", "--subnet-file=/x"],
        &["leave", "--node-id=m1", "--remote=10.0.0.1:8889"],
        &["serve", "--insecure", "--listen=:8889"],
    ] {
        assert!(parse(arguments).is_ok(), "{arguments:?} was refused");
    }
}

#[test]
fn flags_of_settings_name_their_place_in_a_file() {
    let cli = Cli::command();
    let flags = |verb| cli.find_subcommand(verb).unwrap().get_arguments();
    for setting in ALL {
        let flag = flags("run")
            .chain(flags("serve"))
            .find(|argument| argument.get_long() == Some(setting.flag))
            .unwrap_or_else(|| panic!("no flag --{}", setting.flag));
        let help = flag.get_long_help().unwrap().to_string();
        let place = format!("[{}; default: {}]", setting.path, setting.default);
        assert!(help.ends_with(&place), "{help}");
    }
}
