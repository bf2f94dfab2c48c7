use super::*;

const DUAL: &str = "\
FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.72.1/24
FLANNEL_IPV6_NETWORK=fd00::/48
FLANNEL_IPV6_SUBNET=fd00:0:0:5::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=true
DOCKER_OPT_BIP=--bip=10.5.72.1/24
";

fn printed(text: &str, json: bool) -> Result<String, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("subnet.env");
    fs::write(&path, text).unwrap();
    let mut out = Vec::new();
    docker(&path, false, json, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn without(text: &str, part: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains(part));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn docker_options_are_those_of_the_subnet_file() {
    let v4 = without(DUAL, "IPV6");
    let v6 = without(DUAL, "FLANNEL_SUBNET");
    for (text, expected) in [
        (&v4, "--bip=10.5.72.1/24 --ip-masq=false --mtu=1430\n"),
        (
            &DUAL.replace("IPMASQ=true", "IPMASQ=\"false\""),
            "--bip=10.5.72.1/24 --ip-masq=true --mtu=1430 --ipv6=true --fixed-cidr-v6=fd00:0:0:5::/64\n",
        ),
        (
            &v6,
            "--ip-masq=false --mtu=1430 --ipv6=true --fixed-cidr-v6=fd00:0:0:5::/64\n",
        ),
    ] {
        assert_eq!(printed(text, false).unwrap(), expected, "{text}");
    }
}

#[test]
fn json_is_a_part_of_daemon_json() {
    let expected = "\
{
  \"bip\": \"10.5.72.1/24\",
  \"ip-masq\": false,
  \"mtu\": 1430
}
";
    assert_eq!(printed(&without(DUAL, "IPV6"), true).unwrap(), expected);
    let dual: serde_json::Value = serde_json::from_str(&printed(DUAL, true).unwrap()).unwrap();
    let expected = serde_json::json!({
        "bip": "10.5.72.1/24",
        "ip-masq": false,
        "mtu": 1430,
        "ipv6": true,
        "fixed-cidr-v6": "fd00:0:0:5::/64",
    });
    assert_eq!(dual, expected);
}

#[test]
fn what_docker_s_nftables_needs_comes_after_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("subnet.env");
    fs::write(&path, without(DUAL, "IPV6")).unwrap();
    let options = Docker::read(&path).unwrap();
    let more = docker::options(Version::parse("29.0.1").unwrap(), Backend::Nftables);
    let text = |json| {
        let mut out = Vec::new();
        print(&options, &more, json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        text(false),
        "--bip=10.5.72.1/24 --ip-masq=false --mtu=1430 --allow-direct-routing --bridge-accept-fwmark=0x1000/0x1000\n"
    );
    let json: serde_json::Value = serde_json::from_str(&text(true)).unwrap();
    let expected = serde_json::json!({
        "bip": "10.5.72.1/24",
        "ip-masq": false,
        "mtu": 1430,
        "allow-direct-routing": true,
        "bridge-accept-fwmark": "0x1000/0x1000",
    });
    assert_eq!(json, expected);
}

#[test]
fn wrong_subnet_files_are_named_with_key_and_value() {
    let error = docker(
        Path::new("/nonexistent/subnet.env"),
        false,
        false,
        &mut Vec::new(),
    );
    let message = error.unwrap_err().to_string();
    assert!(message.contains("/nonexistent/subnet.env"), "{message}");
    for (text, part) in [
        (
            DUAL.replace("10.5.72.1/24", "10.5.72.1"),
            "FLANNEL_SUBNET = \"10.5.72.1\"",
        ),
        (
            DUAL.replace("::1/64", "::1/164"),
            "FLANNEL_IPV6_SUBNET = \"fd00:0:0:5::1/164\"",
        ),
        (DUAL.replace("=1430", "=-1"), "FLANNEL_MTU = \"-1\""),
        (without(DUAL, "MTU"), "FLANNEL_MTU = \"\""),
        (DUAL.replace("=true", "=yes"), "FLANNEL_IPMASQ = \"yes\""),
        (without(DUAL, "SUBNET"), "FLANNEL_SUBNET = \"\""),
        (format!("{DUAL}X='"), "failed to read the subnet file"),
    ] {
        let message = printed(&text, false).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert!(message.contains("subnet.env"), "{message}");
    }
}

#[test]
fn shipped_configs_are_flannels_json() {
    let cni: serde_json::Value = serde_json::from_str(CNI).unwrap();
    assert_eq!(cni["name"], "cbr0");
    assert_eq!(cni["cniVersion"], "0.3.1");
    assert_eq!(cni["plugins"][0]["type"], "flannel");
    assert_eq!(cni["plugins"][0]["delegate"]["isDefaultGateway"], true);
    assert_eq!(cni["plugins"][0]["delegate"]["hairpinMode"], true);
    assert_eq!(cni["plugins"][1]["type"], "portmap");
    assert_eq!(cni["plugins"][1]["capabilities"]["portMappings"], true);
    let rkt: serde_json::Value = serde_json::from_str(RKT).unwrap();
    assert_eq!(rkt["type"], "flannel");
    assert_eq!(rkt["delegate"]["isDefaultGateway"], true);
}
