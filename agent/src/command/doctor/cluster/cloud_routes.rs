//! Whether the cloud provider routes this node's subnet to this instance.

use super::{Check, of_status};
use crate::command::doctor::{Finding, Names, Severity};
use crate::telemetry::status::{Cause, Cloud, Code, Status, TaskName};

const NAME: &str = "cloud-routes";

/// Routes of the provider that are missing or lead elsewhere, and what keeps the agent from changing that.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "routes of the cloud provider that are missing or lead elsewhere",
    run: |context| of_status(context, |status| find(status, &context.names)),
};

fn find(status: &Status, names: &Names) -> Vec<Finding> {
    let Some(cloud) = &status.cloud else {
        return Vec::new();
    };
    let is_ready = status.cause(TaskName::CloudRoutes).is_none();
    let mut findings: Vec<Finding> = (cloud.causes.iter())
        .map(|cause| finding(cause, cloud, is_ready, names))
        .collect();
    // A pass that is under way says nothing yet.
    let unseen = cloud.tables.iter().filter(|table| !table.complete);
    if findings.is_empty() && cloud.settled_time.is_none() {
        findings.extend(unseen.map(|table| Finding::new(
            NAME,
            Severity::Warning,
            &table.id,
            format!("{} does not show this node's route yet", table.id),
            "the provider accepted the change; until it shows, peers may not reach this node's containers",
            vec!["run the doctor again in a minute".to_owned()],
        )));
    }
    findings
}

fn finding(cause: &Cause, cloud: &Cloud, is_ready: bool, names: &Names) -> Finding {
    let (why, remedy) = explain(cause, cloud, names);
    Finding {
        check: NAME.to_owned(),
        // What was seen stays in force while the provider does not answer.
        severity: if is_ready {
            Severity::Warning
        } else {
            Severity::Error
        },
        subject: cause.object.clone(),
        peers: Vec::new(),
        what: format!("{}: {}", cloud.provider, cause.text),
        why: why.to_owned(),
        remedy,
    }
}

/// The effect and cause, and the remedies.
fn explain(cause: &Cause, cloud: &Cloud, names: &Names) -> (&'static str, Vec<String>) {
    let detail = cause.detail.as_deref().unwrap_or_default();
    let restart = names.systemctl("restart");
    match cause.code {
        Code::CloudUnreachable => (
            "routes that are in the table stay in force, but a changed subnet is not followed",
            vec![
                format!(
                    "check that this host reaches the provider's API: {} -g cloud",
                    names.journal()
                ),
                format!(
                    "behind a private endpoint set cloud.api-url in {}, then {restart}",
                    names.settings_file
                ),
            ],
        ),
        Code::CloudThrottled => (
            "the provider takes no more calls of this account for now; the agent waits as long as it asks",
            vec!["see which other programs call the API that often".to_owned()],
        ),
        Code::CloudDenied => (
            "without this permission the agent cannot keep the route, and peers do not reach this node's containers",
            vec![format!(
                "allow {detail} for the role of this instance; agent/docs/clouds.md has the whole policy for {}",
                cloud.provider
            )],
        ),
        Code::CloudCredentials => (
            "the agent cannot ask the provider for anything",
            vec![
                "give the instance a role, or set cloud.credentials-file".to_owned(),
                "check the clock of this host: signatures are good for some minutes".to_owned(),
            ],
        ),
        Code::CloudQuota => (
            "the table has no room for this node's route: peers do not reach its containers",
            vec![
                format!("ask the provider to raise the quota {detail}"),
                "remove routes that nobody needs, or move some nodes to another backend, such as vxlan".to_owned(),
            ],
        ),
        Code::CloudRouteHeld => (
            "the agent does not touch routes of others: packets for this node's containers go elsewhere",
            vec![format!("if that route is left over, take it over: {detail}")],
        ),
        Code::CloudForwarding => (
            "the provider drops packets from and to this node's containers",
            vec![format!("as an administrator: {detail}")],
        ),
        _ => (
            "peers may not reach this node's containers; the agent tries again and again",
            vec![format!("see what happened: {} -b", names.journal())],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::names::tests::settings;
    use crate::telemetry::status::samples::{cloud, healthy};

    fn found(cloud: Option<Cloud>) -> Vec<Finding> {
        let status = Status { cloud, ..healthy() };
        find(&status, &Names::of(&settings(&[])))
    }

    fn with(code: Code, detail: &str) -> Cloud {
        let cause = Cause {
            detail: Some(detail.to_owned()),
            ..Cause::new(code, "no")
        };
        Cloud {
            causes: vec![cause],
            ..cloud()
        }
    }

    #[test]
    fn other_backends_and_complete_tables_are_no_fault() {
        assert_eq!(found(None), []);
        let mut settled = cloud();
        settled.causes.clear();
        assert_eq!(found(Some(settled.clone())), []);
        settled.settled_time = None;
        let findings = found(Some(settled));
        assert_eq!(findings.len(), 1);
        assert_eq!(
            findings[0].subject.as_deref(),
            Some("rtb-0a1b2c3d4e5f60719")
        );
    }

    #[test]
    fn every_cause_has_a_remedy_that_names_what_is_missing() {
        for (code, detail) in [
            (Code::CloudDenied, "ec2:CreateRoute"),
            (Code::CloudQuota, "Routes per route table"),
            (Code::CloudRouteHeld, "aws ec2 replace-route"),
            (Code::CloudForwarding, "--no-source-dest-check"),
        ] {
            let findings = found(Some(with(code, detail)));
            let remedy = findings[0].remedy.join("\n");
            assert!(remedy.contains(detail), "{code}: {remedy}");
        }
        for code in [
            Code::CloudUnreachable,
            Code::CloudThrottled,
            Code::CloudCredentials,
            Code::CloudSetup,
            Code::CloudRefused,
        ] {
            assert!(!found(Some(with(code, "")))[0].remedy.is_empty(), "{code}");
        }
    }

    #[test]
    fn it_is_an_error_only_if_the_agent_is_not_ready_for_it() {
        let mut status = healthy();
        status.cloud = Some(with(Code::CloudUnreachable, ""));
        let names = Names::of(&settings(&[]));
        assert_eq!(find(&status, &names)[0].severity, Severity::Warning);
        let cause = Cause::new(Code::CloudUnreachable, "no").of(TaskName::CloudRoutes);
        status.health.causes = vec![cause];
        assert_eq!(find(&status, &names)[0].severity, Severity::Error);
    }
}
