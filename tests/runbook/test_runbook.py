"""docs/runbook.md, command by command: every command works, and every alert has its section."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from testing.live_server import ROOT
from tests.programs import needs
from tests.runbook.__main__ import recorded
from tests.runbook.book import Line, lines_of
from tests.runbook.cluster import BIN, IMAGES, NOTES, STRICT
from tests.runbook.stage import Outcome, Stage, check_out

BOOK: Final = ROOT / "docs/runbook.md"
LINES: Final = lines_of(BOOK)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage for all lines of the runbook, which are played in order."""
    with Stage(tmp_path_factory.mktemp("stage"), strict=True).playing() as stage:
        yield stage


@needs("kubectl", "prometheus", "curl", "jq")
@pytest.mark.parametrize("line", LINES, ids=[f"line {line.number}" for line in LINES])
def test_a_line_does_what_it_says(stage: Stage, line: Line) -> None:
    """A command ends well and a jq finds its value; an expression has data; a name is known."""
    outcome = stage.play(line)

    assert outcome.held, f"{BOOK.name}:{line.number}: {line.text}\n{outcome.how}: {outcome.seen}"


@needs("kubectl", "prometheus", "curl", "jq")
@pytest.mark.parametrize(
    "wrong",
    [
        "kubectl get pods",
        "kubectl get pods -n mlsdm",
        "kubectl logs -n mlsdm-production -l app=mlsdm",
        "kubectl rollout restart deployment/mlsdm -n mlsdm-production",
        "kubectl set env deployment/mlsdm-api LOG_LEVLE=DEBUG -n mlsdm-production",
        "kubectl set image deployment/mlsdm-api api=ghcr.io/neuron7x/mlsdm-neuro-engine:1 -n mlsdm-production",
        "kubectl scale deployment mlsdm-api --replicas=1 -n mlsdm-production",
        "kubectl port-forward -n mlsdm-production svc/mlsdm-api 8000:8000",
        "kubectl apply -f config/production-ready.yaml",
        "kubectl delete pod -n mlsdm-production -l app=mlsdm-api --grace-period=5",
        "kubectl delete pod -n mlsdm-production -l app=mlsdm-api --grace-period=30",
        "kubectl port-forward -n mlsdm-production svc/mlsdm-api 8000:80",
        "kubectl exec -n mlsdm-production mlsdm-api-7d9c5b-x2x4k -- kill -HUP 1",
        "docker build -f Dockerfile.mlsdm -t mlsdm:latest .",
        "docker run -d -p 8000:80 mlsdm:latest",
        "docker run -d -e API_KYE=a-key mlsdm:latest",
        "curl http://localhost:8000/health/live",
        "curl http://localhost:8000/health/detailed | jq .statistics.threshold",
        "kubectl logs -n mlsdm-production -l app=mlsdm-api --tail=-1 | grep 'rate limit exceeded'",
        "kubectl logs -n mlsdm-production -l app=mlsdm-api | grep rate_limit_exceeded",
        "kubectl logs -n mlsdm-production -l app=mlsdm-api --tail=-1 -f | grep rate_limit_exceeded",
    ],
)
def test_a_line_that_is_wrong_is_found_out(stage: Stage, wrong: str) -> None:
    """A misspelt name, a port that nobody serves, a member that is not there."""
    outcome = stage.play(Line(1, "bash", wrong))

    assert not outcome.held


@needs("kubectl", "prometheus", "curl", "jq")
@pytest.mark.parametrize(
    "line",
    [
        Line(1, "promql", "rate(total_events_procesed[5m])"),
        Line(1, "yaml", "- alert: HighLatencies\n  expr: up == 0\n  severity: warning"),
        Line(1, "bash", "LOGLEVEL=INFO  # of the log"),
        Line(1, "", "GET /health/alive  - is it"),
        Line(1, "", "events_processed_total  - how many"),
    ],
)
def test_a_name_that_is_wrong_is_found_out(stage: Stage, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a metric, an alert, a variable, an endpoint."""
    monkeypatch.setattr("tests.runbook.stage.DATA_SECONDS_MAX", 1.0)

    assert not stage.play(line).held


@needs("kubectl")
def test_an_image_that_the_file_does_not_know_is_found_out(tmp_path: Path) -> None:
    """Applying the file after `set image` alone would go back; with the new tag in it, as often as one likes."""
    check_out(tmp_path)
    image = "ghcr.io/neuron7x/mlsdm-neuro-engine:9.9.9"
    apply, set_image, undo, write_down = (
        "kubectl apply -f deploy/k8s/production-deployment.yaml",
        f"kubectl set image deployment/mlsdm-api mlsdm-api={image} -n mlsdm-production",
        "kubectl rollout undo deployment/mlsdm-api -n mlsdm-production",
        f"sed -i 's|image: .*|image: {image}|' deploy/k8s/production-deployment.yaml",
    )
    words = {NOTES: f"{tmp_path}/notes", IMAGES: f"{tmp_path}/images", BIN: "", STRICT: "1"}
    kubectl = f'kubectl() {{ {sys.executable} -m tests.runbook.cluster "$@"; }}; '

    def held(line: str) -> bool:
        environ = {**os.environ, **words, "PYTHONPATH": str(ROOT)}
        return subprocess.run(["bash", "-c", kubectl + line], cwd=tmp_path, env=environ, check=False).returncode == 0

    assert [held(line) for line in (set_image, apply)] == [True, False]
    assert [held(line) for line in (write_down, apply, apply)] == [True] * 3
    assert [held(line) for line in (undo, apply)] == [True, False]


def test_every_alert_has_its_section() -> None:
    """The link of an alert leads to a heading of the runbook."""
    headings = {text.removeprefix("### ").lower() for text in BOOK.read_text().splitlines() if text.startswith("### ")}
    links = [
        rule["annotations"]["runbook_url"]
        for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]

    assert links
    assert [link for link in links if link.partition("docs/runbook.md#")[2] not in headings] == []


def test_what_commands_print_is_put_under_them(tmp_path: Path) -> None:
    """A block of text behind a block of commands gets what these have printed, long output shortened."""
    book = tmp_path / "book.md"
    book.write_text("# One\n```bash\nfirst\n\nsecond \\\n  -x\n```\n```text\nold\n```\nand\n```bash\nthird\n```\n")
    lines = lines_of(book)
    outcomes = {line: Outcome(True, "run", f"{line.text.split()[0]}'s\n" * 20) for line in lines}

    text = recorded(book.read_text(), outcomes)

    assert [line.number for line in lines] == [3, 5, 13]
    assert text.replace("first's\n" * 13 + "…\n", "1\n").replace("second's\n" * 13 + "…\n", "2\n") == (
        "# One\n```bash\nfirst\n\nsecond \\\n  -x\n```\n```text\n1\n2\n```\nand\n```bash\nthird\n```\n"
    )
