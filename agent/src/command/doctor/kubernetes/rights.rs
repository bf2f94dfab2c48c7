//! RBAC: the agent names a right when it is refused; this names all of them at once, also those that it seldom needs.

use super::{not_checked, survey};
use crate::command::doctor::{Context, Finding, Outcome, Severity};

pub(super) const NAME: &str = "kube-rights";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let missing = survey(context).missing_rights().await;
    let missing = missing.map_err(not_checked)?;
    let finding = |right: &crate::cluster::lease::kube::Right| {
        let (resource, verb) = (right.resource, right.verb);
        let (severity, role, why) = match resource {
            "events" => (
                Severity::Warning,
                "the Role flannel in the namespace default: kubectl -n default edit role flannel",
                "faults of this node are not shown as events by kubectl describe node; flannel's ClusterRole has no such right",
            ),
            _ => (
                Severity::Error,
                "the ClusterRole: kubectl edit clusterrole flannel",
                "without it the agent learns of no peers, or cannot publish this node",
            ),
        };
        Finding::new(
            NAME,
            severity,
            resource,
            format!("the agent may not {verb} {resource}"),
            why,
            vec![
                format!("add the verb {verb} for {resource} to {role}"),
                "or apply the manifest again: kubectl apply -f selvage.yaml".to_owned(),
            ],
        )
    };
    Ok(missing.iter().map(finding).collect())
}
