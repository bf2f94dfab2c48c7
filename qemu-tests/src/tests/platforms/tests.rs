//! What the machines are given, asked for by the agent's own code, without a boot.

use std::{io::BufReader, net::TcpListener, time::Duration};

use selvage::appliance::metadata::{
    self, Site, check_in,
    user_data::{self, Target},
};
use selvage::appliance::platform::Found;

use super::*;
use crate::serve::Server;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f harness";

fn clouds() -> impl Iterator<Item = &'static Cloud> {
    PROVIDERS.iter().copied().flatten()
}

#[test]
fn every_case_has_a_machine() {
    let cases: Vec<_> = clouds().map(|cloud| cloud.case).collect();
    assert_eq!(cases, CASES);
}

#[test]
fn the_words_are_about_the_address_that_the_services_have() {
    assert_eq!(
        BY_HTTP,
        format!("source: http://{}", serve::METADATA_ADDRESS)
    );
}

/// The files of a machine: its drive where udev has it, its services on ports of loopback.
struct Place {
    root: tempfile::TempDir,
    service: Option<String>,
    azure_host: Option<String>,
}

impl Place {
    fn of(cloud: &Cloud) -> Self {
        let given = (cloud.given)(KEY).unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("run")).unwrap();
        if let Some(drive) = given.drive {
            let drives = root.path().join("dev/disk/by-label");
            serve::write_all(&drives.join(drive.label), &drive.files).unwrap();
        }
        let service = listen(&root.path().join("served"), &given.served);
        let azure_host = listen(&root.path().join("azure-host"), &given.azure_host);
        Self {
            root,
            service,
            azure_host,
        }
    }

    fn site(&self, server: Option<&String>) -> Site {
        Site {
            root: self.root.path().to_owned(),
            // Nobody listens there (tcpmux).
            servers: Some(vec![
                server
                    .map_or("http://127.0.0.1:1", |server| server)
                    .to_owned(),
            ]),
            guestinfo: std::collections::BTreeMap::new(),
            patience: Duration::from_secs(10),
        }
    }

    fn asked(&self, served: &str) -> Vec<serve::Asked> {
        let notes = serve::notes_of(&self.root.path().join(served));
        Notes::new(&notes).asked().unwrap()
    }
}

/// Answers on a port of loopback from then on; gives its URL.
fn listen(dir: &Path, files: &Files) -> Option<String> {
    serve::prepare(dir, files).unwrap()?;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server {
        files: dir.to_owned(),
        notes: Some(Notes::new(&serve::notes_of(dir))),
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let input = BufReader::new(stream.try_clone().unwrap());
            // A client may have seen enough.
            let _ = server.answer(input, stream);
        }
    });
    Some(url)
}

/// The platform that the machine is to be taken for; none where only QEMU is left.
fn platform(up: &Up) -> Option<&'static str> {
    let line = up
        .shows
        .iter()
        .find_map(|line| line.strip_prefix("platform: "))?;
    line.split(' ').next()
}

#[tokio::test]
async fn the_agent_reads_of_each_what_its_case_expects() {
    for cloud in clouds() {
        let End::Up(up) = &cloud.ends else { continue };
        let Some(platform) = platform(up) else {
            continue;
        };
        let place = Place::of(cloud);
        let site = place.site(place.service.as_ref());
        let metadata = metadata::fetch(platform, &site).await;
        let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", cloud.case));
        let variables = metadata::environment(&metadata);
        let expected = up.shows.iter().filter(|line| line.contains('='));
        for line in expected.filter(|line| !line.contains(": ")) {
            assert!(
                variables.lines().any(|variable| variable == *line),
                "{}: no {line} in {variables}",
                cloud.case
            );
        }
        // Whoever has no key in the config logs in by the platform's.
        assert!(
            metadata.ssh_keys == [KEY]
                || cloud.name.starts_with("openstack")
                || cloud.name == "proxmox",
            "{}: {:?}",
            cloud.case,
            metadata.ssh_keys
        );
        let refused = place.asked("served").into_iter();
        let refused: Vec<_> = refused
            .filter(|asked| asked.status != 200 && asked.status != 404)
            .collect();
        assert!(refused.is_empty(), "{}: {refused:?}", cloud.case);
    }
}

#[tokio::test]
async fn the_agent_reports_to_azure_what_the_cases_expect() {
    for cloud in azure::CLOUDS {
        let End::Up(up) = &cloud.ends else { continue };
        let place = Place::of(cloud);
        let site = place.site(place.azure_host.as_ref());
        check_in::check_in("azure", &site).await.unwrap();
        let asked = place.asked("azure-host");
        let report = asked.iter().find(|asked| asked.method == "POST").unwrap();
        assert_eq!(report.status, 200, "{asked:?}");
        for part in up.reports {
            assert!(report.body.contains(part), "{part}: {}", report.body);
        }
    }
}

/// The config that the agent hands to Ignition, of those machines for which it fetches one, or what it says instead.
async fn provisioned(cloud: &Cloud, platform: &str) -> Result<String, user_data::Error> {
    let place = Place::of(cloud);
    let root = place.root.path().to_owned();
    let found = Found {
        id: platform.to_owned(),
        reason: String::new(),
    };
    let target = Target {
        environment: root.join("environment"),
        directory: root.clone(),
    };
    let site = place.site(place.service.as_ref());
    user_data::provision(&found, &site, &target, || Ok(())).await?;
    let config = ["user.ign", "platform.ign"]
        .into_iter()
        .find_map(|name| std::fs::read_to_string(root.join(name)).ok());
    Ok(config.unwrap_or_default())
}

#[tokio::test]
async fn the_agent_finds_the_config_where_ignition_does_not() {
    for (name, platform, path) in [
        ("hetzner", "hetzner", "/etc/from-hetzner"),
        ("proxmox", "proxmoxve", "/etc/from-user-data"),
        ("proxmox-own", "proxmoxve", "/etc/from-vendor-data"),
        ("labelled", "qemu", "/etc/from-cd"),
    ] {
        let cloud = clouds().find(|cloud| cloud.name == name).unwrap();
        let config = provisioned(cloud, platform).await.unwrap();
        assert!(config.contains(path), "{name}: {config}");
    }
    let cloud = clouds().find(|cloud| cloud.name == "cloud-config").unwrap();
    let End::Stops(causes) = &cloud.ends else {
        panic!("it does not stop")
    };
    let error = provisioned(cloud, "hetzner").await.unwrap_err().to_string();
    for cause in *causes {
        assert!(error.contains(cause), "{error}");
    }
}
