"""Lints and renders the Helm chart, compares with tests/deploy/golden/, validates, and prints JSON: the counts.

Each file in tests/deploy/values/ is one configuration. LLAMA_HUGEPAGES_UPDATE_SNAPSHOTS=1 writes the golden files instead: review the
diff. The packages are those of tests/deploy/requirements.txt.

usage: deploy.py
"""

import copy
import difflib
import json
import os
import pathlib
import re
import sys

import helm_python as helm
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/chart"
HERE = ROOT / "tests/deploy"
KUBERNETES = ["1.25", "1.28", "1.31", "1.34", "1.37"]
# An operator defines it, so the API schemas lack it.
NOT_KUBERNETES = {"ServiceMonitor"}
LINT_WARNING = 2

# Base configuration, changes as (path, value), and what the refusal names.
REFUSED = [
    ("node-store", [("modell", "a.gguf")], "modell"),
    ("node-store", [("server.replica", 2)], "replica"),
    ("node-store", [("mode", "daemon-set")], "mode"),
    ("node-store", [("models", {})], "models is empty"),
    ("node-store", [("models.claim", "models")], "models"),
    ("node-store", [("models.hostPath", "srv/models")], "hostPath"),
    ("node-store", [("models.hostPath", "/srv/../etc")], "hostPath"),
    ("node-store", [("model", "")], "needs model"),
    ("node-store", [("model", "/srv/models/a.gguf")], "model"),
    ("node-store", [("model", "../a.gguf")], "model"),
    ("node-store", [("plan", {})], "plan.loader is missing"),
    ("node-store", [("plan.server", None)], "plan.server is missing"),
    ("node-store", [("plan.servers", {})], "servers"),
    ("node-store", [("plan.loader.hugepages-2Mi", "101Mi")], "hugepages-2Mi"),
    ("node-store", [("plan.loader.hugepages-2Mi", "0Mi")], "hugepages-2Mi"),
    ("node-store", [("plan.loader.hugepages-2Mi", "104857600")], "hugepages-2Mi"),
    ("node-store", [("plan.loader.hugepages-2Mi", 102)], "hugepages-2Mi"),
    ("node-store", [("plan.loader.hugepages-64Ki", "64Ki")], "hugepages-64Ki"),
    ("node-store", [("plan.loader.memory", "64M")], "memory"),
    ("node-store", [("plan.loader.memory", None)], "memory"),
    ("node-store", [("plan.server", {"memory": "128Mi"})], "server"),
    ("node-store", [("store.pageSize", "1Gi")], "plan.loader lacks hugepages-1Gi"),
    ("node-store", [("store.pageSize", "4Mi")], "pageSize"),
    ("node-store", [("loader.enabled", False)], "store.path"),
    ("node-store", [("server.replicas", -1)], "replicas"),
    ("node-store", [("server.cpu", "0")], "cpu"),
    ("node-store", [("service.port", 70000)], "port"),
    ("node-store", [("user", 0)], "user"),
    ("node-store", [("seccomp.localhostProfile", "/etc/profile.json")], "localhostProfile"),
    ("node-store", [("metrics", {"enabled": False, "serviceMonitor": True})], "metrics.enabled"),
    ("node-store", [("networkPolicy.from", [{"pods": {}}])], "from"),
    ("node-store", [("rpc", {"replicas": 2, "limits": {"hugepages-2Mi": "2Mi", "memory": "1Gi"}})], "one-pod"),
    ("node-store-1gi", [("plan.loader.hugepages-1Gi", "1500Mi")], "hugepages-1Gi of loader"),
    ("one-pod", [("server.replicas", 2)], "replicas 2"),
    ("one-pod", [("plan.alone", None)], "plan.alone is missing"),
    ("router", [("model", "a.gguf")], "remove model"),
    ("router", [("metrics.serviceMonitor", True)], "router"),
    ("rpc", [("rpc.limits", None)], "rpc.limits is missing"),
]


def configuration(name):
    return yaml.safe_load((HERE / "values" / f"{name}.yaml").read_text())


def changed(values, changes):
    values = copy.deepcopy(values)
    for path, value in changes:
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return values


def render(chart, values):
    """The manifests as one text, and the notes."""
    files = chart.render(values, name="demo", namespace="models", is_install=True)
    notes = next(text for name, text in files.items() if name.endswith("/NOTES.txt"))
    manifests = [
        f"---\n# {name.removeprefix('llama-hugepages/')}\n{text.strip()}\n"
        for name, text in sorted(files.items())
        if name.endswith(".yaml") and text.strip()
    ]
    return "".join(manifests), notes.strip() + "\n"


def differences(name, text):
    path = HERE / "golden" / name
    if os.environ.get("LLAMA_HUGEPAGES_UPDATE_SNAPSHOTS") == "1":
        path.write_text(text)
        return []
    expected = path.read_text() if path.exists() else ""
    diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
    return list(diff)


def refusal_of(resource, version):
    """Why Kubernetes refuses a resource."""
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(step) for step in error.path)
        return f"Kubernetes {version}: {resource['kind']}: {path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        if resource["kind"] not in NOT_KUBERNETES:
            return error.message
    return None


def faults_of(resource):
    """What the API accepts, and this chart must not contain."""
    if resource["kind"] not in {"DaemonSet", "Deployment", "StatefulSet"}:
        return
    pod = resource["spec"]["template"]["spec"]
    name = resource["metadata"]["name"]
    if not pod["securityContext"]["runAsNonRoot"]:
        yield f"{name} runs as root"
    sources = {volume["name"]: set(volume) - {"name"} for volume in pod.get("volumes", [])}
    for volume, kinds in sources.items():
        if len(kinds) != 1:
            yield f"{name}: volume {volume} has the sources {sorted(kinds)}"
    for container in pod.get("initContainers", []) + pod["containers"]:
        where = f"{name}: {container['name']}"
        resources, security = container["resources"], container["securityContext"]
        if resources["limits"] != resources["requests"]:
            yield f"{where}: requests differ from limits"
        if "memory" not in resources["limits"]:
            yield f"{where}: no limit for memory"
        if not security["readOnlyRootFilesystem"]:
            yield f"{where}: writable root file system"
        if container["name"] != "mount" and security["capabilities"]["drop"] != ["ALL"]:
            yield f"{where}: has capabilities"
        if security.get("privileged", False) != (container["name"] == "mount"):
            yield f"{where}: privileged"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in sources:
                yield f"{where}: no volume {mount['name']}"
            if mount["name"] == "models" and not mount["readOnly"]:
                yield f"{where}: writable models"


def check_refusals(chart):
    for base, changes, named in REFUSED:
        values = changed(configuration(base), changes)
        try:
            render(chart, values)
        except helm.HelmError as error:
            if named not in str(error):
                yield f"{base} with {changes} is refused, but not because of `{named}`: {error}"
        else:
            yield f"{base} with {changes} is not refused"


def check_version(chart):
    manifest = (ROOT / "Cargo.toml").read_text()
    version = re.search(r'^version = "(.*)"', manifest, re.MULTILINE).group(1)
    if chart.metadata["appVersion"] != version:
        yield f"appVersion {chart.metadata['appVersion']}, but the workspace has version {version}"


def check_seccomp():
    profile = json.loads((CHART / "files/seccomp.json").read_text())
    allowed = [name for rule in profile["syscalls"] for name in rule["names"]]
    for call in ["cachestat", "clone", "get_mempolicy", "mbind", "memfd_create", "move_pages", "set_mempolicy"]:
        if call not in allowed:
            yield f"seccomp.json forbids {call}"
    for call in ["mount", "ptrace", "setns", "unshare", "clone3"]:
        if call in allowed:
            yield f"seccomp.json allows {call}"


def check_configuration(chart, name):
    values = configuration(name)
    for message in helm.lint(CHART, values, strict=True)["messages"]:
        if message["severity"] >= LINT_WARNING:
            yield f"{name}: {message['path']}: {message['error']}"
    manifests, notes = render(chart, values)
    yield from differences(f"{name}.yaml", manifests)
    yield from differences(f"{name}.notes.txt", notes)
    for resource in yaml.safe_load_all(manifests):
        yield from (f"{name}: {fault}" for fault in faults_of(resource))
        for version in KUBERNETES:
            refusal = refusal_of(resource, version)
            if refusal:
                yield f"{name}: {refusal}"
    # A test of the test.
    resource["spec"]["colour"] = "red"
    if resource["kind"] not in NOT_KUBERNETES and not refusal_of(resource, KUBERNETES[0]):
        yield f"{name}: a wrong field is not found"


names = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
errors = []
with helm.Chart.load(CHART) as chart:
    for name in names:
        errors += check_configuration(chart, name)
    errors += check_refusals(chart)
    errors += check_version(chart)
errors += check_seccomp()
if errors:
    sys.exit("\n".join(errors))
print(json.dumps({"configurations": len(names), "refused": len(REFUSED), "versions": len(KUBERNETES)}))
