"""Runs the image without a container engine and checks its promises: `make image`.

    sudo .venv/bin/python deploy/image/check.py [IMAGE]

It reproduces `docker run --read-only --tmpfs /tmp --cap-drop ALL -e … -v …` with the kernel's means: namespaces for
mounts, processes and network (port 8000 is free whatever this machine serves), a read-only root file system, a tmpfs
on /tmp and /dev/shm, a /dev with five devices, the image's user without capabilities, only the image's variables, and
its command as process 1. Everything that the image decides comes from its configuration. No memory limit is set.

Each printed line was verified. The first failure ends the run with status 1 and the container's log.
Rejected: `buildah run`, which has neither a read-only root nor a process 1 to signal.
"""

import ctypes
import fcntl
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

TREE: Final = Path(__file__).resolve().parents[2]
KEY: Final = "your-secret-key"
RUN: Final = {"API_KEY": KEY, "MLSDM_ENV": "production"}  # the variables of `docker run`
BUILDAH: Final = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
START_SECONDS_MAX: Final = 60.0
# The production file drains for 5 s of the 30 s that Kubernetes gives; without requests in flight the rest is short.
STOP_SECONDS_MAX: Final = 15.0
VECTOR_SIZE: Final = 4 * 384

# $1 root, $2 user, $3 group, $4 working directory, $5 what is mounted at /etc/mlsdm ("" for nothing), then the
# variables and the command. Runs as process 1 of new mount and process namespaces, and becomes the command.
CONTAINER: Final = r"""
set -eu
root=$1 uid=$2 gid=$3 directory=$4 volume=$5
shift 5
mount --make-rprivate /
mount --bind "$root" "$root"
if [ -n "$volume" ]; then
    mount --bind "$volume" "$root/etc/mlsdm"
    mount -o remount,bind,ro "$root/etc/mlsdm"
fi
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,size=16m tmpfs "$root/tmp"
mount -t tmpfs -o mode=755,size=64k tmpfs "$root/dev"
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/dev/shm"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid "$uid" --regid "$gid" --clear-groups --bounding-set=-all --inh-caps=-all \
    --no-new-privs env -i -C "$directory" "$@"
"""


class Image:
    """An image in buildah's storage, mounted. `config` is what `docker inspect` calls Config."""

    def __init__(self, name: str, root: Path, config: Mapping[str, Any]) -> None:
        self.name, self.root, self.config = name, root, config
        self.uid, self.gid = (int(part) for part in config["User"].split(":"))
        self.environ = dict(variable.split("=", 1) for variable in config["Env"])

    def container(self, environ: Mapping[str, str], volume: Path | None, words: list[str]) -> list[str]:
        """Return the command line that runs `words` in a container, with `volume` at /etc/mlsdm."""
        variables = [f"{name}={value}" for name, value in {**self.environ, **environ}.items()]
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", CONTAINER, "container"),
            *(str(self.root), str(self.uid), str(self.gid), self.config["WorkingDir"], str(volume or "")),
            *variables,
            *words,
        ]


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """Mount an image for a while."""
    inspected = json.loads(_output("buildah", "inspect", "--type", "image", name))
    container = _output("buildah", "from", "--pull-never", name)
    try:
        yield Image(name, Path(_output("buildah", "mount", container)), inspected["Docker"]["config"])
    finally:
        _output("buildah", "rm", container)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=BUILDAH).stdout.strip()


class Running:
    """A container that runs the image's own command."""

    def __init__(self, image: Image, environ: Mapping[str, str], volume: Path | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the container
        command = image.container(environ, volume, image.config["Cmd"])
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    @property
    def log(self) -> str:
        """What it has written to stdout and stderr."""
        self._log.seek(0)
        return self._log.read().decode()

    def pids(self) -> list[int]:
        """Return the pids, as this side counts them, of process 1 and all below it."""
        found = _children(self.process.pid)
        for pid in found:
            found.extend(_children(pid))
        return found

    def wait_until(self, holds: Callable[[], object], seconds: float) -> None:
        """Wait for something while it runs."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, "it has ended"
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.02)

    def started(self) -> "Running":
        """Wait until it is ready."""
        self.wait_until(lambda: status("GET", "/health/readiness") == 200, START_SECONDS_MAX)
        return self

    def ended(self) -> int:
        """Wait for its end and return its exit status."""
        return self.process.wait(START_SECONDS_MAX)

    def stop(self) -> tuple[int, float, bool]:
        """Send SIGTERM to process 1; return exit status, seconds, and whether it was alive but unready meanwhile."""
        began = time.monotonic()
        os.kill(self.pids()[0], signal.SIGTERM)
        self.wait_until(lambda: status("GET", "/health/readiness") == 503, STOP_SECONDS_MAX)
        notice = status("GET", "/health/liveness") == 200
        return self.process.wait(STOP_SECONDS_MAX), time.monotonic() - began, notice

    def kill(self) -> None:
        """End it, whatever it does. The kernel lets process 1 go only when everything else in it is gone."""
        for pid in self.pids()[:1]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextmanager
def running(image: Image, environ: Mapping[str, str], volume: Path | None = None) -> Iterator[Running]:
    """Run a container for a while; show its log when something is wrong."""
    container = Running(image, environ, volume)
    try:
        yield container
    except BaseException:
        print(container.log, file=sys.stderr)
        raise
    finally:
        container.kill()


def request(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """Return status and document of one request to port 8000."""
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=5)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def status(method: str, path: str) -> int:
    """Return the status of one request, 0 when nobody answers."""
    with suppress(OSError, http.client.HTTPException):
        return int(request(method, path)[0])
    return 0


def event(key: str) -> Any:
    """Send an event of 384 floats; return status and document."""
    headers = {"Content-Type": "application/octet-stream", "Moral-Value": "0.8", "Authorization": f"Bearer {key}"}
    return request("POST", "/event", struct.pack("<384f", *range(384)), headers)


# -- what is checked ---------------------------------------------------------------------------------------------------


def check_configuration(image: Image) -> Iterator[str]:
    """What the image says of itself, and what is in it."""
    config, root = image.config, image.root
    assert image.uid > 0
    yield f"user {config['User']}, command {config['Cmd']}, {config['StopSignal']} stops it"
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {name.rsplit(".", 1)[1]: text for name, text in config["Labels"].items() if "opencontainers" in name}
    yield f"exposes 8000/tcp, has a health check, version {labels['version']}, revision {labels['revision'][:12]}"
    tools = ("gcc", "cc", "ld", "make")
    found = [tool for tool in tools for place in ("usr/bin", "opt/mlsdm/bin") if (root / place / tool).exists()]
    assert found == []
    assert not list(root.glob("opt/mlsdm/lib/python*/site-packages/pip"))
    yield "no compiler in it, and no pip beside the service"
    assert any((root / place / "sleep").exists() for place in ("bin", "usr/bin"))
    yield "has `sleep`, for the hook that Kubernetes runs before SIGTERM"
    size = sum(path.lstat().st_size for path in (root / "opt/mlsdm").rglob("*") if not path.is_symlink())
    yield f"the service and its packages are {size / 1e6:.0f} MB"


def check_service(image: Image) -> Iterator[str]:
    """The command of the documentation: key, environment, and config/ at /etc/mlsdm."""
    with running(image, RUN, TREE / "config") as container:
        container.started()
        yield "starts with config/ mounted at /etc/mlsdm, read-only everywhere but /tmp and /dev/shm"
        assert '"Configuration loaded from /etc/mlsdm/config.yaml"' in container.log
        yield "reads /etc/mlsdm/config.yaml and says so"
        check = ["env", "PORT=8000", f"PATH={image.environ['PATH']}", *image.config["Healthcheck"]["Test"][1:]]
        inside = ["chroot", str(image.root), *check]
        assert subprocess.run(inside, check=False).returncode == 0
        assert subprocess.run([*inside[:3], "PORT=8001", *inside[4:]], check=False, capture_output=True).returncode == 1
        yield "its health check succeeds, and fails on a port that nobody serves"
        yield from _check_requests()
        yield from _check_processes(container, image)
        yield from _check_reload(container, image)
        lines = [json.loads(line) for line in container.log.splitlines()]
        assert {"timestamp", "level", "event"} <= set.intersection(*(set(line) for line in lines))
        assert KEY not in container.log
        yield f"its log is {len(lines)} JSON lines, without the key"
        code, seconds, notice = container.stop()
        assert notice, "not alive while it drains"
        assert code == 0, f"exit status {code}"
        yield f"on SIGTERM it is unready and alive, and ends with status 0 after {seconds:.1f} s"


def _check_requests() -> Iterator[str]:
    alive, ready = request("GET", "/health/liveness"), request("GET", "/health/readiness")
    assert alive[0] == ready[0] == 200
    yield f"liveness {alive[1]['status']}, readiness {ready[1]['status']}"
    (code, decision), (refused, problem) = event(KEY), event("another-secret-key")
    assert (code, decision["sequence"], refused) == (200, 1, 401)
    yield f"an event with the key is decided (accepted: {decision['accepted']}), one without is {problem['code']}"


def _check_processes(container: Running, image: Image) -> Iterator[str]:
    pids = container.pids()
    fields = [
        dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()) for pid in pids
    ]
    assert {field["Uid"] for field in fields} == {"\t".join([str(image.uid)] * 4)}
    assert {field["CapEff"] for field in fields} == {field["CapBnd"] for field in fields} == {"0" * 16}
    yield f"{len(pids)} processes, all of uid {image.uid}, none with a capability"
    listening = Path(f"/proc/{pids[0]}/net/tcp").read_text()
    assert " 00000000:1F40 " in listening
    yield "listens on 0.0.0.0:8000"
    for path, writable in (("/etc/mlsdm/x", False), ("/opt/mlsdm/x", False), ("/var/x", False), ("/tmp/x", True)):
        inside = ["nsenter", f"--target={pids[0]}", "--mount", "--root", "touch", path]
        done = subprocess.run(inside, check=False, capture_output=True, text=True)
        assert (done.returncode == 0) is writable, (path, done.stderr)
        assert writable or "Read-only file system" in done.stderr, done.stderr
    yield "not even root writes to /etc/mlsdm, /opt/mlsdm or /var in it"
    sizes = [
        int(line.split()[1]) for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    ]  # fmt: skip
    yield f"its processes share {sum(sizes) / 1000:.0f} MB (proportional set size)"


def _check_reload(container: Running, image: Image) -> Iterator[str]:
    """What the runbook has `kubectl exec` do: as the image's user, by the image's variables, and by its shell, because
    no program called kill is in the image.
    """
    place = ("--mount", "--pid", "--root", "--wd", f"--setuid={image.uid}", f"--setgid={image.gid}")
    variables = [f"{name}={value}" for name, value in image.environ.items()]
    inside = ["nsenter", f"--target={container.pids()[0]}", *place, "env", "-i", *variables, "sh", "-c", "kill -HUP 1"]
    subprocess.run(inside, check=True)
    container.wait_until(lambda: container.log.count("Configuration loaded from ") == 2, START_SECONDS_MAX)
    container.wait_until(lambda: status("GET", "/health/readiness") == 200, START_SECONDS_MAX)
    code, decision = event(KEY)
    assert (code, decision["sequence"]) == (200, 2), (code, decision)
    yield "`sh -c 'kill -HUP 1'` in it reloads the configuration, and no memory is lost"


def check_other_configurations(image: Image) -> Iterator[str]:
    """A file of the operator's, none at all, one with problems, and no key."""
    with tempfile.TemporaryDirectory() as directory:
        volume = Path(directory)
        volume.chmod(0o755)
        for text, source in (
            (None, "/usr/share/mlsdm/production-ready.yaml"),
            ("capacity: 1000\nserver: {host: 127.0.0.1, port: 9000}\n", "/etc/mlsdm/config.yaml"),
        ):
            if text:
                (volume / "config.yaml").write_text(text)
            with running(image, RUN, volume) as container:
                container.started()
                assert f'"Configuration loaded from {source}"' in container.log
                assert Path(f"/proc/{container.pids()[0]}/net/tcp").read_text().count(" 00000000:1F40 ")
            yield f"with {'a short' if text else 'no'} file in /etc/mlsdm it serves on 0.0.0.0:8000 by {source}"
        for environ, text, expected in (
            (RUN, "capacity: 1\ndimensoin: 8\n", ("capacity is 1 (", "dimensoin is unknown (")),
            ({}, "", ("API_KEY is not set: expected a secret key, because MLSDM_ENV is production",)),
        ):
            (volume / "config.yaml").write_text(text)
            with running(image, environ, volume) as container:
                assert container.ended() == 1
                assert all(part in container.log for part in expected), container.log
            yield f"does not start, and says: {container.log.splitlines()[1]}"


def own_network() -> None:
    """Move this process into a network of its own, with a loopback interface."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet, set_flags, up = 0x40000000, 0x8914, 1
    if libc.unshare(clone_newnet):
        raise OSError(ctypes.get_errno(), "a network of its own needs root")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, set_flags, struct.pack("16sh14x", b"lo", up))


def main(words: list[str]) -> int:
    """Check the image that `words` names; return the exit status."""
    own_network()
    with mounted(words[0] if words else "localhost/mlsdm:latest") as image:
        for check in (check_configuration, check_service, check_other_configurations):
            for sentence in check(image):
                print(f"ok  {sentence}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
