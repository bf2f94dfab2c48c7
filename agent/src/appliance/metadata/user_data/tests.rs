use std::collections::BTreeMap;

use super::*;
use crate::appliance::metadata::providers::UserData;
use crate::appliance::metadata::tests::Server;

const CONFIG: &str = r#"{"ignition":{"version":"3.3.0"}}"#;

/// A machine in a directory, and what Ignition was told.
struct Machine {
    root: tempfile::TempDir,
    found: Found,
    guestinfo: BTreeMap<String, String>,
}

impl Machine {
    fn new(platform: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        let found = Found {
            id: platform.to_owned(),
            reason: String::new(),
        };
        let guestinfo = BTreeMap::new();
        Self {
            root,
            found,
            guestinfo,
        }
    }

    fn told(mut self, key: &str, value: &str) -> Self {
        self.guestinfo.insert(key.to_owned(), value.to_owned());
        self
    }

    fn has(self, path: &str, text: &str) -> Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    async fn provisioned(&self, server: Option<&Server>) -> Result<String, Error> {
        let site = Site {
            root: self.root.path().to_owned(),
            servers: server.map(|server| vec![server.url()]),
            guestinfo: self.guestinfo.clone(),
            patience: Duration::from_millis(500),
        };
        let target = Target {
            environment: self.root.path().join("env"),
            directory: self.root.path().to_owned(),
        };
        let network = || match server {
            Some(_) => Ok(()),
            None => panic!("the network is not needed"),
        };
        provision(&self.found, &site, &target, network).await
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).unwrap_or_default()
    }
}

#[tokio::test]
async fn what_somebody_gave_counts_more_than_the_platform() {
    for (path, text) in [
        ("run/credentials/@system/ignition.config", CONFIG),
        (".extra/global_credentials/ignition.config.cred", CONFIG),
        ("dev/disk/by-label/IGNITION/ignition/config.ign", CONFIG),
        ("dev/disk/by-label/ignition/config.ign", CONFIG),
    ] {
        for platform in ["aws", "hetzner", "metal"] {
            let machine = Machine::new(platform).has(path, text);
            machine.provisioned(None).await.unwrap();
            assert_eq!(machine.text("user.ign"), CONFIG, "{path}");
            let expected = format!("PLATFORM_ID=metal\nSELVAGE_PLATFORM={platform}\n");
            assert_eq!(machine.text("env"), expected);
        }
    }
}

#[tokio::test]
async fn what_somebody_gave_must_be_a_config() {
    for (text, expected) in [
        ("", "ignition.config: it is empty; put the config there"),
        (
            "#cloud-config\n",
            "it is a cloud-config; this image reads Ignition",
        ),
        ("{", "it is no valid JSON (EOF"),
        // An encrypted credential, as systemd-creds writes it.
        (
            "k6iUCUh0RJCQyvL8k8q1UyAAAAABAAAADAAAAB",
            "it begins with \"k6iUCUh0R",
        ),
    ] {
        let machine = Machine::new("metal").has("run/credentials/@system/ignition.config", text);
        let error = machine.provisioned(None).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let machine = Machine::new("metal").has("dev/disk/by-label/IGNITION/readme.txt", "hi");
    let error = machine.provisioned(None).await.unwrap_err().to_string();
    assert!(
        error.contains("it has neither ignition/config.ign nor config.ign"),
        "{error}"
    );
}

#[tokio::test]
async fn ignition_fetches_what_it_can_itself() {
    for platform in [
        "aws",
        "azure",
        "openstack",
        "qemu",
        "vmware",
        "metal",
        "moon",
    ] {
        let machine = Machine::new(platform);
        machine.provisioned(None).await.unwrap();
        let expected = format!("PLATFORM_ID={platform}\nSELVAGE_PLATFORM={platform}\n");
        assert_eq!(machine.text("env"), expected);
    }
    let machine = Machine::new("hyperv");
    machine.provisioned(None).await.unwrap();
    assert!(machine.text("env").starts_with("PLATFORM_ID=metal\n"));
}

#[tokio::test]
async fn vmwares_user_data_is_taken_where_ignition_has_no_config_of_its_own() {
    let base64 = STANDARD.encode(CONFIG);
    let with_userdata = || {
        Machine::new("vmware")
            .told("guestinfo.userdata", &base64)
            .told("guestinfo.userdata.encoding", "base64")
    };
    let machine = with_userdata();
    let found = machine.provisioned(None).await.unwrap();
    assert_eq!(found, "the config is from VMware's guestinfo.userdata");
    assert_eq!(machine.text("platform.ign"), CONFIG);
    let env = machine.text("env");
    assert!(
        env.starts_with("PLATFORM_ID=file\nSELVAGE_PLATFORM=vmware\n"),
        "{env}"
    );

    let machine = with_userdata().told("guestinfo.ignition.config.data", CONFIG);
    machine.provisioned(None).await.unwrap();
    assert!(machine.text("env").starts_with("PLATFORM_ID=vmware\n"));

    for (userdata, expected) in [
        ("#cloud-config\n", "it is a cloud-config; this image reads"),
        ("#!/bin/sh\n", "it is a script"),
    ] {
        let machine = Machine::new("vmware").told("guestinfo.userdata", userdata);
        let error = machine.provisioned(None).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let machine = with_userdata().told("guestinfo.userdata.encoding", "rot13");
    let error = machine.provisioned(None).await.unwrap_err();
    let text = crate::base::logging::chain(&error);
    assert!(text.contains("its encoding is \"rot13\""), "{text}");
}

#[tokio::test]
async fn ignition_asks_virtualbox_only_where_the_kernel_has_its_device() {
    let machine = Machine::new("virtualbox");
    let found = machine.provisioned(None).await.unwrap();
    assert_eq!(found, "there is no config: there is no /dev/vboxguest");
    let env = machine.text("env");
    assert_eq!(env, "PLATFORM_ID=metal\nSELVAGE_PLATFORM=virtualbox\n");
    let machine = Machine::new("virtualbox").has("dev/vboxguest", "");
    machine.provisioned(None).await.unwrap();
    assert!(machine.text("env").starts_with("PLATFORM_ID=virtualbox\n"));
}

#[tokio::test]
async fn user_data_of_other_platforms_is_handed_over_as_a_file() {
    let base64 = STANDARD.encode(CONFIG) + "\n";
    for (platform, path, body) in [
        ("hetzner", "/hetzner/v1/userdata", CONFIG),
        ("scaleway", "/user_data/cloud-init", CONFIG),
        ("upcloud", "/metadata/v1/user_data", CONFIG),
        ("akamai", "/v1/user-data", &base64),
        (
            "oraclecloud",
            "/opc/v2/instance/metadata/user_data",
            &base64,
        ),
    ] {
        let token = "/v1/token";
        let server = Server::start(&[(path, body), (token, "t0ken")]).await;
        let machine = Machine::new(platform);
        machine.provisioned(Some(&server)).await.unwrap();
        assert_eq!(machine.text("platform.ign"), CONFIG, "{platform}");
        let file = machine.root.path().join("platform.ign");
        let expected = format!(
            "PLATFORM_ID=file\nSELVAGE_PLATFORM={platform}\nIGNITION_CONFIG_FILE={}\n",
            file.display()
        );
        assert_eq!(machine.text("env"), expected);
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "a config may hold secrets");
    }
}

#[tokio::test]
async fn user_data_that_is_none_is_refused_with_words_and_none_at_all_is_well() {
    for (body, expected) in [
        (
            "#cloud-config\npackages: [nginx]\n",
            "/hetzner/v1/userdata: it is a cloud-config; this image reads Ignition configs (JSON) only",
        ),
        ("#!/bin/sh\necho\n", "it is a script"),
        (
            "Content-Type: multipart/mixed; boundary=\"=\"\n",
            "it is a multipart archive for cloud-init",
        ),
        (
            "variant: fcos\nversion: 1.5.0\n",
            "it is a Butane config; translate it with butane",
        ),
        ("{\"a\":1}", "it is JSON without \"ignition\""),
        ("{\"ignition\":", "it is no valid JSON"),
        ("\u{1b}[2Jhi", "it begins with \"\u{fffd}[2Jhi\""),
    ] {
        let server = Server::start(&[("/hetzner/v1/userdata", body)]).await;
        let machine = Machine::new("hetzner");
        let error = machine.provisioned(Some(&server)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    for documents in [&[("/hetzner/v1/userdata", " \n")][..], &[]] {
        let server = Server::start(documents).await;
        let machine = Machine::new("hetzner");
        machine.provisioned(Some(&server)).await.unwrap();
        assert!(machine.text("env").starts_with("PLATFORM_ID=metal\n"));
    }
}

#[tokio::test]
async fn proxmoxs_own_cloud_config_is_no_config_and_no_error() {
    // As Proxmox VE writes it, from its forum.
    let own = "#cloud-config\nhostname: vm1\nmanage_etc_hosts: true\nuser: core\nchpasswd:\n  expire: False\n";
    let drive = "dev/disk/by-label/cidata";
    for (user_data, vendor_data, config) in [
        (own, "", ""),
        (own, CONFIG, CONFIG),
        (CONFIG, "", CONFIG),
        ("", "", ""),
    ] {
        let machine = Machine::new("proxmoxve")
            .has(&format!("{drive}/user-data"), user_data)
            .has(&format!("{drive}/vendor-data"), vendor_data);
        machine.provisioned(None).await.unwrap();
        assert_eq!(machine.text("platform.ign"), config);
    }
    let machine = Machine::new("proxmoxve").has(&format!("{drive}/user-data"), "#!/bin/sh\n");
    let error = machine.provisioned(None).await.unwrap_err().to_string();
    assert!(
        error.contains("user-data on the disk labelled cidata: it is a script"),
        "{error}"
    );
    // A guest without a drive.
    let machine = Machine::new("proxmoxve");
    assert_eq!(
        machine.provisioned(None).await.unwrap(),
        "there is no config"
    );
}

#[tokio::test]
async fn a_machine_without_the_drive_that_ignition_waits_for_goes_on() {
    for (platform, file) in [
        ("kubevirt", "config-2/openstack/latest/user_data"),
        ("kubevirt", "cidata/user-data"),
        ("nutanix", "config-2/openstack/latest/user_data"),
        ("powervs", "config-2/openstack/latest/user_data"),
    ] {
        let machine = Machine::new(platform).has(&format!("dev/disk/by-label/{file}"), CONFIG);
        machine.provisioned(None).await.unwrap();
        assert_eq!(machine.text("platform.ign"), CONFIG, "{platform} {file}");
        let machine = Machine::new(platform);
        machine.provisioned(None).await.unwrap();
        let expected = format!("PLATFORM_ID=metal\nSELVAGE_PLATFORM={platform}\n");
        assert_eq!(machine.text("env"), expected);
        // A drive without user data, as KubeVirt makes it for SSH keys alone.
        let machine = Machine::new(platform).has(
            "dev/disk/by-label/config-2/openstack/latest/meta_data.json",
            "{}",
        );
        machine.provisioned(None).await.unwrap();
        assert_eq!(machine.text("env"), expected);
    }
}

#[tokio::test]
async fn only_a_service_that_may_be_switched_off_may_be_silent() {
    for (platform, is_optional) in [("upcloud", true), ("hetzner", false)] {
        let machine = Machine::new(platform);
        let mut server = Server::start(&[]).await;
        server.stop();
        let result = machine.provisioned(Some(&server)).await;
        assert_eq!(result.is_ok(), is_optional, "{platform}: {result:?}");
        let is_metal = machine.text("env").starts_with("PLATFORM_ID=metal\n");
        assert_eq!(is_metal, is_optional, "{platform}");
    }
}

#[test]
fn platforms_of_the_bridge_have_user_data() {
    for platform in NOT_IGNITIONS {
        let provider = provider(platform).unwrap();
        let has = |place: &Place| {
            matches!(
                &place.user_data,
                Some(UserData {
                    documents: [_, ..],
                    ..
                })
            )
        };
        assert!(provider.places.iter().all(has), "{platform}");
    }
}
