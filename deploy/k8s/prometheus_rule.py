"""The rules as the object that the Prometheus Operator loads: `deploy/k8s/prometheus-rule.yaml`.

    python -m deploy.k8s.prometheus_rule > deploy/k8s/prometheus-rule.yaml

The files of deploy/prometheus/rules are what is read, tested and mounted where Prometheus reads files; the object
holds their groups, line by line, two spaces further in. A test holds it equal to what this prints. Rejected: a
generator of the kustomization, because Kustomize can make a ConfigMap of files, and not an object of this kind; and a
second reading and writing of the YAML, which would lose the comments beside the rules.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

RULES: Final = Path(__file__).resolve().parents[1] / "prometheus/rules"
_HEADER: Final = """\
# What Prometheus alerts on and records, where the Prometheus Operator runs: the groups of deploy/prometheus/rules,
# whose files say why each rule is as it is. Made by `make manual`; change them there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mlsdm-api
  namespace: mlsdm-production
  labels:
    app: mlsdm-api
spec:
  groups:
"""


def manifest() -> str:
    """Return the object as YAML."""
    return _HEADER + "".join(
        f"  {line}\n" if line else "\n" for path in sorted(RULES.glob("*.yml")) for line in _groups(path)
    )


def _groups(path: Path) -> Iterator[str]:
    """Yield the lines of a file that follow `groups:`, which is its only member."""
    before, found, after = path.read_text(encoding="utf-8").partition("groups:\n")
    assert found, f"{path} has no groups"
    assert all(line.startswith("#") for line in before.splitlines()), f"{path} has more than groups"
    yield from after.splitlines()


if __name__ == "__main__":
    sys.stdout.write(manifest())
