"""A stand-in for a container engine behind the command `docker`, whose command lines are checked, not executed.

A built file must exist; a run must publish the image's port, mount its configuration where the image looks, and set
known variables. Logs are those of the live server. `make image` tests building, starting and stopping; a registry and
a vulnerability scanner need a network.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Final

from tests.runbook.cluster import LOG, VARIABLES, fail, note

CONFIGURATION: Final = "/etc/mlsdm"
ELSEWHERE: Final = {"scan": "needs the network", "push": "needs a registry", "tag": "needs an engine"}


def main(words: list[str]) -> None:
    """Judge one command line."""
    verb, *rest = words
    judge = {"build": build, "run": run, "logs": logs}.get(verb)
    if judge is None and verb not in ELSEWHERE:
        fail(f"'{verb}' is not a docker command")
    note(f"docker {verb}: {judge(rest) if judge else 'not run, ' + ELSEWHERE[verb]}")


def build(words: list[str]) -> str:
    """The file and the context are there."""
    parser = argparse.ArgumentParser(prog="docker build")
    parser.add_argument("-f", dest="file", default="Dockerfile")
    parser.add_argument("-t", dest="tag", required=True)
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("context")
    asked = parser.parse_args(words)
    text = Path(asked.context, asked.file).read_text(encoding="utf-8")
    known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    for argument in asked.build_arg:
        if argument.partition("=")[0] not in known:
            fail(f"{asked.file} has no argument {argument}")
    for copied in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        for name in copied.split():
            if not Path(asked.context, name).exists():
                fail(f"{asked.file} copies {name}, which is not there")
    return "file, arguments and what it copies resolved; not built here"


def run(words: list[str]) -> str:
    """Ports, mounts and variables are those of the image."""
    parser = argparse.ArgumentParser(prog="docker run")
    parser.add_argument("-d", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    for option in ("--name", "--restart", "--memory", "--cpus"):
        parser.add_argument(option)
    for option in ("-p", "-e", "-v", "--tmpfs"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("image")
    asked = parser.parse_args(words)
    exposed = re.findall(r"^EXPOSE (\d+)$", Path("Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for published in asked.p:
        if published.rpartition(":")[2] not in exposed:
            fail(f"the image serves on {exposed}, not on {published}")
    for variable in asked.e:
        if variable.partition("=")[0] not in VARIABLES:
            fail(f"the service has no variable {variable}")
    for mounted in asked.v:
        source, target = mounted.split(":")[:2]
        if target != CONFIGURATION or not Path(source).exists():
            fail(f"{mounted}: the image looks for its configuration in {CONFIGURATION}")
    return "ports, variables and mounts resolved; not run here"


def logs(_words: list[str]) -> str:
    """What the live server has logged stands for what the container has."""
    print(Path(os.environ[LOG]).read_text(encoding="utf-8"))
    return "the lines are those of the live server"


if __name__ == "__main__":
    main(sys.argv[1:])
