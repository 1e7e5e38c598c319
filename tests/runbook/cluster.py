"""A stand-in for a cluster behind the command `kubectl`.

The real kubectl runs what needs no cluster (`--local`, `--dry-run=client`). All other command lines are parsed, and
every name is compared with the manifests of deploy/k8s: namespace, kind, object, container, labels, ports, keys, and
for variables the configuration. Pod output is the log of the server that the tests started. An unknown name exits with
1 and a sentence.

Some commands work in a small quiet cluster and mislead in a large busy one: `logs -l` shows ten lines of each pod,
`delete -l` ends all pods. In a foreign runbook this is a remark; in ours (STAGE_STRICT) it is an error, and logs are
cut as kubectl cuts them. The image that a command sets is remembered, to be compared at the next `apply`.

Rejected: a server with enough of the Kubernetes API for kubectl. It would prove that kubectl works.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from core.settings.config import SETTINGS
from core.settings.environment import PLAIN

NOTES: Final = "STAGE_NOTES"  # a file that gets a line for each command: how it was judged
LOG: Final = "STAGE_LOG"  # the log of the live server
PID: Final = "STAGE_PID"  # its arbiter, process 1 of a container
CONFIG: Final = "STAGE_CONFIG"  # its configuration, /etc/mlsdm/config.yaml of a container
STRICT: Final = "STAGE_STRICT"  # set: what misleads is an error
BIN: Final = "STAGE_BIN"  # the folder of the words that mean something else, which is left to reach the real ones
IMAGES: Final = "STAGE_IMAGES"  # a file: which image runs, ran before, and stood in the file when it was last applied
POD: Final = "mlsdm-api-7d9c5b-x2x4k"
PROGRAMS: Final = {"mlsdm", "python3", "sh", "cat", "sleep"}  # in the image, of those that a runbook may want
SELECTED_LINES: Final = 10  # `kubectl logs --help`: of each pod, with a selector and without --tail
FOLLOWED_MAX: Final = 5  # the same: logs that `-f` follows at once, unless --max-log-requests says otherwise
TREE: Final = Path(__file__).resolve().parents[2]
MANIFEST: Final = Path("deploy/k8s/production-deployment.yaml")
OPERATORS: Final = {("ConfigMap", "mlsdm-config"), ("Secret", "mlsdm-secrets")}  # made by them, not by the manifests
KINDS: Final = {
    "deployments": "Deployment", "deployment": "Deployment", "pods": "Pod", "pod": "Pod", "svc": "Service",
    "hpa": "HorizontalPodAutoscaler", "configmap": "ConfigMap", "secret": "Secret", "events": "Event",
}  # fmt: skip
VARIABLES: Final = {
    "MLSDM_ENV", "CONFIG_PATH", "API_KEY", "DISABLE_RATE_LIMIT", *PLAIN,
    *(setting.variable for setting in SETTINGS.values()),
}  # fmt: skip
GRACE_SECONDS_MIN: Final = 24  # resources.shutdown_timeout of the manifests


def fail(sentence: str) -> NoReturn:
    """End with a sentence."""
    sys.exit(f"error: {sentence}")


def note(text: str) -> None:
    """Say how a command was judged."""
    with Path(os.environ[NOTES]).open("a", encoding="utf-8") as file:
        file.write(text + "\n")


class Manifests:
    """The objects of a manifest file."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            self.objects: list[dict[str, Any]] = [found for found in yaml.safe_load_all(file) if found]

    def find(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object by kind and name."""
        for found in self.objects:
            if (found["kind"], found["metadata"]["name"]) == (kind, name):
                return found
        if (kind, name) in OPERATORS:
            return {}
        fail(f'{kind} "{name}" not found')

    def namespace(self, name: str | None) -> None:
        """Require that a namespace was given, and that it is ours."""
        if name is None:
            fail("no namespace given: the default one has nothing of ours")
        self.find("Namespace", name)

    def pods(self, selector: str) -> None:
        """Require that a label selector finds the pods of a deployment."""
        key, _, value = selector.partition("=")
        templates = [found["spec"]["template"] for found in self.objects if found["kind"] == "Deployment"]
        if not any(template["metadata"]["labels"].get(key) == value for template in templates):
            fail(f"no pod is labelled {selector}")

    def named(self, word: str) -> dict[str, Any]:
        """Return what KIND/NAME stands for."""
        kind, _, name = word.partition("/")
        return self.find(_kind(kind), name)


def _kind(word: str) -> str:
    if word not in KINDS:
        fail(f'the server doesn\'t have a resource type "{word}"')
    return KINDS[word]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("verb")
    parser.add_argument("words", nargs="*")
    parser.add_argument("-n", "--namespace")
    parser.add_argument("-l", "--selector")
    parser.add_argument("-f", dest="file", nargs="?", const="")
    parser.add_argument("-o", "--output")
    parser.add_argument("-w", "--watch", action="store_true")
    parser.add_argument("--previous", action="store_true")
    parser.add_argument("--prefix", action="store_true")
    parser.add_argument("--max-log-requests", type=int, default=FOLLOWED_MAX)
    for option in ("--tail", "--replicas", "--grace-period"):
        parser.add_argument(option, type=int)
    for option in ("--sort-by", "--timeout", "--for", "--dry-run", "--from-file", "--from-literal"):
        parser.add_argument(option, action="append")
    return parser


class Kubectl:
    """One command line."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        end = words.index("--") if "--" in words else len(words)
        self.inside = words[end + 1 :]  # what is to be run in a container
        self.asked = _parser().parse_intermixed_args(words[:end])
        self.manifests = Manifests(MANIFEST)
        self.remarks: list[str] = []

    def run(self) -> None:
        """Judge it."""
        verb = self.asked.verb.replace("-", "_")
        judge: Callable[[], str] | None = getattr(self, verb, None)
        if judge is None:
            fail(f'unknown command "{self.asked.verb}"')
        if verb not in ("apply", "create"):
            self.manifests.namespace(self.asked.namespace)
        note(f"kubectl {self.asked.verb}: {'; but '.join([judge(), *self.remarks])}")

    def _misleads(self, sentence: str) -> None:
        """Say what becomes of this in a cluster that is larger or busier."""
        if STRICT in os.environ:
            fail(sentence)
        self.remarks.append(sentence)

    # -- files ---------------------------------------------------------------------------------------------------------

    def apply(self) -> str:
        """Objects from a file or from stdin: each must be one."""
        text = sys.stdin.read() if self.asked.file == "-" else Path(self.asked.file).read_text(encoding="utf-8")
        found = [document for document in yaml.safe_load_all(text) if document]
        for document in found:
            if not {"apiVersion", "kind", "metadata"} <= set(document):
                fail(f"{self.asked.file}: Object 'Kind' is missing in what starts with {text[:40]!r}")
            self._judge_object(document)
        names = [f"{document['kind']} {document['metadata']['name']}" for document in found]
        return f"every document is an object of the API: {', '.join(names)}"

    def _judge_object(self, document: dict[str, Any]) -> None:
        kind, name = document["kind"], document["metadata"]["name"]
        self.manifests.find(kind, name)
        if (kind, name) == ("ConfigMap", "mlsdm-config") and set(document["data"]) != {"config.yaml"}:
            fail(f"ConfigMap mlsdm-config has the keys {set(document['data'])}, pods read config.yaml")
        if (kind, name) == ("Secret", "mlsdm-secrets") and "API_KEY" not in {
            **document.get("data", {}), **document.get("stringData", {}),
        }:  # fmt: skip
            fail("Secret mlsdm-secrets has no API_KEY")
        if kind == "Deployment":
            self._apply_image(document)

    def _apply_image(self, deployment: dict[str, Any]) -> None:
        """What was changed in the cluster, and not in the file since, would be taken back, and every memory with it."""
        images, image = _images(), _image(deployment)
        if image == images["applied"] != images["live"]:
            self._misleads(f"this puts {image} in the place of {images['live']}")
        _roll_out(image, applied=image)

    def create(self) -> str:
        """With --dry-run=client kubectl needs no cluster."""
        assert self.asked.dry_run == ["client"], "nothing is created here"
        self.manifests.namespace(self.asked.namespace)
        sys.stdout.write(_real(self.words))
        return "run by kubectl, with --dry-run=client"

    def set(self) -> str:
        """Run by kubectl on the manifest instead of on the cluster, and then looked at."""
        what, target, *changes = self.asked.words
        deployment = self.manifests.named(target)
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        for change in changes:
            name, _, value = change.partition("=")
            if what == "image" and name != container["name"]:
                fail(f'unable to find container named "{name}"')
            if what == "image" and value.partition(":")[0] != container["image"].partition(":")[0]:
                fail(f"{value} is another image than {container['image']}")
            if what == "env" and name not in VARIABLES:
                fail(f"the service has no variable {name}")
        words = ["set", what, "--local", "-o", "yaml", "-f", "-", *changes]
        changed = yaml.safe_load(_real(words, yaml.safe_dump(deployment)))
        [container] = changed["spec"]["template"]["spec"]["containers"]
        for change in changes:
            name, _, value = change.partition("=")
            seen = (
                container["image"] if what == "image" else {e["name"]: e.get("value") for e in container["env"]}[name]
            )
            if seen != value:
                fail(f"{name} is {seen} after all")
        if what == "image":
            _roll_out(container["image"])
        return "run by kubectl on the manifest, with --local"

    # -- what only a cluster does: names are resolved ------------------------------------------------------------------

    def get(self) -> str:
        """Objects by kind, one of them by name."""
        kind = _kind(self.asked.words[0])
        if kind == "Pod" and self.asked.selector:
            self._pods([])
            if self.asked.output == "name":
                print(f"pod/{POD}")
        elif len(self.asked.words) == 2:
            self._print(kind, self.asked.words[1])
        elif kind not in ("Pod", "Event") and not any(found["kind"] == kind for found in self.manifests.objects):
            fail(f"there is no {kind} in the manifests")
        return "names resolved"

    def _print(self, kind: str, name: str) -> None:
        found = self.manifests.find(kind, name)
        if found and self.asked.output == "yaml":
            print(yaml.safe_dump(found))
        elif (kind, name) == ("ConfigMap", "mlsdm-config"):
            words = ["create", "configmap", name, "--from-file=config.yaml=config/production-ready.yaml"]
            print(_real([*words, "-n", self.asked.namespace, "--dry-run=client", "-o", "yaml"]))
        elif (kind, name) == ("Secret", "mlsdm-secrets"):
            words = ["create", "secret", "generic", name, "--from-literal=API_KEY=a-secret-of-some-length"]
            print(_real([*words, "-n", self.asked.namespace, "--dry-run=client", "-o", "yaml"]))

    def describe(self) -> str:
        """Pods, by label or name."""
        return self._pods(self.asked.words[1:])

    def logs(self) -> str:
        """What the live server has logged stands for what its pods have."""
        self._pods(self.asked.words)
        lines = Path(os.environ[LOG]).read_text(encoding="utf-8").splitlines()
        tail = -1 if self.asked.tail is None else self.asked.tail
        if self.asked.selector:
            tail = self._tail_of_selected(tail)
        shown = lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :]
        prefix = f"[pod/{POD}/mlsdm-api] " if self.asked.prefix else ""
        try:
            print("\n".join(prefix + line for line in shown), flush=True)
        except BrokenPipeError:  # whoever reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "names resolved; the lines are those of the live server"

    def _tail_of_selected(self, tail: int) -> int:
        """Return how many lines of each pod a selector shows."""
        autoscaler = next(found for found in self.manifests.objects if found["kind"] == "HorizontalPodAutoscaler")
        if self.asked.file is not None and self.asked.max_log_requests < (most := autoscaler["spec"]["maxReplicas"]):
            self._misleads(f"of {most} pods --max-log-requests={self.asked.max_log_requests} follows none")
        if self.asked.tail is None and STRICT in os.environ:
            return SELECTED_LINES
        if self.asked.tail is None:
            self.remarks.append(f"of a longer log kubectl shows the last {SELECTED_LINES} lines without --tail")
        return tail

    def exec(self) -> str:
        """Run in the container of a pod, without a shell: the live server stands for it."""
        self._pods(self.asked.words)
        if self.inside[0] not in PROGRAMS:
            fail(f'exec: "{self.inside[0]}": executable file not found in $PATH')
        words = [re.sub(r"(kill -[A-Z0-9]+) 1\b", rf"\1 {os.environ[PID]}", word) for word in self.inside]
        words = [os.environ[CONFIG] if word == "/etc/mlsdm/config.yaml" else word for word in words]
        if words[:2] == ["mlsdm", "stat"]:
            words += ["--pid", os.environ[PID]]
        if "--against" in words:
            words[words.index("--against") + 1] = os.environ[PID]
        if status := subprocess.run(words, check=False).returncode:
            sys.exit(status)
        return "names resolved; run beside the live server"

    def top(self) -> str:
        """Pods."""
        return self._pods(self.asked.words[1:], everything=True)

    def delete(self) -> str:
        """Pods, with enough time to end in order."""
        if self.asked.grace_period is not None and self.asked.grace_period < GRACE_SECONDS_MIN:
            fail(f"a pod needs {GRACE_SECONDS_MIN} s to end in order")
        if self.asked.selector:
            self._misleads("this ends every pod at once, whatever the PodDisruptionBudget says")
        return self._pods(self.asked.words[1:])

    def wait(self) -> str:
        """Pods, for a condition."""
        return self._pods(self.asked.words[1:])

    def _pods(self, names: list[str], everything: bool = False) -> str:
        if self.asked.selector:
            self.manifests.pods(self.asked.selector)
        elif not everything and not (names and names[0].removeprefix("pod/").startswith("mlsdm-api-")):
            fail(f"neither a label nor the name of a pod of ours: {names}")
        return "names resolved"

    def rollout(self) -> str:
        """Of a deployment."""
        if self.asked.words[0] not in ("status", "restart", "undo", "history"):
            fail(f"unknown command {self.asked.words[0]}")
        self.manifests.named(self.asked.words[1])
        if self.asked.words[0] == "undo":
            _roll_out(_images()["former"])
        return "names resolved"

    def scale(self) -> str:
        """Of a deployment, within the bounds of its autoscaler, which would undo it otherwise."""
        kind, _, name = "/".join(self.asked.words).partition("/")
        self.manifests.find(_kind(kind), name)
        bounds = next(found for found in self.manifests.objects if found["kind"] == "HorizontalPodAutoscaler")["spec"]
        if not bounds["minReplicas"] <= self.asked.replicas <= bounds["maxReplicas"]:
            fail(f"the HPA keeps {bounds['minReplicas']} to {bounds['maxReplicas']} replicas")
        return "names resolved, within the bounds of the HPA"

    def port_forward(self) -> str:
        """To a service or a pod, to a port that it has."""
        target, ports = self.asked.words
        container_port = ports.partition(":")[2]
        if target.startswith("svc/"):
            ports_there = [str(port["port"]) for port in self.manifests.named(target)["spec"]["ports"]]
            self._misleads("which pod of the Service is reached is left to kubectl")
        else:
            self._pods([target])
            ports_there = [str(port["containerPort"]) for port in self._container_ports()]
        if container_port not in ports_there:
            fail(f"{target} has the ports {ports_there}")
        return "names and ports resolved"

    def _container_ports(self) -> Iterator[dict[str, Any]]:
        for found in self.manifests.objects:
            if found["kind"] == "Deployment":
                for container in found["spec"]["template"]["spec"]["containers"]:
                    yield from container["ports"]


def _image(deployment: dict[str, Any]) -> str:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return str(container["image"])


def _images() -> dict[str, str]:
    """Return the images of the deployment: `live`, `former`, and `applied`, the one that apply last put there."""
    path = Path(os.environ[IMAGES])
    if path.exists():
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found
    first = _image(Manifests(TREE / MANIFEST).find("Deployment", "mlsdm-api"))
    return {"live": first, "former": first, "applied": first}


def _roll_out(image: str, **changes: str) -> None:
    """Remember that an image runs from now on."""
    images = _images()
    former = images["live"] if image != images["live"] else images["former"]
    Path(os.environ[IMAGES]).write_text(json.dumps({**images, "live": image, "former": former, **changes}))


def _real(words: list[str], given: str = "") -> str:
    """Return what the real kubectl prints."""
    others = [folder for folder in os.environ["PATH"].split(":") if folder != os.environ[BIN]]
    program = shutil.which("kubectl", path=":".join(others))
    assert program is not None, "there is no kubectl"
    ended = subprocess.run([program, *words], input=given, capture_output=True, text=True, check=False)
    if ended.returncode:
        fail(ended.stderr.strip())
    return ended.stdout


if __name__ == "__main__":
    Kubectl(sys.argv[1:]).run()
