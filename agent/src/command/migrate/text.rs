//! The report for people.

use std::io::{self, Write};

use super::{DaemonSet, Report, nodes};
use crate::base::go_json::shorten;
use crate::base::terminal::Style;
use crate::base::words::harmless;
use crate::command::doctor;

/// Prints the cluster, what will change, what stands in the way, and the steps.
pub(super) fn print(report: &Report, style: Style, output: &mut impl Write) -> io::Result<()> {
    print_cluster(report, output)?;
    for (title, lines) in [
        ("Will change", &report.changes),
        ("Pods notice", &report.pods),
    ] {
        if !lines.is_empty() {
            writeln!(output, "\n{}", style.bold(title))?;
        }
        for line in lines {
            writeln!(output, "* {}", harmless(line))?;
        }
    }
    if !report.findings.is_empty() {
        writeln!(output)?;
    }
    doctor::print_findings(&report.findings, style, output)?;
    if !report.steps.is_empty() {
        if report.findings.is_empty() {
            writeln!(output)?;
        }
        writeln!(output, "{}", style.bold("Steps"))?;
    }
    for (number, step) in report.steps.iter().enumerate() {
        writeln!(output, "{}. {}", number + 1, harmless(&step.what))?;
        for line in &step.how {
            writeln!(output, "   {}", harmless(line))?;
        }
    }
    doctor::print_unchecked(&report.unchecked, output)
}

fn print_cluster(report: &Report, output: &mut impl Write) -> io::Result<()> {
    let server = report.server.as_deref().map_or("unknown".into(), shorten);
    writeln!(output, "Server     {}", harmless(&server))?;
    for set in &report.daemon_sets {
        print_daemon_set(set, output)?;
    }
    if let Some(network) = &report.network {
        let networks = network.networks.join(", ");
        writeln!(
            output,
            "Network    {networks}, backend {}",
            harmless(&shorten(&network.backend))
        )?;
    }
    let all = &report.nodes;
    let platforms = nodes::counted(all, |node| format!("{}/{}", node.facts.os, node.facts.arch));
    writeln!(output, "Nodes      {}: {}", all.len(), harmless(&platforms))?;
    for (title, value) in [
        (
            "Kernels",
            (|node| node.facts.kernel.clone()) as fn(&super::Node) -> String,
        ),
        ("Kubelets", |node| node.facts.kubelet.clone()),
        ("Runtimes", |node| node.facts.runtime.clone()),
    ] {
        let counted = nodes::counted(all, value);
        writeln!(output, "{title:9}  {}", harmless(&counted))?;
    }
    Ok(())
}

/// The DaemonSet with its flags and what they mean.
fn print_daemon_set(set: &DaemonSet, output: &mut impl Write) -> io::Result<()> {
    let DaemonSet {
        program,
        desired,
        ready,
        ..
    } = set;
    let texts = [&set.namespace, &set.name, &set.image].map(|text| shorten(text));
    let [namespace, name, image] = texts;
    let line =
        format!("{program:9}  {namespace}/{name}, {image}, ready on {ready} of {desired} nodes");
    writeln!(output, "{}", harmless(&line))?;
    for flag in &set.flags {
        let meaning = match (&flag.meaning, flag.has_effect) {
            (Some(_), Some(false)) => "no effect here",
            (Some(meaning), _) => meaning,
            (None, _) => "not known here",
        };
        let line = format!("           {}: {meaning}", flag.flag);
        writeln!(output, "{}", harmless(&line))?;
    }
    Ok(())
}
