//! flannel's flags and variables: which of them our manifest has, which must be carried over, and which mean nothing.

use super::daemon::{Daemon, Made};
use super::kubectl::MANIFEST;
use super::{Flag, Judgement};
use crate::base::go_json::shorten;
use crate::command::doctor::sample;
use crate::flannel::flanneld::listed::{self, CommandLine, Listed};

/// The name of these checks.
pub(super) const CHECK: &str = "migrate-flags";

/// What our manifest gives the agent.
const OURS: [(&str, &str); 4] = [
    ("ip-masq", "true"),
    ("kube-subnet-mgr", "true"),
    ("healthz-ip", "127.0.0.1"),
    ("healthz-port", "8081"),
];

/// Variables of flannel's manifest that ours has no use for.
const REPLACED: [&str; 4] = [
    "CONT_WHEN_CACHE_NOT_READY",
    "EVENT_QUEUE_DEPTH",
    "POD_NAME",
    "POD_NAMESPACE",
];

/// Variables that count though they set no flag.
const CARRIED: [&str; 3] = [
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "WIREGUARD_KEY_FILE",
];

/// Flags whose value is a file or directory that the pod must have.
const FILES: [&str; 3] = ["kubeconfig-file", "net-config-path", "subnet-file"];

/// A flag with the variable that sets it, if one does.
struct Given {
    flag: Listed,
    variable: Option<String>,
}

/// The flags of a DaemonSet's agent. Those of the command line win, so that a variable of the same flag is left out.
fn given(daemon: &Daemon, line: &CommandLine) -> Vec<Given> {
    let flags = line.flags.iter().map(|flag| Given {
        flag: flag.clone(),
        variable: None,
    });
    let of_variable = |variable: &super::daemon::Variable| {
        let from = "$(a field or an object)".to_owned();
        let value = variable.value.clone().unwrap_or(from);
        let flag = listed::of_variable(&variable.name, &value).filter(|_| !value.is_empty())?;
        let variable = Some(variable.name.clone());
        line.last(&flag.name)
            .is_none()
            .then_some(Given { flag, variable })
    };
    flags
        .chain(daemon.variables().iter().filter_map(of_variable))
        .collect()
}

/// As in the report. Values of what has no effect are left out: one may be a password.
pub(super) fn shown(daemon: &Daemon) -> Vec<Flag> {
    let given = given(daemon, &daemon.agent.command_line());
    let flag = |given: &Given| {
        let counts = counts(given);
        Flag {
            flag: match (&given.variable, counts) {
                (_, false) => format!("--{}", given.flag.name),
                (None, true) => shorten(&given.flag.argument()),
                (Some(name), true) => shorten(&format!("{name}={}", given.flag.value)),
            },
            meaning: given.flag.meaning.map(|meaning| meaning.help.to_owned()),
            has_effect: given.flag.meaning.map(|_| counts),
        }
    };
    given.iter().map(flag).collect()
}

/// Looks at the flags of flannel, and returns what must be written into our manifest.
pub(super) fn judge(daemon: &Daemon, judgement: &mut Judgement) -> Vec<String> {
    let shown = daemon.shown();
    if daemon.agent.is_script() {
        judgement.warn(
            CHECK,
            &shown,
            format!("{shown} starts flanneld by a script, whose flags cannot be told"),
            "the manifest's arguments come in its place, and what it does besides is not done any more",
            vec![format!("write the flags that it gives into args of the container kube-flannel in {MANIFEST}")],
        );
    }
    let line = daemon.agent.command_line();
    let given = given(daemon, &line);
    judge_unknown(&shown, &line, &given, judgement);
    judge_idle(&given, judgement);
    judge_health(&given, judgement);
    judge_variables(daemon, judgement);
    let edits = edits(daemon, &given);
    // A release's values give the same to our chart.
    if matches!(daemon.made, Made::Helm { .. }) || edits.is_empty() {
        return Vec::new();
    }
    let what = format!("{shown} has settings that our manifest lacks");
    let why = "the manifest's arguments and variables come in the place of flannel's";
    let place = format!("in {MANIFEST}, container kube-flannel");
    let remedy = edits.iter().map(|edit| format!("{place}: {edit}"));
    judgement.warn(CHECK, &shown, what, why, remedy.collect());
    edits
}

/// Whether the nodes' annotations were looked for where flannel writes them.
pub(super) fn judge_prefix(daemon: &Daemon, prefix: &str, judgement: &mut Judgement) {
    let given = given(daemon, &daemon.agent.command_line());
    let mut given = given.iter().map(|given| &given.flag);
    let Some(flag) = given.rfind(|flag| flag.name == "kube-annotation-prefix") else {
        return;
    };
    let bare = |text: &str| text.trim_end_matches(['/', '-']).to_owned();
    if bare(&flag.value) != bare(prefix) {
        let theirs = shorten(&flag.value);
        judgement.warn(
            CHECK,
            daemon.shown(),
            format!(
                "flannel's annotations begin with {theirs}, and those with {prefix} were looked for"
            ),
            "so nodes seem to have none, or another backend",
            vec![format!(
                "call this again with --kube-annotation-prefix={theirs}"
            )],
        );
    }
}

/// What must be written into our manifest.
fn edits(daemon: &Daemon, given: &[Given]) -> Vec<String> {
    let mut edits = Vec::new();
    let is_masquerading = given
        .iter()
        .any(|given| given.flag.name == "ip-masq" && given.flag.value != "false");
    if !is_masquerading && !daemon.agent.is_script() {
        edits.push("take --ip-masq out of args: flannel does not masquerade here".to_owned());
    }
    let carried = given.iter().filter(|given| counts(given) && differs(given));
    for given in carried {
        edits.extend(edits_for(given, daemon));
    }
    for name in CARRIED {
        if daemon.agent.variable(name).is_some() {
            edits.push(format!("add to env what flannel has: {name}"));
        }
    }
    edits
}

/// Flags that mean nothing here.
fn judge_idle(given: &[Given], judgement: &mut Judgement) {
    let idle = given.iter().filter(|given| !counts(given));
    let mut idle: Vec<_> = idle.map(|given| format!("--{}", given.flag.name)).collect();
    idle.dedup();
    if !idle.is_empty() {
        judgement.changes.push(format!(
            "{} of flannel's, without effect here, {} left out",
            idle.join(", "),
            if idle.len() == 1 { "is" } else { "are" }
        ));
    }
}

/// Whether a flag means something on a node of Kubernetes.
fn counts(given: &Given) -> bool {
    given.flag.meaning.is_none_or(|meaning| meaning.counts)
}

/// Whether a flag is neither what our manifest has nor what holds anyway.
fn differs(given: &Given) -> bool {
    let (name, value) = (given.flag.name.as_str(), given.flag.value.as_str());
    let ours = OURS.iter().find(|(ours, _)| *ours == name);
    match ours {
        // What else there is to say of it is said elsewhere.
        Some((ours, _)) if *ours != "healthz-port" => false,
        Some((_, port)) => value != *port && value != "0",
        None => given.flag.meaning.is_some() && !given.flag.is_default(),
    }
}

/// What must be written for a flag.
fn edits_for(given: &Given, daemon: &Daemon) -> Vec<String> {
    let flag = &given.flag;
    let help = flag.meaning.map_or("", |meaning| meaning.help);
    let mut edits = match &given.variable {
        None => vec![format!(
            "add to args: {} ({help})",
            shorten(&flag.argument())
        )],
        Some(name) => vec![format!("add to env what flannel has: {name} ({help})")],
    };
    if flag.name == "healthz-port" {
        edits[0].push_str(", in place of --healthz-port=8081, and to containerPort");
    }
    for variable in &daemon.agent.variables {
        if given.variable.is_none() && flag.value.contains(&format!("$({})", variable.name)) {
            edits.push(format!(
                "add to env what flannel has: {}, for {}",
                shorten(&variable.name),
                shorten(&flag.argument())
            ));
        }
    }
    let is_missing = FILES.contains(&flag.name.as_str()) && !is_mounted_by_ours(&flag.value);
    if is_missing {
        edits.push(format!(
            "mount into the container what flannel has: {}",
            shorten(&flag.value)
        ));
    }
    edits
}

/// Whether our manifest's containers have a file.
fn is_mounted_by_ours(path: &str) -> bool {
    ["/run/flannel/", "/etc/kube-flannel/"]
        .iter()
        .any(|directory| path.starts_with(directory))
}

fn judge_unknown(shown: &str, line: &CommandLine, given: &[Given], judgement: &mut Judgement) {
    let unknown = given.iter().filter(|given| given.flag.meaning.is_none());
    let unknown: Vec<_> = unknown.map(|given| given.flag.name.as_str()).collect();
    if !unknown.is_empty() {
        judgement.warn(
            CHECK,
            shown,
            format!(
                "{shown} has flags that are not known here: {}",
                sample(&unknown)
            ),
            "neither flannel v0.28.9 nor this agent has them: it would end with status 2",
            vec!["find out what they are for, and leave them out".to_owned()],
        );
    }
    for given in given {
        if let Some(expected) = given.flag.fault {
            judgement.warn(
                CHECK,
                shown,
                format!("{shown} has {}, which is not {expected}", shorten(&given.flag.argument())),
                "flannel ends at once because of it, or takes the default; the agent ends with status 2",
                vec!["correct it, or leave it out".to_owned()],
            );
        }
    }
    if let Some(argument) = &line.unread {
        judgement.warn(
            CHECK,
            shown,
            format!("flanneld in {shown} reads no argument from {argument:?} on, because that is no flag"),
            "what follows has no effect now; written as flags it would have one",
            vec!["a switch needs its value after =, as in --ip-masq=false".to_owned()],
        );
    }
}

/// Who may read the health endpoints: all of the node's neighbors with flannel, the node itself with ours.
fn judge_health(given: &[Given], judgement: &mut Judgement) {
    let value = |name: &str| {
        let mut found = given.iter().rev().filter(|given| given.flag.name == name);
        found.next().map(|given| given.flag.value.as_str())
    };
    judgement.changes.push(match value("healthz-port") {
        None | Some("0") => {
            "/healthz, /readyz and /metrics are answered on 127.0.0.1:8081, where flannel answers nothing".to_owned()
        }
        Some(port) => {
            let address = value("healthz-ip").unwrap_or("0.0.0.0");
            if address == "127.0.0.1" {
                return;
            }
            format!(
                "/healthz and /readyz are answered on 127.0.0.1 alone, and no more on {}:{}: where something else asks them, write --healthz-ip={} and take host out of the probes",
                shorten(address),
                shorten(port),
                shorten(address)
            )
        }
    });
}

fn judge_variables(daemon: &Daemon, judgement: &mut Judgement) {
    let has = |name: &&&str| daemon.agent.variable(name).is_some();
    let replaced: Vec<_> = REPLACED.iter().filter(has).copied().collect();
    if !replaced.is_empty() {
        judgement.changes.push(format!(
            "the variables {} go, NODE_NAME comes: the node's name is given, not looked up",
            replaced.join(", ")
        ));
    }
}
