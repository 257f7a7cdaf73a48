"""A pytest plugin for upstream's server tests: a hub on this machine, time limits, and outcomes in a file.

Upstream's files stay unchanged. Their servers download models from the hub that MODEL_ENDPOINT names. This hub is a thread of
this process, which serves the folder UPSTREAM_TESTS_HUB. It also gets the requests for files on other machines, so a missing
file fails at once. The plugin writes the outcome of each test as a line of JSON to the file UPSTREAM_TESTS_OUTCOMES.
"""

import hashlib
import json
import os
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
import wget

HUB = Path(os.environ["UPSTREAM_TESTS_HUB"])
# Shorter than the limit of a test, so that a thread that waits for an answer does not outlive its test.
REQUEST_SECONDS = float(os.environ["UPSTREAM_TESTS_REQUEST_SECONDS"])
REMOTE = "https://"


class Hub(SimpleHTTPRequestHandler):
    """Serves the requests of llama.cpp: the commit of a repository, its files, their contents."""

    # HTTP/1.1 keeps a connection for the next request, and the server expects this.
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body: bool):
        status, kind, body = look_up(self.path.split("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{object_id(body)}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def look_up(path: str) -> tuple[int, str, bytes]:
    match path.strip("/").split("/"):
        case ["api", "models", owner, name, "refs"] if (HUB / owner / name).is_dir():
            branch = {"name": "main", "targetCommit": object_id(f"{owner}/{name}".encode())}
            return json_answer({"branches": [branch]})
        case ["api", "models", owner, name, "tree", _commit] if (HUB / owner / name).is_dir():
            return json_answer([entry(file, HUB / owner / name) for file in files(HUB / owner / name)])
        # Links to files contain the host of the public hub.
        case ["huggingface.co", *rest] | rest:
            match rest:
                case [owner, name, "resolve", _commit, *parts] if (HUB / owner / name).joinpath(*parts).is_file():
                    return 200, "application/octet-stream", (HUB / owner / name).joinpath(*parts).read_bytes()
    return 404, "text/plain", b"not found\n"


def json_answer(value) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(value).encode()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entry(file: Path, folder: Path) -> dict:
    content = file.read_bytes()
    return {
        "type": "file",
        "path": file.relative_to(folder).as_posix(),
        "size": len(content),
        "oid": object_id(content),
    }


def object_id(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def start_hub() -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


ENDPOINT = start_hub()


def localized(value):
    """Returns the value, with links to this hub instead of links to other machines."""
    match value:
        case str() if value.startswith(REMOTE):
            return ENDPOINT + value.removeprefix(REMOTE)
        case dict():
            return {key: localized(item) for key, item in value.items()}
        case list():
            return [localized(item) for item in value]
    return value


# Upstream compares the text of /metrics before and during sleep. Only our gauges change, because a sleeping server holds no pages.
# So upstream's tests get only upstream's lines, and tests/it/client.rs tests the gauges.
OUR_GAUGES = re.compile(rb"^(# (HELP|TYPE) )?llamacpp:hugepages_.*\n", re.MULTILINE)

plain_request = requests.Session.request


def local_request(self, method, url, **arguments):
    if "json" in arguments:
        arguments["json"] = localized(arguments["json"])
    wanted = arguments.get("timeout")
    if wanted is None or wanted > REQUEST_SECONDS:
        arguments["timeout"] = REQUEST_SECONDS
    response = plain_request(self, method, localized(url), **arguments)
    if url.endswith("/metrics"):
        response._content = OUR_GAUGES.sub(b"", response.content)
    return response


plain_download = wget.download


def local_download(url, out=None, bar=None):
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    return plain_download(localized(url), out=out, bar=None)


def pytest_configure(config):
    os.environ["MODEL_ENDPOINT"] = ENDPOINT
    requests.Session.request = local_request
    wget.download = local_download


OUTCOMES = open(os.environ["UPSTREAM_TESTS_OUTCOMES"], "w", encoding="utf-8")
# A server logs this line when its models are loaded.
REPORT = re.compile(r"hugepages: ([0-9.]+) of ([0-9.]+) MiB on huge pages")
SEVERITY = ["passed", "xpassed", "skipped", "xfailed", "failed", "error"]
found: dict[str, dict] = {}


def pytest_runtest_logreport(report):
    """Records the outcome of a test: the worst outcome of its three parts."""
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if outcome == "skipped" else "xpassed"
    elif outcome == "failed" and report.when != "call":
        outcome = "error"
    fresh = {"test": report.nodeid, "outcome": outcome, "said": "", "seconds": 0.0, "huge_mib": 0.0, "all_mib": 0.0}
    test = found.setdefault(report.nodeid, fresh)
    test["seconds"] += report.duration
    if SEVERITY.index(outcome) >= SEVERITY.index(test["outcome"]):
        test["outcome"] = outcome
        test["said"] = reason(report)
    if report.when == "teardown":
        # The last part of a test contains the captured output of all parts.
        for huge, all_of_it in REPORT.findall(report.capstdout):
            test["huge_mib"] += float(huge)
            test["all_mib"] += float(all_of_it)
        OUTCOMES.write(json.dumps(found.pop(report.nodeid)) + "\n")
        OUTCOMES.flush()


def reason(report) -> str:
    """One line: the place and the reason of the failure."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return str(report.longrepr or "").strip().split("\n")[-1]
    return f"{Path(crash.path).name}:{crash.lineno}: {crash.message.splitlines()[0] if crash.message else ''}"
