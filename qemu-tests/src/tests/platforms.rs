//! Machines of clouds: SMBIOS says which one, and the metadata service is where it is there. Nothing else tells the image
//! what it runs on.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::json;

use super::broken_ignition::stops_and_stays;
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    description,
    host::Host,
    machine::Machine,
    serve,
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names = &[
    "platforms::ec2_with_tokens_only",
    "platforms::openstack_by_http",
    "platforms::hetzner_by_the_bridge",
    "platforms::credential_counts_more_than_the_platform",
    "platforms::cloud_config_is_refused_with_words",
    "platforms::openstack_by_drive",
];

/// The address that the machine gets, which its platform tells as well.
const ADDRESS: &str = "172.16.0.15";

/// What the service has: paths and contents.
type Served = Vec<(String, Vec<u8>)>;

/// A machine.
struct Cloud {
    case: &'static str,
    name: &'static str,
    smbios: &'static [&'static str],
    served: fn(&Host) -> Served,
    /// What is on its drive.
    drive: fn(&Host) -> Served,
}

const CLOUDS: [Cloud; 6] = [
    Cloud {
        case: CASES[0],
        name: "ec2",
        smbios: &["type=1,manufacturer=Amazon EC2,product=t3.micro"],
        served: ec2,
        drive: nothing,
    },
    Cloud {
        case: CASES[1],
        name: "openstack",
        smbios: &["type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova"],
        served: openstack,
        drive: nothing,
    },
    Cloud {
        case: CASES[2],
        name: "hetzner",
        smbios: &["type=1,manufacturer=Hetzner,product=vServer"],
        served: hetzner,
        drive: nothing,
    },
    Cloud {
        case: CASES[3],
        name: "credential",
        smbios: &[
            "type=1,manufacturer=Hetzner,product=vServer",
            // {"ignition":{"version":"3.3.0"},"storage":{"files":[{"path":"/etc/from-credential"}]}}
            "type=11,value=io.systemd.credential.binary:ignition.config=eyJpZ25pdGlvbiI6eyJ2ZXJzaW9uIjoiMy4zLjAifSwic3\
             RvcmFnZSI6eyJmaWxlcyI6W3sicGF0aCI6Ii9ldGMvZnJvbS1jcmVkZW50aWFsIn1dfX0=",
        ],
        served: hetzner,
        drive: nothing,
    },
    Cloud {
        case: CASES[4],
        name: "cloud-config",
        smbios: &["type=1,manufacturer=Hetzner,product=vServer"],
        served: cloud_config,
        drive: nothing,
    },
    Cloud {
        case: CASES[5],
        name: "openstack-drive",
        smbios: &["type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova"],
        served: nothing,
        drive: openstack_drive,
    },
];

/// A unit as those for CoreOS are: it reads metadata, and names some of it for flannel's settings. 3 is the exit status of
/// `selvage status` where no agent runs; 78 would be a setting that cannot be used.
const READER: &str = "\
[Unit]
Requires=coreos-metadata.service
After=coreos-metadata.service

[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=/run/metadata/coreos
Environment=FLANNELD_IFACE=${COREOS_EC2_IPV4_LOCAL}
Environment=FLANNELD_PUBLIC_IP=${COREOS_EC2_IPV4_PUBLIC}
ExecStart=/usr/bin/sh -c 'selvage status >/dev/null 2>&1; echo $$COREOS_EC2_IPV4_LOCAL $$COREOS_EC2_IPV4_PUBLIC $$?'
StandardOutput=file:/run/reader

[Install]
WantedBy=multi-user.target
";

fn files(files: &[(&str, String)]) -> Served {
    let files = files.iter();
    files
        .map(|(name, text)| ((*name).to_owned(), text.clone().into_bytes()))
        .collect()
}

/// No key in the config: whoever logs in shows that the platform's is there.
fn ec2(host: &Host) -> Served {
    let config = json!({
        "ignition": {"version": "3.3.0"},
        "systemd": {"units": [{"name": "reader.service", "enabled": true, "contents": READER}]},
    });
    let data = "2021-01-03/meta-data";
    let token = "/latest/api/token\nx-aws-ec2-metadata-token\nAQAEAJf0ken==\n";
    files(&[
        (serve::TOKEN_FILE, token.to_owned()),
        ("2019-10-01/user-data", config.to_string()),
        (&format!("{data}/local-ipv4"), ADDRESS.to_owned()),
        (&format!("{data}/public-ipv4"), "203.0.113.25".to_owned()),
        (&format!("{data}/public-keys/index"), "0=harness".to_owned()),
        (
            &format!("{data}/public-keys/0/openssh-key"),
            host.public_key.clone(),
        ),
    ])
}

fn with_key(host: &Host, path: &str) -> String {
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [host.public_key]}]},
        "storage": {"files": [{"path": path}]},
    })
    .to_string()
}

fn openstack(host: &Host) -> Served {
    files(&[
        (
            "openstack/latest/user_data",
            with_key(host, "/etc/from-openstack"),
        ),
        (
            "openstack/2012-08-10/meta_data.json",
            json!({"uuid": "d8e02d56-2648-49a3-bf97-6be8f1204f38", "hostname": "test.novalocal"})
                .to_string(),
        ),
        ("latest/meta-data/local-ipv4", ADDRESS.to_owned()),
        ("latest/meta-data/hostname", "test.novalocal".to_owned()),
    ])
}

/// The same on a drive, and no service: nobody knows beforehand which of them there is.
fn openstack_drive(host: &Host) -> Served {
    files(&[
        (
            "openstack/latest/user_data",
            with_key(host, "/etc/from-openstack"),
        ),
        (
            "openstack/latest/meta_data.json",
            json!({"uuid": "83679162-1378-4288-a2d4-70e13ec132aa", "hostname": "test.novalocal"})
                .to_string(),
        ),
        (
            "ec2/latest/meta-data.json",
            json!({"instance-id": "i-022da7a2", "local-ipv4": ADDRESS}).to_string(),
        ),
    ])
}

/// The platform has the key as well: a config from elsewhere need not have it.
fn hetzner(host: &Host) -> Served {
    let data = "hetzner/v1/metadata";
    files(&[
        ("hetzner/v1/userdata", with_key(host, "/etc/from-hetzner")),
        (&format!("{data}/hostname"), "my-server".to_owned()),
        (&format!("{data}/public-ipv4"), ADDRESS.to_owned()),
        (
            &format!("{data}/public-keys"),
            json!([host.public_key]).to_string(),
        ),
    ])
}

fn nothing(_: &Host) -> Served {
    Vec::new()
}

fn cloud_config(_: &Host) -> Served {
    let text = "#cloud-config\npackages: [nginx]\n";
    files(&[("hetzner/v1/userdata", text.to_owned())])
}

/// Boots what the wanted cases need, two at a time, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let wanted: Vec<&Cloud> = (CLOUDS.iter())
        .filter(|cloud| suite.wants(cloud.case))
        .collect();
    let mut result = Ok(());
    for pair in wanted.chunks(2) {
        let names: Vec<_> = pair.iter().map(|cloud| cloud.name).collect();
        let step = format!("boot machines of clouds ({})", names.join(", "));
        suite.progress.step(step);
        let starting = pair.iter().map(|cloud| start(cloud, host, common, dir));
        match try_join_all(starting).await {
            Err(error) => result = Err(error),
            Ok(started) => {
                for (cloud, mut cluster) in pair.iter().zip(started) {
                    let progress = suite.progress;
                    let case = cloud.case;
                    suite
                        .case(case, &mut cluster, async |cluster| {
                            let [machine] = &mut cluster.machines[..] else {
                                bail!("not one machine")
                            };
                            if case == CASES[4] {
                                let causes = ["it is a cloud-config", "write one with butane"];
                                return stops_and_stays(machine, &causes).await;
                            }
                            machine.wait_for_ssh(progress).await?;
                            let state = machine.settle(progress).await?;
                            ensure!(state == "running", "the boot is {state:?}");
                            look(case, machine).await
                        })
                        .await;
                    cluster.discard();
                }
            }
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn start(cloud: &Cloud, host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = cloud.name.into();
        node.served = (cloud.served)(host);
        node.drive = (cloud.drive)(host);
    }
    let options = Options {
        alone: true,
        exit_on_reset: cloud.case == CASES[4],
        // One of them shows by the way that the initrd finds such a disk.
        sata: cloud.case == CASES[3],
        cloud: Some(cloud.smbios),
        ..Options::default()
    };
    Cluster::start(host, &dir.join(cloud.name), nodes, options).await
}

/// Looks at a machine that is up.
async fn look(case: &str, machine: &Machine) -> Result<()> {
    let shown = machine.ssh.run("sudo selvage metadata show").await?;
    let has = |line: &str| {
        let found = shown.lines().any(|is| is.trim() == line);
        ensure!(found, "`selvage metadata show` has no {line:?}: {shown}");
        Ok(())
    };
    let source = match case == CASES[5] {
        true => "source: the disk labelled config-2".to_owned(),
        false => format!("source: http://{}", serve::METADATA_ADDRESS),
    };
    has(&source)?;
    let file = async |path: &str| {
        let text = machine.ssh.run(&format!("cat {path}")).await;
        text.with_context(|| format!("{path} is not there"))
    };
    if case == CASES[0] {
        has("platform: aws (SMBIOS sys_vendor is \"Amazon EC2\")")?;
        let read = file("/run/reader").await?;
        let expected = format!("{ADDRESS} 203.0.113.25 3");
        ensure!(read.trim() == expected, "the unit read {read:?}");
        let coreos = file("/run/metadata/coreos").await?;
        for name in ["flatcar", "afterburn", "selvage"] {
            let same = file(&format!("/run/metadata/{name}")).await?;
            ensure!(same == coreos, "{name} differs from coreos: {same}");
        }
    } else if case == CASES[1] || case == CASES[5] {
        has("platform: openstack (SMBIOS product_name is \"OpenStack Nova\")")?;
        has(&format!("COREOS_OPENSTACK_IPV4_LOCAL={ADDRESS}"))?;
        file("/etc/from-openstack").await?;
    } else {
        has("platform: hetzner (SMBIOS sys_vendor is \"Hetzner\")")?;
        has(&format!("AFTERBURN_HETZNER_PUBLIC_IPV4={ADDRESS}"))?;
        let (there, absent) = match case == CASES[2] {
            true => ("/etc/from-hetzner", "/etc/from-credential"),
            false => ("/etc/from-credential", "/etc/from-hetzner"),
        };
        file(there).await?;
        let name = file("/etc/hostname").await?;
        ensure!(name.trim() == "my-server", "the host name is {name:?}");
        let other = machine.ssh.run(&format!("test ! -e {absent}")).await;
        other.with_context(|| format!("{absent} is there, too"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_machine() {
        let cases: Vec<_> = CLOUDS.iter().map(|cloud| cloud.case).collect();
        assert_eq!(cases, CASES);
    }
}
