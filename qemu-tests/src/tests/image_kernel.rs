//! Tests of the agent that need a kernel with WireGuard or ESP, in the image's own: the very programs that `make test-netns` runs, with
//! network namespaces of the machine as hosts. `make agent-tests` builds them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::sysext::Extension;
use crate::{
    cli::Common,
    cluster::Cluster,
    machine::Machine,
    suite::{Names, Suite},
};

/// The cases here: what each program ignores where nobody asks for it; and all tests of IPsec, with the charon of the
/// system extension, which `make sysexts` builds.
pub(super) const CASES: Names = &[
    "image_kernel::netns",
    "image_kernel::overlay",
    "image_kernel::ipsec",
];

/// The last one, since few changes need an extension.
pub(super) const EXTENDED: Names = &["image_kernel::ipsec"];

/// The system extension with charon.
const EXTENSION: &str = "ipsec";

/// What cargo says of the programs, below the target directory.
const PROGRAMS: &str = "agent-tests.json";
/// Where they are put in the machine. Its `/tmp` is memory, of which each etcd would take 128 MB.
const DIR: &str = "/var/tmp/agent-tests";
/// A program has up to a quarter of a minute for each of its tests on a machine with KVM, and ten times that without.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// For 20 MB to an emulated machine.
const COPY_DEADLINE: Duration = Duration::from_secs(300);
/// Lines of a failed program that are shown.
const SHOWN_LINES: usize = 60;

/// Runs them on the first machine.
pub(super) async fn run(suite: &mut Suite<'_>, common: &Common, cluster: &mut Cluster) {
    let target = &common.target;
    for name in &CASES[..2] {
        suite
            .case(name, cluster, async |cluster| {
                let machine = cluster.machines.first().context("no machine")?;
                let program = name.rsplit("::").next().unwrap_or_default();
                run_program(machine, target, program, "--ignored --skip ipsec::").await
            })
            .await;
    }
    suite
        .case(CASES[2], cluster, async |cluster| {
            let machine = cluster.machines.first().context("no machine")?;
            let built = target.join("sysexts");
            let extension = Extension::of(&common.image, &built, EXTENSION)
                .context("build it with `make sysexts`")?;
            merge(machine, &extension).await?;
            let tested = run_program(machine, target, "overlay", "--include-ignored ipsec::").await;
            let remove = format!("sudo selvage sysext remove {EXTENSION}");
            machine.ssh.run(&remove).await?;
            tested
        })
        .await;
}

/// Merges a system extension without a release server.
async fn merge(machine: &Machine, extension: &Extension) -> Result<()> {
    let path = format!("{DIR}/{}", extension.name());
    let script = format!("sudo mkdir -p {DIR} && sudo tee {path} >/dev/null");
    machine
        .ssh
        .feed(&script, extension.bytes(), COPY_DEADLINE)
        .await?;
    let add = format!(
        "sudo selvage sysext add --sha256 {} {path} && test -x /usr/sbin/swanctl",
        extension.sha256()
    );
    machine.ssh.run(&add).await.map(drop)
}

/// `arguments`: which tests.
async fn run_program(machine: &Machine, target: &Path, name: &str, arguments: &str) -> Result<()> {
    let path = find(target, name)?;
    copy(machine, &path, name).await?;
    // The image's own agent, unless somebody tries another.
    let agent = match std::env::var_os("SELVAGE_BIN") {
        Some(path) => {
            copy(machine, Path::new(&path), "selvage").await?;
            format!("{DIR}/selvage")
        }
        None => "/usr/bin/selvage".into(),
    };
    let script = format!(
        "cd {DIR} && sudo env TMPDIR={DIR} SELVAGE_BIN={agent} RUST_BACKTRACE=0 \
         ./{name} {arguments} --show-output --test-threads=2 2>&1 || true"
    );
    let said = machine.ssh.feed(&script, &[], DEADLINE).await?;
    let log = machine.console.path().with_file_name(format!("{name}.log"));
    std::fs::write(&log, &said).with_context(|| format!("failed to write {}", log.display()))?;
    let verdict = verdict(&said);
    verdict.with_context(|| format!("all that it said is in {}", log.display()))
}

/// The program that cargo made of a file of tests.
fn find(target: &Path, name: &str) -> Result<PathBuf> {
    let path = target.join(PROGRAMS);
    let said = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "no {}; `make agent-tests` builds the tests and writes it",
            path.display()
        )
    })?;
    executable(&said, name).with_context(|| format!("no test program {name} in {}", path.display()))
}

/// Looks for a test's program in cargo's messages, one JSON object a line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name && message["target"]["kind"][0] == "test";
        let path = message["executable"].as_str().filter(|_| is_it)?;
        Some(path.into())
    })
}

/// Puts a program on the machine, without what only a debugger needs.
async fn copy(machine: &Machine, path: &Path, name: &str) -> Result<()> {
    let dir = tempfile::tempdir().context("failed to make a directory")?;
    let stripped = dir.path().join(name);
    let output = tokio::process::Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(path)
        .output()
        .await
        .context("failed to run strip (package binutils)")?;
    ensure!(
        output.status.success(),
        "strip failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let program = std::fs::read(&stripped)
        .with_context(|| format!("failed to read {}", stripped.display()))?;
    let script = format!(
        "sudo mkdir -p {DIR} && sudo tee {DIR}/{name} >/dev/null && sudo chmod 755 {DIR}/{name}"
    );
    machine.ssh.feed(&script, &program, COPY_DEADLINE).await?;
    Ok(())
}

/// Judges what a test program printed. None run is none passed.
fn verdict(said: &str) -> Result<()> {
    let result = said
        .lines()
        .rfind(|line| line.starts_with("test result: "))
        .with_context(|| format!("it did not come to its end:\n{}", end(said)))?;
    let passed = result
        .split_whitespace()
        .nth(3)
        .and_then(|number| number.parse::<u32>().ok());
    let failed: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_suffix(" ... FAILED")?.strip_prefix("test "))
        .collect();
    ensure!(
        result.starts_with("test result: ok. ") && failed.is_empty(),
        "failed: {}\n{}",
        failed.join(", "),
        end(said)
    );
    ensure!(passed.is_some_and(|passed| passed > 0), "{result}");
    Ok(())
}

fn end(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_among_what_cargo_says() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"overlay"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"selvage"},"executable":"/t/selvage"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"overlay"},"executable":"/t/overlay-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages, "overlay"), Some("/t/overlay-1".into()));
        assert_eq!(executable(messages, "selvage"), None);
    }

    #[test]
    fn what_failed_is_named_and_nothing_run_is_a_failure() {
        let good = "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n";
        assert!(verdict(good).is_ok());
        let none = good.replace("2 passed", "0 passed");
        assert!(verdict(&none).is_err());
        let bad = good
            .replace("test b ... ok", "test b::c ... FAILED")
            .replace("ok. 2 passed; 0", "FAILED. 1 passed; 1");
        let error = verdict(&bad).unwrap_err().to_string();
        assert!(error.starts_with("failed: b::c\n"), "{error}");
        assert!(
            verdict("running 2 tests\ntest a ... ok\n").is_err(),
            "killed"
        );
    }
}
