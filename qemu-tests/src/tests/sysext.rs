//! System extensions of the image, on one machine with the plain and one with the signed image. `make sysexts` and
//! `make sysexts-signed` build them; the machines fetch them by HTTP.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::update::one;
use crate::{
    built::Built,
    cli::Common,
    cluster::{Cluster, Options},
    container, description,
    host::Host,
    machine::Machine,
    overlay::{WEB, WEB_PORT},
    serve::ADDRESS,
    ssh::COMMAND_DEADLINE,
    suite::{Names, Suite},
};

/// The cases here: the fifth is of the signed image, all others of the plain one.
pub(super) const CASES: Names = &[
    "sysext::added_by_its_hash_is_there_at_once",
    "sysext::of_another_version_or_system_is_not_merged",
    "sysext::merged_again_by_the_next_boot",
    "sysext::removed_leaves_the_image_as_it_was",
    "sysext::signed_image_merges_only_what_is_signed",
    "sysext::podman_runs_a_container_beside_docker",
];

/// All: three boots.
pub(super) const EXTENDED: Names = CASES;

/// What the extensions are called.
const NAME: &str = "debug";
const PODMAN: &str = "podman";

/// Merges a system extension that fits any version; fails unless it is merged.
pub(super) const MERGE: &str = "sudo mkdir -p /var/lib/extensions/beside/usr/lib/extension-release.d && \
    echo ID=_any | sudo tee /var/lib/extensions/beside/usr/lib/extension-release.d/extension-release.beside && \
    sudo systemctl restart systemd-sysext.service && grep -x beside /usr/.systemd-sysext/extensions";
/// Takes it away again.
pub(super) const UNMERGE: &str = "sudo rm -r /var/lib/extensions && \
    sudo systemctl restart systemd-sysext.service && ! test -e /usr/.systemd-sysext";

/// Boots the machines that the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    let result = boots(suite, host, common, dir).await;
    suite.close(CASES, result.as_ref().err());
}

async fn boots(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) -> Result<()> {
    let built = common.target.join("sysexts");
    let plain =
        Extension::of(&common.image, &built, NAME).context("build it with `make sysexts`")?;
    let podman =
        Extension::of(&common.image, &built, PODMAN).context("build it with `make sysexts`")?;
    let signed_image = common.target.join("image-signed");
    let signed = Extension::of(&signed_image, &common.target.join("sysexts-signed"), NAME)
        .context("build it with `make sysexts-signed`")?;

    suite
        .progress
        .step("first boot of a machine that gets a system extension");
    let mut cluster = start(host, common, &dir.join("sysext"), &[&plain, &podman]).await?;
    let gone_through = plain_image(suite, &mut cluster, &plain, &podman).await;
    if let Err(error) = &gone_through {
        suite.boot_failed("sysext", &mut cluster, error).await;
    }
    cluster.discard();
    gone_through?;

    suite.progress.step("first boot of the signed image");
    let image = Common {
        image: signed_image,
        cluster: common.cluster.clone(),
        target: common.target.clone(),
        accelerator: Some(host.accelerator),
    };
    let dir = dir.join("sysext-signed");
    let host = Host::prepare(&image, &dir.with_extension("key"), suite.progress).await?;
    let mut cluster = start(&host, &image, &dir, &[&signed, &plain]).await?;
    if let Err(error) = cluster.wait_for_ssh(suite.progress).await {
        suite
            .boot_failed("sysext-signed", &mut cluster, &error)
            .await;
        return Err(error);
    }
    suite
        .case(CASES[4], &mut cluster, async |cluster| {
            only_signed(one(cluster)?, &signed, &plain).await
        })
        .await;
    cluster.discard();
    Ok(())
}

/// A built extension, as a server has it.
pub(super) struct Extension {
    version: String,
    file: String,
    sha256: String,
    /// With its list and, where there is one, the list's signature.
    served: Vec<(String, Vec<u8>)>,
}

impl Extension {
    /// That of an image, in the directory that `image/sysexts` filled.
    pub(super) fn of(image: &Path, dir: &Path, name: &str) -> Result<Self> {
        let version = Built::of(image)?.version;
        let file = format!("selvage_{version}_{name}.sysext.raw");
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))
        };
        let sums = String::from_utf8(read("SHA256SUMS")?).context("SHA256SUMS is no text")?;
        let line = sums.lines().find(|line| line.ends_with(&file));
        let sha256 = line.and_then(|line| line.split(' ').next());
        let place = dir.file_name().unwrap_or_default().to_string_lossy();
        let mut served = vec![
            (format!("{place}/{file}"), read(&file)?),
            (format!("{place}/SHA256SUMS"), sums.clone().into_bytes()),
        ];
        if let Ok(signature) = read("SHA256SUMS.sig") {
            served.push((format!("{place}/SHA256SUMS.sig"), signature));
        }
        Ok(Self {
            version,
            sha256: sha256.context("SHA256SUMS does not list it")?.to_owned(),
            file: format!("{place}/{file}"),
            served,
        })
    }

    /// The file's name, without its directory.
    pub(super) fn name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or_default()
    }

    /// The file.
    pub(super) fn bytes(&self) -> &[u8] {
        self.served.first().map_or(&[], |(_, bytes)| bytes)
    }

    /// The SHA-256 of the file, in hexadecimal digits.
    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    pub(super) fn url(&self) -> String {
        format!("http://{ADDRESS}/{}", self.file)
    }

    /// With its list and, where there is one, the list's signature.
    pub(super) fn served(&self) -> impl Iterator<Item = (String, Vec<u8>)> {
        self.served.iter().cloned()
    }
}

async fn start(
    host: &Host,
    common: &Common,
    dir: &Path,
    extensions: &[&Extension],
) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "sysext".into();
        node.ignition = description::only_a_login(&host.public_key).to_string();
        let served = extensions.iter().flat_map(|extension| extension.served());
        node.served.extend(served);
    }
    let options = Options {
        alone: true,
        ..Options::default()
    };
    Cluster::start(host, dir, nodes, options).await
}

async fn plain_image(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    extension: &Extension,
    podman: &Extension,
) -> Result<()> {
    let progress = suite.progress;
    cluster.wait_for_ssh(progress).await?;
    cluster.settle(progress).await?;
    suite
        .case(CASES[0], cluster, async |cluster| {
            added(one(cluster)?, extension).await
        })
        .await;
    suite
        .case(CASES[1], cluster, async |cluster| {
            others(one(cluster)?, extension).await
        })
        .await;
    one(cluster)?.reboot().await?;
    cluster.wait_for_ssh(progress).await?;
    cluster.settle(progress).await?;
    suite
        .case(CASES[2], cluster, async |cluster| {
            let machine = one(cluster)?;
            tools_work(machine).await?;
            listed(machine, &extension.version, "merged").await
        })
        .await;
    suite
        .case(CASES[3], cluster, async |cluster| {
            let machine = one(cluster)?;
            machine.ssh.run("sudo selvage sysext remove debug").await?;
            machine
                .ssh
                .run("! command -v tcpdump && ! test -e /usr/.systemd-sysext")
                .await?;
            machine
                .ssh
                .run("systemctl is-active docker.service")
                .await
                .map(drop)
        })
        .await;
    suite
        .case(CASES[5], cluster, async |cluster| {
            podman_runs(one(cluster)?, podman).await
        })
        .await;
    Ok(())
}

/// It is there with the files of `/etc` that it does not run without, has a network of its own, and Docker stays as it
/// was.
async fn podman_runs(machine: &Machine, extension: &Extension) -> Result<()> {
    let add = format!(
        "sudo selvage sysext add --sha256 {} {}",
        extension.sha256,
        extension.url()
    );
    machine.ssh.run(&add).await?;
    let archive = container::build().await?;
    let import = format!("sudo podman import - {}", container::IMAGE);
    machine
        .ssh
        .feed(&import, &archive, COMMAND_DEADLINE)
        .await?;
    let run = format!(
        "sudo podman run -d --name {WEB} {} httpd -f -p 0.0.0.0:{WEB_PORT} -h /www",
        container::IMAGE
    );
    machine.ssh.run(&run).await?;
    let ask = format!(
        "address=$(sudo podman inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' \
         {WEB}) && curl --silent --show-error --fail --max-time 60 http://$address:{WEB_PORT}/"
    );
    let page = machine.ssh.run(&ask).await?;
    ensure!(page.trim() == "selvage", "podman's container says {page:?}");
    machine
        .ssh
        .run("docker version >/dev/null && sudo podman rm -f web >/dev/null && sudo selvage sysext remove podman")
        .await
        .map(drop)
}

/// Not there before; there and working without a reboot after; nothing else of `/usr` is touched.
async fn added(machine: &Machine, extension: &Extension) -> Result<()> {
    machine
        .ssh
        .run("! command -v tcpdump && ! command -v strace && ! command -v bpftool")
        .await?;
    let wrong = format!(
        "sudo selvage sysext add --sha256 {} {} 2>&1",
        "0".repeat(64),
        extension.url()
    );
    let said = machine.ssh.run(&format!("! {wrong}")).await?;
    ensure!(said.contains("the SHA-256 is"), "a wrong hash: {said}");
    let add = format!(
        "sudo selvage sysext add --sha256 {} {}",
        extension.sha256,
        extension.url()
    );
    let said = machine.ssh.run(&add).await?;
    ensure!(said.contains("debug is merged into /usr"), "{said}");
    tools_work(machine).await?;
    listed(machine, &extension.version, "merged").await?;
    machine
        .ssh
        .run("sudo docker version >/dev/null && systemctl is-active containerd")
        .await
        .map(drop)
}

async fn tools_work(machine: &Machine) -> Result<()> {
    machine
        .ssh
        .run("sudo tcpdump --version && sudo timeout 60 tcpdump -D")
        .await?;
    let traced = machine
        .ssh
        .run("sudo strace -c -o /run/trace true && cat /run/trace")
        .await?;
    ensure!(traced.contains("execve"), "strace saw no execve: {traced}");
    machine
        .ssh
        .run("sudo bpftool prog list >/dev/null")
        .await
        .map(drop)
}

async fn listed(machine: &Machine, version: &str, state: &str) -> Result<()> {
    let said = machine.ssh.run("sudo selvage sysext list").await?;
    let line = said
        .lines()
        .find(|line| line.starts_with(NAME))
        .unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words == [NAME, version, state], "{said}");
    Ok(())
}

/// Extensions that the administrator makes by hand, as directories: only the one for this version is merged. One that
/// the agent keeps for a later version of the image waits for it.
async fn others(machine: &Machine, extension: &Extension) -> Result<()> {
    for (name, release) in [
        (
            "good",
            format!("ID=debian\nSYSEXT_LEVEL={}\n", extension.version),
        ),
        ("any", "ID=_any\n".to_owned()),
        ("old", "ID=debian\nSYSEXT_LEVEL=0.0.1\n".to_owned()),
        ("debian", "ID=debian\nVERSION_ID=13\n".to_owned()),
        ("flatcar", "ID=flatcar\nSYSEXT_LEVEL=1.0\n".to_owned()),
    ] {
        let tree = format!("/var/lib/extensions/{name}/usr");
        let script = format!(
            "sudo mkdir -p {tree}/bin {tree}/lib/extension-release.d && \
             printf '{}' | sudo tee {tree}/lib/extension-release.d/extension-release.{name} >/dev/null && \
             sudo cp /usr/bin/true {tree}/bin/of-{name}",
            release.replace('\n', "\\n")
        );
        machine.ssh.run(&script).await?;
    }
    machine
        .ssh
        .run(&format!(
            "sudo mkdir -p /var/lib/selvage/sysexts/99.0 && \
             sudo cp /var/lib/selvage/sysexts/{}/debug.raw /var/lib/selvage/sysexts/99.0/later.raw",
            extension.version
        ))
        .await?;
    machine
        .ssh
        .run("sudo systemctl restart systemd-sysext.service")
        .await?;
    let found = machine.ssh.run("cd /usr/bin; echo of-*").await?;
    // Without SYSEXT_LEVEL an extension of Debian 13 has the right VERSION_ID: that it fits is its maker's word.
    ensure!(
        found.split(' ').collect::<Vec<_>>() == ["of-any", "of-debian", "of-good"],
        "merged: {found}"
    );
    tools_work(machine).await?;
    let list = machine.ssh.run("sudo selvage sysext list || true").await?;
    ensure!(list.contains("waits for its version"), "{list}");
    machine
        .ssh
        .run("sudo rm -r /var/lib/extensions /var/lib/selvage/sysexts/99.0 && sudo systemctl restart systemd-sysext.service")
        .await
        .map(drop)
}

/// By the list that the update key signed; the same tools without the signature of the hash tree are not merged, whatever
/// hash somebody names.
async fn only_signed(machine: &mut Machine, signed: &Extension, plain: &Extension) -> Result<()> {
    let said = machine
        .ssh
        .run(&format!("sudo selvage sysext add {}", signed.url()))
        .await?;
    ensure!(said.contains("debug is merged into /usr"), "{said}");
    tools_work(machine).await?;
    machine.ssh.run("sudo selvage sysext remove debug").await?;
    ensure!(
        plain.version == signed.version,
        "the plain image has version {}, the signed one {}: build both anew",
        plain.version,
        signed.version
    );
    let add = format!(
        "sudo selvage sysext add --sha256 {} {} 2>&1",
        plain.sha256,
        plain.url()
    );
    let said = machine.ssh.run(&format!("! {add}")).await?;
    ensure!(
        said.contains("did not merge debug"),
        "an extension without a signature: {said}"
    );
    machine.ssh.run("! command -v tcpdump").await?;
    // The kernel has no such key in its own keyring and says so; whether the key is known is then for systemd to judge.
    let hits = machine.console.check()?;
    let other: Vec<_> = hits
        .iter()
        .filter(|hit| !hit.line.contains("Root hash verification failed (-ENOKEY)"))
        .collect();
    ensure!(other.is_empty(), "bad messages on the console: {other:?}");
    Ok(())
}
