//! What puts the agent into a Kubernetes cluster: `units/kubernetes`. The chart is the source; `selvage.yaml` is what
//! it renders to with its own values, and the kustomization has that.
//!
//! | module | what it is about |
//! |---|---|
//! | `chart` | the chart, rendered as Helm does it |
//! | `objects` | the objects are Kubernetes' own, and ask for no more rights than they need |
//! | `values` | values of flannel's chart, by people who use it |
//! | `server` | as much of an API server as kubectl asks |
//! | `programs` | what kubectl, kustomize and Helm say, and the image and agent that the objects name |

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

mod chart;
mod objects;
mod programs;
mod server;
mod values;

/// Over the manifest's own text.
const HEADER: &str = "\
# Selvage as the pod network of a Kubernetes cluster, under the names of flannel's manifest, over which it applies.
#
# Made from chart/ by `make manifests`. agent/docs/kubernetes.md says how to install it. What must fit your cluster:
# `Network` in the ConfigMap, which is --cluster-cidr of kube-controller-manager, and the name of the image, which
# kustomization.yaml has in one place.
";

/// A file of `units/kubernetes`.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../units/kubernetes")
        .join(name)
}

fn read(name: &str) -> String {
    let path = path(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_manifest_is_what_the_chart_renders_to() {
    let rendered = chart::render("createNamespace: true").expect("the chart's own values");
    let manifest = format!("{HEADER}---\n{rendered}");
    if env::var_os("UPDATE").is_some() {
        fs::write(path("selvage.yaml"), &manifest).expect("a file");
    }
    assert!(
        manifest == read("selvage.yaml"),
        "units/kubernetes/selvage.yaml is not what the chart renders to: `make manifests` writes it anew"
    );
}
