//! Several networks on one host, as flannel had and has them.

use super::{request, settings};

#[test]
fn networks_of_flannel_0_5_are_taken_one_at_a_time() {
    let blue = settings(&["-networks=blue", "-etcd-prefix=/x"], &[]);
    assert_eq!(blue.agent.network.unwrap().as_str(), "blue");
    assert_eq!(blue.etcd.prefix, "/x/blue");
    assert_eq!(blue.remote.network, "blue");
    let files = blue.files;
    assert_eq!(
        files.subnet_file.to_str(),
        Some("/run/flannel/networks/blue.env")
    );
    assert_eq!(
        files.state_dir.to_str(),
        Some("/var/lib/selvage/networks/blue")
    );
    let long = settings(
        &["--subnet-dir=/run/nets"],
        &[("FLANNELD_NETWORKS", " Customer_One ,")],
    );
    assert_eq!(long.etcd.prefix, "/coreos.com/network/Customer_One");
    assert_eq!(long.remote.network, "Customer_One");
    assert_eq!(
        long.files.subnet_file.to_str(),
        Some("/run/nets/Customer_One.env")
    );
    assert!(long.agent.network.unwrap().as_str().starts_with("custo-"));
    assert_eq!(settings(&["-networks="], &[]).agent.network, None);

    let several = request(&["-networks=blue,green"], &[]).err().unwrap();
    assert!(several.is_usage());
    assert_eq!(
        several.to_string(),
        "flag --networks: \"blue,green\": expected one name, because each network has its own agent: systemctl enable --now selvage@blue selvage@green"
    );
    let slash = request(&["-networks=a/b"], &[]).err().unwrap();
    assert!(
        slash.to_string().contains("a name without a slash"),
        "{slash}"
    );
}

#[test]
fn daemons_that_differ_in_prefix_and_subnet_file_are_several_networks() {
    let name = |words: &[&str], variables: &[(&str, &str)]| {
        let settings = settings(words, variables);
        let name = settings.agent.network.map(|name| name.to_string());
        let state_dir = settings.files.state_dir.to_str().unwrap().to_owned();
        (name, state_dir, settings.etcd.prefix)
    };
    let of = |name: Option<&str>, state_dir: &str, prefix: &str| {
        (
            name.map(str::to_owned),
            state_dir.to_owned(),
            prefix.to_owned(),
        )
    };
    let plain = "/var/lib/selvage";
    for (words, expected) in [
        (
            &["-etcd-prefix=/a", "-subnet-file=/run/flannel/a.env"][..],
            of(Some("a"), "/var/lib/selvage/networks/a", "/a"),
        ),
        (
            &["-etcd-prefix", "/b/", "--subnet-file", "/run/flannel/b.env"],
            of(Some("b"), "/var/lib/selvage/networks/b", "/b"),
        ),
        (&["-etcd-prefix=/a"], of(None, plain, "/a")),
        (
            &["-subnet-file=/run/flannel/a.env"],
            of(None, plain, "/coreos.com/network"),
        ),
        (
            &[
                "-etcd-prefix=/coreos.com/network/",
                "-subnet-file=/run/flannel/a.env",
            ],
            of(None, plain, "/coreos.com/network"),
        ),
        (
            &["-etcd-prefix=/a", "-subnet-file=/run/flannel//subnet.env"],
            of(None, plain, "/a"),
        ),
    ] {
        assert_eq!(name(words, &[]), expected, "{words:?}");
    }
    let words = &["-etcd-prefix=/a", "-subnet-file=/run/flannel/a.env"];
    let named = name(words, &[("SELVAGE_NETWORK", "blue")]);
    assert_eq!(
        named,
        of(Some("blue"), "/var/lib/selvage/networks/blue", "/a")
    );
}
