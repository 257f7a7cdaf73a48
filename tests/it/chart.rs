//! The Helm chart in `deploy/chart/`: lint, golden files, the API schemas of Kubernetes, and refused values.

use crate::support::{or_skip, python};

#[test]
fn the_chart_renders_what_kubernetes_accepts_and_refuses_wrong_values() {
    let python = or_skip!(python::with_helm());
    let checked =
        python::run_script(&python, "deploy.py", &[]).unwrap_or_else(|said| panic!("{said}"));
    let count = |name: &str| checked[name].as_u64().unwrap_or_default();
    assert!(count("configurations") >= 5, "{checked}");
    assert!(count("versions") >= 3, "{checked}");
    assert!(count("refused") >= 10, "{checked}");
}
