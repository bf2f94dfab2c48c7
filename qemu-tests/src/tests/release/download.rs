//! Downloads that are disturbed, files that are not what was signed, and the ways to the server.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    guest::{DIRECTORY, Guest},
    site::Site,
};
use crate::serve::tls::NAME;

/// KiB per second in the case of the rate limit, and for how many seconds it is looked at.
const RATE: u64 = 2048;
const LIMITED_SECONDS: u64 = 15;

/// The server closes the connection in the middle: the rest is asked for, and the whole is right.
pub(super) async fn resumed(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    let usr = site.artefact("usr")?;
    let half = usr.size / 2;
    site.cut(&usr, half)?;
    site.asked()?;
    let said = guest.update("apply --download").await?;
    said.expect(0, &["is downloaded"])?;
    let asked = site.asked_for(&usr)?;
    ensure!(
        asked == [(None, 200), (Some(half), 206)],
        "after {half} bytes, {} was asked for as {asked:?}",
        usr.file_name()?
    );
    for part in ["usr", "usr-verity", "uki"] {
        let artefact = site.artefact(part)?;
        let path = artefact.name.display();
        let said = guest
            .root(&format!("sha256sum {DIRECTORY}/download/{path}"))
            .await?;
        ensure!(said.starts_with(&artefact.sha256), "{said}");
    }
    // Nothing of it is brought a second time.
    site.asked()?;
    guest.update("apply --download").await?.expect(0, &[])?;
    ensure!(site.downloads()? == 0, "files were asked for again");
    Ok(())
}

/// A file that the server exchanged, and one that unpacks to something else than what was signed.
pub(super) async fn damaged(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    let before = (guest.slots().await?, guest.entries().await?);
    let uki = site.artefact("uki")?;
    let here = format!("{DIRECTORY}/download/{}", uki.name.display());
    guest.root(&format!("rm -f {here}")).await?;
    flip(&site.path(&uki), uki.size / 2)?;
    let said = guest.update("apply").await?;
    said.expect(
        1,
        &["the SHA-256 is", "the signed index says", uki.file_name()?],
    )?;
    let left = guest
        .root(&format!("cat {here} {here}.part 2>/dev/null | wc -c"))
        .await?;
    ensure!(left == "0", "{left} bytes of the damaged file are left");
    flip(&site.path(&uki), uki.size / 2)?;
    guest.update("apply --download").await?.expect(0, &[])?;

    site.publish(|release| release["files"][0]["unpacked_sha256"] = "0".repeat(64).into())
        .await?;
    let said = guest.update("apply").await?;
    said.expect(1, &["unpacks to something else than the signed index says"])?;
    let files = guest.files().await?;
    ensure!(
        files.iter().all(|file| file.starts_with("download/")),
        "what was unpacked is left: {files:?}"
    );
    let after = (guest.slots().await?, guest.entries().await?);
    ensure!(before == after, "the disk was {before:?} and is {after:?}");
    let status = guest.status().await?;
    ensure!(status["pending"].is_null(), "{}", status["pending"]);
    site.publish(|_| {}).await
}

/// Changes one byte of a file. The second time, it is as before.
fn flip(path: &Path, at: u64) -> Result<()> {
    let flip = || -> std::io::Result<()> {
        let mut file = fs::File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut byte)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&[!byte[0]])
    };
    flip().with_context(|| format!("failed to change {}", path.display()))
}

/// A disk that is too small from the beginning, and one that fills up before the last file has come: it gets back what
/// the others took, too. It is one of its own, so that the rest of the machine does not suffer.
pub(super) async fn disk_full(guest: Guest<'_>, site: &Site) -> Result<()> {
    let usr = site.artefact("usr")?;
    let here = format!("{DIRECTORY}/download/{}", usr.name.display());
    let dir = usr.name.parent().context("no directory")?.display();
    guest.update("apply --download").await?.expect(0, &[])?;
    guest
        .root(&format!(
            "mkdir -p {FULL}; mount -t tmpfs -o size=4G tmpfs {FULL}; mkdir {FULL}/{dir}; cp {here} {FULL}/{dir}; \
             mount --bind {FULL} {DIRECTORY}/download"
        ))
        .await?;
    let result = fill(guest, usr.size).await;
    guest
        .root(&format!("umount {DIRECTORY}/download; umount {FULL}"))
        .await?;
    result
}

/// Where the disk is mounted that is full.
const FULL: &str = "/run/full";

/// `there` bytes of the release are on the disk.
async fn fill(guest: Guest<'_>, there: u64) -> Result<()> {
    // In 4 KiB, of which each file takes whole ones.
    let blocks = there / 4096 + 1;
    let resize = |more: u64| format!("mount -o remount,nr_blocks={} {FULL}", blocks + more);
    guest.root(&resize(12_000)).await?;
    let said = guest.update("apply").await?;
    // 12000 blocks.
    said.expect(
        1,
        &["the update needs", "50 MB are free", "docker system prune"],
    )?;
    guest.configure("rate-limit = 4096").await?;
    let fills_up = resize(3000);
    let said = guest
        .try_root(&format!(
            "mount -o remount,nr_blocks=1000000 {FULL}; selvage update apply --download & \
             until [ -n \"$(find {FULL} -name \"*.efi.zst.part\" -size +2M)\" ]; do sleep 0.2; done; \
             {fills_up}; wait $!"
        ))
        .await?;
    let words = [
        "failed to write",
        ".efi.zst.part",
        "No space left on device",
    ];
    said.expect(1, &words)?;
    let left = guest.files().await?;
    ensure!(left.is_empty(), "it did not give back {left:?}");
    guest.configure("").await
}

/// Proxy, TLS with an authority of the site's own, both, and the rate limit.
pub(super) async fn ways(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    const AUTHORITY: &str = "/etc/selvage/test-authority.pem";
    const PROXY: &str = "proxy = \"http://machine:secret@10.0.2.4:80\"";
    // base64 of machine:secret.
    const CREDENTIALS: &str = "Basic bWFjaGluZTpzZWNyZXQ=";
    guest.write(AUTHORITY, &site.authority()?).await?;
    let cafile = format!("cafile = \"{AUTHORITY}\"");
    let check = async |site: &mut Site, lines: &str| -> Result<_> {
        guest.configure(lines).await?;
        site.asked()?;
        let said = guest.update("check").await?;
        Ok((said, site.asked()?))
    };

    let plain = format!("server = \"http://{NAME}\"\n{PROXY}");
    let (said, asked) = check(site, &plain).await?;
    said.expect(2, &[site.version()?])?;
    let address = format!("http://{NAME}/stable.json");
    ensure!(
        asked.iter().any(|asked| asked.target == address
            && asked.proxy_authorization.as_deref() == Some(CREDENTIALS)),
        "the proxy was asked for {asked:?}"
    );

    let direct = "server = \"https://10.0.2.4:80\"\n";
    let (said, asked) = check(site, direct).await?;
    said.expect(1, &["10.0.2.4:80", "certificate"])?;
    ensure!(asked.is_empty(), "told a stranger: {asked:?}");
    let (said, asked) = check(site, &format!("{direct}{cafile}")).await?;
    said.expect(2, &[site.version()?])?;
    ensure!(
        asked.len() == 2 && asked.iter().all(|asked| asked.tls),
        "{asked:?}"
    );

    let tunnel = format!("server = \"https://{NAME}\"\n{PROXY}\n{cafile}");
    let (said, asked) = check(site, &tunnel).await?;
    said.expect(2, &[site.version()?])?;
    let authority = format!("{NAME}:443");
    let (connects, gets): (Vec<_>, Vec<_>) = asked.into_iter().partition(|asked| !asked.tls);
    ensure!(
        !connects.is_empty()
            && connects.iter().all(|asked| asked.method == "CONNECT"
                && asked.target == authority
                && asked.proxy_authorization.as_deref() == Some(CREDENTIALS)),
        "{connects:?}"
    );
    // The password is for the proxy alone.
    ensure!(
        gets.len() == 2 && gets.iter().all(|asked| asked.proxy_authorization.is_none()),
        "{gets:?}"
    );
    let status = guest.update("status").await?;
    ensure!(!status.text.contains("secret"), "{}", status.text);
    rate_limit(guest).await
}

async fn rate_limit(guest: Guest<'_>) -> Result<()> {
    guest.configure(&format!("rate-limit = {RATE}")).await?;
    let said = guest
        .root(&format!(
            "rm -rf {DIRECTORY}/download; timeout {LIMITED_SECONDS} selvage update apply --download >/dev/null 2>&1; \
             cat {DIRECTORY}/download/*/* | wc -c"
        ))
        .await?;
    let bytes: u64 = said.trim().parse().with_context(|| said.clone())?;
    let most = RATE * 1024 * LIMITED_SECONDS;
    ensure!(
        (most / 4..=most).contains(&bytes),
        "{bytes} bytes came in {LIMITED_SECONDS} s, at a limit of {RATE} KiB/s"
    );
    guest.configure("").await
}
