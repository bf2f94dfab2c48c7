//! Runs cases, one booted cluster for many of them, and keeps the score.
//!
//! A group of cases declares their names beforehand. So a boot that fails shows as every one of its cases failing, and
//! a case that was forgotten cannot pass for one that ran.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{cluster::Cluster, diagnose, progress::Progress};

/// The names of the cases of one file, all starting with the group's name and `::`.
pub(crate) type Names = &'static [&'static str];

#[derive(Debug)]
struct Outcome {
    name: &'static str,
    passed: bool,
}

/// A run of the tests.
#[derive(Debug)]
pub(crate) struct Suite<'a> {
    /// Where to show what happens.
    pub progress: &'a Progress,
    filter: Option<String>,
    /// Cases that are left out where no filter asks for them.
    left_out: Vec<&'static str>,
    /// Where to keep what a failed case leaves.
    pub dir: PathBuf,
    outcomes: Vec<Outcome>,
}

impl<'a> Suite<'a> {
    /// A run of the cases whose names contain `filter`, or of all but those `left_out`.
    pub(crate) fn new(
        progress: &'a Progress,
        filter: Option<String>,
        left_out: Vec<&'static str>,
        dir: PathBuf,
    ) -> Self {
        Self {
            progress,
            filter,
            left_out,
            dir,
            outcomes: Vec::new(),
        }
    }

    /// Whether this case is to be run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        match &self.filter {
            Some(filter) => name.contains(filter.as_str()),
            None => !self.left_out.contains(&name),
        }
    }

    /// Whether any of these cases is to be run.
    pub(crate) fn wants_any(&self, names: Names) -> bool {
        names.iter().any(|name| self.wants(name))
    }

    /// Runs one case on a booted cluster, unless the filter leaves it out. The consoles must stay clean meanwhile.
    pub(crate) async fn case(
        &mut self,
        name: &'static str,
        cluster: &mut Cluster,
        body: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
    ) {
        if !self.wants(name) {
            return;
        }
        let started = Instant::now();
        let result = body(cluster).await;
        // Looked at in any case: the next one must not be blamed for what this one's machines said.
        let consoles = check_consoles(cluster);
        let result = result.and(consoles);
        self.record(name, started.elapsed(), result, cluster).await;
    }

    async fn record(
        &mut self,
        name: &'static str,
        took: Duration,
        result: Result<()>,
        cluster: &mut Cluster,
    ) {
        let passed = result.is_ok();
        let verdict = if passed { "ok" } else { "FAILED" };
        self.progress.line(&format!(
            "test {name} ... {verdict} ({:.1} s)",
            took.as_secs_f64()
        ));
        if let Err(error) = result {
            let reason = format!("{error:#}");
            let dir = self.dir.join(name.replace("::", "-"));
            // Told before it is kept: that takes a while.
            self.progress.line(&indent(&reason));
            for line in diagnose::keep(&mut cluster.machines, &dir, &reason).await {
                self.progress.line(&indent(&line));
            }
        }
        self.outcomes.push(Outcome { name, passed });
    }

    /// Shows why machines did not come up, and keeps what they left.
    pub(crate) async fn boot_failed(
        &self,
        name: &str,
        cluster: &mut Cluster,
        error: &anyhow::Error,
    ) {
        let reason = format!("{error:#}");
        self.progress.line(&indent(&reason));
        let dir = self.dir.join(format!("boot-of-{name}"));
        for line in diagnose::keep(&mut cluster.machines, &dir, &reason).await {
            self.progress.line(&indent(&line));
        }
    }

    /// Ends a group: wanted cases that did not run fail; `error` is what kept them from it.
    pub(crate) fn close(&mut self, names: &[&'static str], error: Option<&anyhow::Error>) {
        let missing: Vec<_> = names
            .iter()
            .filter(|name| {
                self.wants(name) && !self.outcomes.iter().any(|outcome| outcome.name == **name)
            })
            .collect();
        for name in missing {
            let why = error.map_or_else(|| "was not run".to_owned(), |error| format!("{error:#}"));
            let why = why.lines().next().unwrap_or_default();
            self.progress
                .line(&format!("test {name} ... FAILED (not run: {why})"));
            self.outcomes.push(Outcome {
                name,
                passed: false,
            });
        }
    }

    /// The last line, and whether all is well. Nothing run is not well.
    pub(crate) fn summary(&self) -> (String, bool) {
        let failed = self
            .outcomes
            .iter()
            .filter(|outcome| !outcome.passed)
            .count();
        let passed = self.outcomes.len() - failed;
        (
            format!("{passed} passed, {failed} failed"),
            failed == 0 && passed > 0,
        )
    }
}

/// Fails when a console shows a message that no healthy machine prints, new since the last look.
///
/// # Errors
/// Names machine, meaning and line.
pub(crate) fn check_consoles(cluster: &mut Cluster) -> Result<()> {
    let mut bad = Vec::new();
    for machine in &mut cluster.machines {
        for hit in machine.console.check()? {
            bad.push(format!("{}: {}: {}", machine.name(), hit.meaning, hit.line));
        }
    }
    ensure!(
        bad.is_empty(),
        "bad message on the console:\n{}",
        bad.join("\n")
    );
    Ok(())
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(console: &str) -> (tempfile::TempDir, Cluster) {
        let dir = tempfile::tempdir().unwrap();
        let machine = crate::machine::tests::machine(dir.path());
        std::fs::write(machine.console.path(), console).unwrap();
        (
            dir,
            Cluster {
                machines: vec![machine],
                nodes: Vec::new(),
                switch: None,
            },
        )
    }

    #[tokio::test]
    async fn score_counts_passes_failures_and_bad_consoles() {
        let progress = Progress::new();
        let (dir, mut cluster) = cluster("fine\n");
        let mut suite = Suite::new(&progress, None, Vec::new(), dir.path().to_owned());
        suite.case("a::good", &mut cluster, async |_| Ok(())).await;
        suite
            .case("a::bad", &mut cluster, async |_| {
                anyhow::bail!("broken on purpose")
            })
            .await;
        std::fs::write(
            cluster.machines[0].console.path(),
            "fine\nKernel panic - not syncing\n",
        )
        .unwrap();
        suite
            .case("a::panicked", &mut cluster, async |_| Ok(()))
            .await;
        assert_eq!(suite.summary(), ("1 passed, 2 failed".into(), false));
        assert!(dir.path().join("a-bad/node1/console.log").exists());
    }

    #[tokio::test]
    async fn filter_leaves_cases_out() {
        let progress = Progress::new();
        let (dir, mut cluster) = cluster("");
        let mut suite = Suite::new(
            &progress,
            Some("ping".into()),
            Vec::new(),
            dir.path().to_owned(),
        );
        suite.case("a::ping", &mut cluster, async |_| Ok(())).await;
        suite
            .case("a::http", &mut cluster, async |_| {
                anyhow::bail!("not to be run")
            })
            .await;
        suite.close(&["a::ping", "a::http"], None);
        assert_eq!(suite.summary(), ("1 passed, 0 failed".into(), true));
    }

    #[test]
    fn cases_left_out_run_only_when_a_filter_names_them() {
        let progress = Progress::new();
        let suite = |filter: Option<&str>| {
            let filter = filter.map(str::to_owned);
            Suite::new(&progress, filter, vec!["a::long"], PathBuf::new())
        };
        assert!(suite(None).wants("a::short") && !suite(None).wants("a::long"));
        assert!(suite(Some("a::")).wants("a::long"));
    }

    #[test]
    fn cases_that_did_not_run_fail() {
        let progress = Progress::new();
        let mut suite = Suite::new(&progress, None, Vec::new(), PathBuf::new());
        suite.close(&["a::x", "a::y"], Some(&anyhow::anyhow!("boot failed")));
        suite.close(&["b::forgotten"], None);
        assert_eq!(suite.summary(), ("0 passed, 3 failed".into(), false));
    }

    #[test]
    fn nothing_run_is_a_failure() {
        let progress = Progress::new();
        assert!(
            !Suite::new(&progress, None, Vec::new(), PathBuf::new())
                .summary()
                .1
        );
    }
}
