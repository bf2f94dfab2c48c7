//! What the demo needs, looked for before anything is started.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{node::PLUGINS, program::Installation};

/// What all JVMs take at the most, in kB.
const MEMORY_KB: u64 = 4_000_000;

/// Looks for everything, and gives where pyspark is in the Python environment.
///
/// # Errors
/// What is missing, and how it is to be had.
pub(super) fn check(environment: &Path) -> Result<Installation> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root; run `make demo-spark`"
    );
    for plugin in ["bridge", "host-local"] {
        let path = Path::new(PLUGINS).join(plugin);
        ensure!(
            path.is_file(),
            "no {}; install the package containernetworking-plugins",
            path.display()
        );
    }
    let meminfo = fs::read_to_string("/proc/meminfo").context("failed to read /proc/meminfo")?;
    let available = available_kb(&meminfo).context("no MemAvailable in /proc/meminfo")?;
    ensure!(
        available >= MEMORY_KB,
        "Spark's processes need {} MB of memory, and {} MB are available",
        MEMORY_KB / 1000,
        available / 1000
    );
    answer(Command::new("java").arg("-version"))
        .context("no Java; install the package default-jre-headless")?;
    // Not canonical: the link is what makes Python look in the environment.
    let python = std::path::absolute(environment.join("bin/python"))
        .with_context(|| format!("failed to find {}", environment.display()))?;
    let script =
        "import importlib.util as u; print(u.find_spec('pyspark').submodule_search_locations[0])";
    let home = answer(Command::new(&python).args(["-c", script])).with_context(|| {
        let environment = environment.display();
        format!("no pyspark in {environment}; `make demo-spark` installs it")
    })?;
    Ok(Installation {
        python,
        home: home.trim().into(),
    })
}

/// What a program prints; an error if it fails.
fn answer(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        output.status.success(),
        "{}: {last}",
        command.get_program().display()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn available_kb(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24567890 kB\nMemFree:  1 kB\nMemAvailable:   21234567 kB\n";
        assert_eq!(available_kb(text), Some(21_234_567));
        assert_eq!(available_kb("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn an_environment_without_pyspark_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = answer(Command::new("sh").args(["-c", "echo no module >&2; exit 1"]));
        assert_eq!(error.unwrap_err().to_string(), "sh: no module");
        assert!(answer(&mut Command::new(dir.path().join("python"))).is_err());
    }
}
