use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

fn sample() -> SubnetFile {
    SubnetFile {
        v4: Some(Leased {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.72.0/24".parse().unwrap(),
        }),
        v6: None,
        mtu: 1450,
        masquerade: true,
    }
}

#[test]
fn text_is_flannels_keys_and_then_dockers_options() {
    assert_eq!(
        sample().render(),
        "FLANNEL_NETWORK=10.5.0.0/16\n\
         FLANNEL_SUBNET=10.5.72.1/24\n\
         FLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=true\n\
         DOCKER_OPT_BIP=--bip=10.5.72.1/24\n\
         DOCKER_OPT_IPMASQ=--ip-masq=false\n\
         DOCKER_OPT_MTU=--mtu=1450\n"
    );
    let text = SubnetFile {
        masquerade: false,
        ..sample()
    }
    .render();
    assert!(text.contains("FLANNEL_IPMASQ=false\n"), "{text}");
    assert!(
        text.contains("DOCKER_OPT_IPMASQ=--ip-masq=true\n"),
        "{text}"
    );
}

#[test]
fn ipv6_stands_where_flannel_has_it() {
    let v6 = Some(Leased {
        network: "fc00::/48".parse().unwrap(),
        subnet: "fc00:0:0:5::/64".parse().unwrap(),
    });
    assert_eq!(
        SubnetFile { v6, ..sample() }.render(),
        "FLANNEL_NETWORK=10.5.0.0/16\n\
         FLANNEL_SUBNET=10.5.72.1/24\n\
         FLANNEL_IPV6_NETWORK=fc00::/48\n\
         FLANNEL_IPV6_SUBNET=fc00:0:0:5::1/64\n\
         FLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=true\n\
         DOCKER_OPT_BIP=--bip=10.5.72.1/24\n\
         DOCKER_OPT_IPMASQ=--ip-masq=false\n\
         DOCKER_OPT_MTU=--mtu=1450\n\
         DOCKER_OPT_IPV6=--ipv6=true\n\
         DOCKER_OPT_IPV6_CIDR=--fixed-cidr-v6=fc00:0:0:5::/64\n"
    );
    let alone = SubnetFile {
        v4: None,
        v6,
        ..sample()
    };
    let text = alone.render();
    assert!(text.starts_with("FLANNEL_IPV6_NETWORK="), "{text}");
    let previous = Previous::parse(&text);
    assert_eq!((previous.network, previous.subnet), (None, None));
    assert_eq!(previous.network_v6, v6.map(|v6| v6.network));
    assert_eq!(previous.subnet_v6, v6.map(|v6| v6.subnet));
}

#[test]
fn an_unchanged_file_is_not_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flannel/subnet.env");
    assert!(sample().write(&path).unwrap());
    let inode = fs::metadata(&path).unwrap().ino();
    assert!(!sample().write(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);

    let other = SubnetFile {
        mtu: 1400,
        ..sample()
    };
    assert!(other.write(&path).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), other.render());
    assert!(remove(&path).unwrap());
    assert!(!remove(&path).unwrap());
}

#[test]
fn write_error_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = sample().write(&file.join("subnet.env")).unwrap_err();
    assert!(error.to_string().contains("file/subnet.env"), "{error}");
}

#[test]
fn reading_a_missing_file_gives_nothing() {
    let previous = read_previous(Path::new("/nonexistent/subnet.env")).unwrap();
    assert_eq!(previous, Previous::default());
}

#[test]
fn every_dotenv_spelling_is_read() {
    for line in [
        "FLANNEL_SUBNET=10.5.72.1/24",
        "  FLANNEL_SUBNET = 10.5.72.1/24  ",
        "FLANNEL_SUBNET=\"10.5.72.1/24\"",
        "FLANNEL_SUBNET='10.5.72.1/24' # ours",
        "FLANNEL_SUBNET=10.5.72.1/24 # ours",
        "export FLANNEL_SUBNET=10.5.72.1/24",
        "FLANNEL_SUBNET: 10.5.72.1/24",
        "FLANNEL_SUBNET=10.5.72.1/24,",
        "FLANNEL_SUBNET=nonsense,10.5.72.1/24",
        "FLANNEL_SUBNET=10.9.9.1/24\r\nFLANNEL_SUBNET=10.5.72.1/24\r\n",
    ] {
        let previous = Previous::parse(line);
        assert_eq!(
            previous.subnet,
            "10.5.72.0/24".parse().ok(),
            "from {line:?}"
        );
        assert_eq!(previous.network, None, "from {line:?}");
    }
}

#[test]
fn what_is_not_one_network_is_none() {
    for line in [
        "",
        "FLANNEL_SUBNET",
        "FLANNEL_SUBNET=",
        "# FLANNEL_SUBNET=10.5.72.1/24",
        "FLANNEL_SUBNET=10.5.72.1/24,10.5.73.1/24",
        "FLANNEL_SUBNET=10.5.72.1",
        "FLANNEL_SUBNET=10.5.72.1/33",
        "FLANNEL_SUBNET=\"10.5.72.1/24",
        "exportFLANNEL_SUBNET=10.5.72.1/24",
        "FLANNEL_SUBNETS=10.5.72.1/24",
    ] {
        assert_eq!(Previous::parse(line).subnet, None, "from {line:?}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        network: u32,
        length in 1u8..=28,
        longer in 1u8..=3,
        offset: u32,
        mtu in 68u32..=65_535,
        masquerade: bool,
    ) {
        let network = Ipv4Net::new(network.into(), length).unwrap().trunc();
        let inside = u32::from(network.network()) | (offset & u32::from(network.hostmask()));
        let subnet = Ipv4Net::new(inside.into(), length + longer).unwrap().trunc();
        let file = SubnetFile { v4: Some(Leased { network, subnet }), v6: None, mtu, masquerade };
        let previous = Previous::parse(&file.render());
        prop_assert_eq!(previous, Previous {
            network: Some(network),
            subnet: Some(subnet),
            mtu: Some(mtu),
            masquerade: Some(masquerade),
            ..Previous::default()
        });
    }

    #[test]
    fn garbage_never_panics(text: String) {
        let _ = Previous::parse(&text);
    }
}
