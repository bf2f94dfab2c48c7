//! From description to config: the golden node, what each role gets, and every way to be wrong.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use proptest::prelude::*;

use super::*;

pub(super) const DEMO: &str = include_str!("../../../../ignition/demo.toml");
const SAMPLE: &str = include_str!("../../../../ignition/cluster.toml");
pub(super) const KUBERNETES: &str = include_str!("../../../../ignition/kubernetes.toml");
const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me";

fn demo() -> Cluster {
    Cluster::from_toml(DEMO).unwrap()
}

pub(super) fn config(node: &RenderedNode) -> ignition_config::v3_3::Config {
    serde_json::from_str(&node.json).unwrap()
}

/// The decoded contents of a rendered file.
pub(super) fn contents(node: &RenderedNode, path: &str) -> Option<String> {
    let files = config(node).storage?.files?;
    let file = files.into_iter().find(|file| file.path == path)?;
    let data = data_url::decode(&file.contents?.source?).unwrap();
    Some(String::from_utf8(data).unwrap())
}

fn enabled_units(node: &RenderedNode) -> Vec<String> {
    let units = config(node).systemd.unwrap().units.unwrap();
    assert!(units.iter().all(|unit| unit.enabled == Some(true)));
    units.into_iter().map(|unit| unit.name).collect()
}

/// Ignition's own validator says `Some(reason)` to a bad config and `None` to a good one. On a machine without it
/// (Debian package `ignition`) nothing is compared.
pub(super) fn ignition_validate(text: &str) -> Result<Option<String>, NoValidator> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.ign");
    fs::write(&file, text).unwrap();
    let output = match Command::new("ignition-validate").arg(&file).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NoValidator),
        output => output.unwrap(),
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok((!output.status.success()).then_some(said))
}

/// `ignition-validate` is not installed.
#[derive(Debug)]
pub(super) struct NoValidator;

pub(super) fn report_skip(_: NoValidator) {
    // libtest swallows what passing tests print, unless it is written to the terminal itself.
    let message =
        "SKIPPED: ignition-validate is not installed (apt install ignition): rules not compared\n";
    let _no_terminal = io::stderr().write_all(message.as_bytes());
}

#[test]
fn first_node_of_the_demo_is_rendered_as_the_golden_file() {
    let mut cluster = demo();
    cluster.cluster.ssh_authorized_keys.push(SSH_KEY.to_owned());
    let rendered = cluster.render().unwrap();
    let golden = include_str!("golden/node1.ign");
    assert_eq!(rendered[0].name, "node1");
    assert_eq!(rendered[0].json, golden, "\n{}", rendered[0].json);
}

#[test]
fn roles_decide_files_and_units() {
    let nodes = demo().render().unwrap();
    let [first, second] = &nodes[..] else {
        panic!("two nodes expected, got {}", nodes.len());
    };
    let shared = ["docker.service", "selvage.service"];
    assert_eq!(enabled_units(second), shared);
    assert_eq!(
        enabled_units(first),
        [
            "docker.service",
            "etcd.service",
            "selvage-network.service",
            "selvage.service"
        ]
    );
    for path in [
        "/etc/default/etcd",
        "/etc/sysctl.d/20-etcd.conf",
        "/etc/selvage/network.json",
    ] {
        assert!(contents(first, path).is_some());
        assert!(contents(second, path).is_none());
    }
    assert_eq!(contents(second, "/etc/hostname").unwrap(), "node2\n");
    assert_eq!(config(first).passwd, None, "no key, no user section");
    let network: serde_json::Value =
        serde_json::from_str(&contents(first, "/etc/selvage/network.json").unwrap()).unwrap();
    assert_eq!(
        network,
        serde_json::json!({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}})
    );
    let settings: toml::Table =
        toml::from_str(&contents(second, "/etc/selvage/agent.toml").unwrap()).unwrap();
    assert_eq!(
        settings,
        toml::toml! {
            [etcd]
            endpoints = ["http://10.77.0.11:2379"]
            [firewall]
            masquerade = true
            [underlay]
            interfaces = ["10.77.0.12"]
        }
    );
}

#[test]
fn members_know_each_other_and_ask_themselves_first() {
    let mut cluster = demo();
    cluster.etcd.members.push("node2".to_owned());
    let nodes = cluster.render().unwrap();
    let environment = contents(&nodes[1], "/etc/default/etcd").unwrap();
    for line in [
        "ETCD_NAME=node2",
        "ETCD_LISTEN_CLIENT_URLS=http://10.77.0.12:2379,http://127.0.0.1:2379",
        "ETCD_INITIAL_CLUSTER=node1=http://10.77.0.11:2380,node2=http://10.77.0.12:2380",
        "ETCD_INITIAL_CLUSTER_TOKEN=demo",
    ] {
        assert!(
            environment.lines().any(|l| l == line),
            "{line} not in\n{environment}"
        );
    }
    let settings = contents(&nodes[1], "/etc/selvage/agent.toml").unwrap();
    let endpoints = r#"endpoints = ["http://10.77.0.12:2379", "http://10.77.0.11:2379"]"#;
    assert!(settings.contains(endpoints), "{settings}");
    assert!(!enabled_units(&nodes[1]).contains(&"selvage-network.service".to_owned()));
}

#[test]
fn outside_etcd_gets_the_network_config_from_the_first_node_if_there_is_one() {
    let text = DEMO.replace(
        "members = [\"node1\"]",
        "endpoints = [\"https://etcd:2379\"]",
    );
    let mut cluster = Cluster::from_toml(&text).unwrap();
    let units = enabled_units(&cluster.render().unwrap()[0]);
    assert!(units.contains(&"selvage-network.service".to_owned()));
    assert!(!units.contains(&"etcd.service".to_owned()));
    cluster.network = serde_json::Value::Null;
    let nodes = cluster.render().unwrap();
    assert!(!enabled_units(&nodes[0]).contains(&"selvage-network.service".to_owned()));
    let settings = contents(&nodes[1], "/etc/selvage/agent.toml").unwrap();
    assert!(settings.contains("https://etcd:2379"), "{settings}");
}

#[test]
fn gateway_and_name_servers_reach_the_network_file() {
    let mut cluster = demo();
    cluster.nodes[1].gateway = Some([10, 77, 0, 1].into());
    cluster.nodes[1].dns = vec!["1.1.1.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let nodes = cluster.render().unwrap();
    let network = contents(&nodes[1], "/etc/systemd/network/20-underlay.network").unwrap();
    for line in [
        "MACAddress=52:54:00:77:00:0c",
        "Address=10.77.0.12/24",
        "Gateway=10.77.0.1",
        "DNS=1.1.1.1",
        "DNS=fd00::1",
    ] {
        assert!(
            network.lines().any(|l| l == line),
            "{line} not in\n{network}"
        );
    }
}

#[test]
fn fields_changed_after_reading_are_validated_again() {
    let mut cluster = demo();
    cluster.nodes[1].name = "../node1".to_owned();
    let error = cluster.render().unwrap_err();
    assert!(error.to_string().starts_with("node[1].name: "), "{error}");
}

#[test]
fn shared_settings_override_what_is_rendered() {
    let text = DEMO.replace(
        "[agent.firewall]",
        "[agent.underlay]\ninterfaces = [\"eth1\"]\n[agent.firewall]",
    );
    let nodes = Cluster::from_toml(&text).unwrap().render().unwrap();
    let settings = contents(&nodes[0], "/etc/selvage/agent.toml").unwrap();
    assert!(settings.contains("interfaces = [\"eth1\"]"), "{settings}");
    assert!(settings.contains("http://10.77.0.11:2379"), "{settings}");
}

#[test]
fn shipped_descriptions_pass_ignition_itself() {
    for text in [DEMO, SAMPLE, KUBERNETES] {
        for node in Cluster::from_toml(text).unwrap().render().unwrap() {
            assert_eq!(check(&node.json).findings, []);
            match ignition_validate(&node.json) {
                Ok(refusal) => assert_eq!(refusal, None, "{}", node.name),
                Err(missing) => return report_skip(missing),
            }
        }
    }
}

#[test]
fn render_command_writes_private_files_and_check_command_accepts_them() {
    let directory = tempfile::tempdir().unwrap();
    let description = directory.path().join("demo.toml");
    let out = directory.path().join("a/b");
    fs::write(&description, DEMO).unwrap();
    // Twice: the second run replaces the files of the first.
    for _ in 0..2 {
        let mut output = Vec::new();
        render_command(&description, &out, &mut output).unwrap();
        assert_eq!(String::from_utf8(output).unwrap().lines().count(), 2);
    }
    let mut names: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["node1.ign", "node2.ign"]);
    let file = out.join("node1.ign");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut output = Vec::new();
    check_command(&file, &mut output).unwrap();
    let expected = format!("{}: ok (spec 3.3.0, 7 files, 4 units)\n", file.display());
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}

#[test]
fn commands_tell_bad_configurations_from_failing_machines() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x");
    let missing = check_command(&file, &mut Vec::new()).unwrap_err();
    assert!(matches!(missing, Error::Read { .. }) && !missing.is_bad_configuration());
    fs::write(&file, "{}").unwrap();
    let mut output = Vec::new();
    let refused = check_command(&file, &mut output).unwrap_err();
    assert!(matches!(refused, Error::Refused { errors: 1, .. }) && refused.is_bad_configuration());
    let expected = format!(
        "{}:1:1: error: ignition.version: the spec version is missing",
        file.display()
    );
    assert!(String::from_utf8(output).unwrap().starts_with(&expected));
    let out = directory.path().join("out");
    let unusable = render_command(&file, &out, &mut Vec::new()).unwrap_err();
    assert!(unusable.is_bad_configuration());
    assert!(!out.exists(), "nothing is written for a bad description");
}

prop_compose! {
    fn any_cluster()(
        count in 1..12_usize,
        members in 1..12_usize,
        name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        prefix in "[a-z]([a-z0-9-]{0,8}[a-z0-9])?",
        has_keys in any::<bool>(),
        gateway in proptest::option::of(200..250_u8),
        dns in proptest::collection::vec(any::<std::net::Ipv6Addr>(), 0..3),
        masquerade in any::<bool>(),
    ) -> Cluster {
        let mut cluster = demo();
        cluster.cluster.name = name;
        if has_keys {
            cluster.cluster.ssh_authorized_keys.push(SSH_KEY.to_owned());
        }
        cluster.nodes = (0..count)
            .map(|i| Node {
                name: format!("{prefix}{i}"),
                address: format!("192.168.7.{}/24", i + 1).parse().unwrap(),
                mac: crate::base::net::MacAddr([2, 0, 0, 0, 0, u8::try_from(i).unwrap()]),
                gateway: gateway.map(|last| [192, 168, 7, last].into()),
                dns: dns.iter().filter(|a| !a.is_multicast()).map(|&a| a.into()).collect(),
            })
            .collect();
        cluster.etcd.members = cluster.nodes.iter().take(members).map(|n| n.name.clone()).collect();
        cluster.agent = toml::toml! { [firewall] masquerade = masquerade };
        cluster
    }
}

proptest! {
    #[test]
    fn whatever_renders_is_clean(cluster in any_cluster()) {
        let nodes = cluster.render().unwrap();
        prop_assert_eq!(nodes.len(), cluster.nodes.len());
        for node in &nodes {
            prop_assert_eq!(check(&node.json).findings, vec![]);
            prop_assert!(!node.json.contains("null"));
        }
        prop_assert_eq!(nodes, cluster.render().unwrap());
    }

    #[test]
    fn reading_never_panics(text in "(\\[\\[?[a-z.]{1,9}\\]\\]?|[a-z]{1,8} = [0-9\"a-z\\[\\]{}.-]{0,9}|\n|é){0,12}") {
        let _any_result = Cluster::from_toml(&text);
        check(&text);
    }
}
