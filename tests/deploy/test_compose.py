"""docker-compose.yml: Compose's own reading of it, where Compose is installed, and whether its parts fit each other.

The expected values come from nginx's configuration, the service's settings and the image. No container is started:
that needs a daemon.
"""

import os
import re
import subprocess
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.settings.config import trusted_proxies
from core.startup import PLACES, load
from tests.programs import needs

ROOT = Path(__file__).resolve().parents[2]
NGINX = (ROOT / "deploy/nginx/nginx.conf").read_text()
MONITORING = {
    "./deploy/prometheus/prometheus.yml", "./deploy/prometheus/rules", "./deploy/alertmanager/alertmanager.yml",
    "./deploy/grafana/provisioning", "./deploy/grafana/dashboards",
}  # fmt: skip
Service = dict[str, Any]


@cache
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def services() -> dict[str, Service]:
    found: dict[str, Service] = document()["services"]
    return found


def mounts(service: Service) -> dict[str, str]:
    """Return what is mounted from the tree: where it comes from, by where it appears."""
    parts = [volume.split(":") for volume in service.get("volumes", [])]
    return {part[1]: part[0] for part in parts if part[0].startswith("./")}


def env_file(directory: Path, **secrets: str) -> Path:
    """Write the example, filled in."""
    text = (ROOT / ".env.example").read_text()
    for name, secret in secrets.items():
        text, count = re.subn(rf"^{name}=''$", f"{name}='{secret}'", text, flags=re.MULTILINE)
        assert count == 1
    path = directory / ".env"
    path.write_text(text)
    return path


def compose(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if name not in {"API_KEY", "GRAFANA_PASSWORD"}}
    return subprocess.run(
        ["docker-compose", "--env-file", str(path), *words],
        cwd=ROOT, env=bare, capture_output=True, text=True, check=False,
    )  # fmt: skip


@needs("docker-compose")
class TestCompose:
    def test_it_is_valid(self, tmp_path: Path) -> None:
        """Compose resolves it with the example filled in, and the secrets arrive as they were written."""
        done = compose(env_file(tmp_path, API_KEY='a$b{c}#d"e-f', GRAFANA_PASSWORD="g$h"), "config")
        resolved = yaml.safe_load(done.stdout)["services"] if done.returncode == 0 else {}

        assert (done.returncode, done.stderr) == (0, "")
        assert set(services()) == set(resolved)
        # It shows a $ as it would have to be written.
        assert resolved["mlsdm-api"]["environment"]["API_KEY"] == 'a$$b{c}#d"e-f'
        assert resolved["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "g$$h"

    @pytest.mark.parametrize("secret", ["API_KEY", "GRAFANA_PASSWORD"])
    def test_a_missing_secret_is_said_before_anything_starts(self, tmp_path: Path, secret: str) -> None:
        """Also when the example was copied and not filled in."""
        filled = {"API_KEY": "your-secret-key", "GRAFANA_PASSWORD": "another-secret"}
        del filled[secret]
        done = compose(env_file(tmp_path, **filled), "config", "-q")

        assert done.returncode != 0
        assert "write it into .env, as .env.example shows" in done.stderr


def test_compose_has_five_services() -> None:
    """The services find each other by these names."""
    assert set(services()) == {"mlsdm-api", "nginx", "prometheus", "alertmanager", "grafana"}


def test_secrets_are_in_no_file_of_the_tree() -> None:
    """The example has none; git ignores the file that has them, and the certificate's key."""
    assert set(re.findall(r"^\w+='(.*)'$", (ROOT / ".env.example").read_text(), re.MULTILINE)) == {""}
    ignored = ["git", "check-ignore", ".env", "deploy/nginx/tls/key.pem", "deploy/nginx/tls/certificate.pem"]
    done = subprocess.run(ignored, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored[2:] == done.stdout.split()


class TestService:
    def test_it_takes_its_variables(self) -> None:
        """With the configuration that is mounted; the key is the operator's."""
        api = services()["mlsdm-api"]
        source = Path(mounts(api)[str(Path(PLACES[0]).parent)]) / Path(PLACES[0]).name
        loaded = load(str(ROOT / source), {**api["environment"], "API_KEY": "your-secret-key"})

        assert (loaded.environment, loaded.config.server.host) == ("production", "0.0.0.0")
        assert api["stop_grace_period"] == "35s"
        assert loaded.config.resources.shutdown_timeout < 35

    def test_it_is_built_from_this_tree(self) -> None:
        """By the name that the documentation builds it by."""
        build = services()["mlsdm-api"]["build"]

        assert (ROOT / build["context"] / build["dockerfile"]).is_file()

    def test_nothing_reaches_it_but_through_nginx(self) -> None:
        """It publishes no port, and its only network leads nowhere else."""
        api = services()["mlsdm-api"]

        assert "ports" not in api
        assert set(api["networks"]) == {"inside"}
        assert document()["networks"]["inside"]["internal"] is True

    def test_it_has_no_more_rights_than_it_needs(self) -> None:
        """What its image allows: nothing is written but in memory, which is bounded and never on a disk."""
        api = services()["mlsdm-api"]

        assert (api["read_only"], api["cap_drop"], api["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
        assert "512m" == api["mem_limit"] == api["memswap_limit"]


class TestNginx:
    def test_the_service_believes_nginx_and_nobody_else(self) -> None:
        """It trusts one address, which nginx always has and the network gives to no other container."""
        api, nginx = services()["mlsdm-api"], services()["nginx"]
        config = load(None, {**api["environment"], "API_KEY": "your-secret-key"}).config
        [pool] = document()["networks"]["inside"]["ipam"]["config"]
        fixed = [ip_address(service["networks"]["inside"]["ipv4_address"]) for service in (nginx, api)]

        assert trusted_proxies(config) == (ip_network(fixed[0]),)
        assert all(address in ip_network(pool["subnet"]) for address in fixed)
        assert not any(address in ip_network(pool["ip_range"]) for address in fixed)

    def test_it_forwards_to_the_service(self) -> None:
        """By the name and the port that it has."""
        assert "    server mlsdm-api:8000 " in NGINX

    def test_it_is_published_where_it_listens(self) -> None:
        """Behind the port of HTTPS, above those that only root may open."""
        [port] = re.findall(r"^ +listen (\d+) ssl", NGINX, re.MULTILINE)

        assert services()["nginx"]["ports"] == [f"443:{port}"]
        assert int(port) >= 1024

    def test_its_files_are_where_it_looks(self) -> None:
        """The certificate lies next to the configuration; its prefix is the directory that it may write to."""
        nginx = services()["nginx"]
        command, mounted = nginx["entrypoint"], mounts(nginx)

        assert mounted[command[command.index("-c") + 1]] == "./deploy/nginx/nginx.conf"
        assert mounted["/etc/nginx/tls"] == "./deploy/nginx/tls"
        assert re.findall(r"ssl_certificate(?:_key)? (\S+);", NGINX) == ["tls/certificate.pem", "tls/key.pem"]
        assert command[command.index("-p") + 1] == nginx["tmpfs"][0].split(":")[0] + "/"
        assert (nginx["read_only"], nginx["user"]) == (True, "101:101")


def test_mounted_files_of_the_tree_exist() -> None:
    """An engine would create an empty directory for a missing file, and a service would start without it."""
    sources = {source for service in services().values() for source in mounts(service).values()}

    assert sources - MONITORING == {"./config", "./deploy/nginx/nginx.conf", "./deploy/nginx/tls"}
    assert MONITORING <= sources
    assert [source for source in sources - MONITORING if not (ROOT / source).exists()] == []


def test_mounted_files_of_the_monitoring_exist() -> None:
    """Files are files, and directories are directories."""
    assert [source for source in MONITORING if not (ROOT / source).exists()] == []
    assert {Path(s).name for s in MONITORING if (ROOT / s).is_file()} == {"prometheus.yml", "alertmanager.yml"}


def test_monitoring_is_published_on_loopback_only() -> None:
    """Prometheus, Alertmanager and Grafana listen on the loopback interface."""
    published = {name: service["ports"] for name, service in services().items() if name not in ("mlsdm-api", "nginx")}

    assert published == {
        "prometheus": ["127.0.0.1:9090:9090"],
        "alertmanager": ["127.0.0.1:9093:9093"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_every_image_has_a_version() -> None:
    """No image changes by itself."""
    images = {name: service["image"].rpartition(":")[2] for name, service in services().items() if name != "mlsdm-api"}

    assert {name: tag for name, tag in images.items() if not re.match(r"v?\d+\.\d+", tag)} == {}


def test_logs_are_bounded() -> None:
    """No log grows with time."""
    assert all({"max-size", "max-file"} <= set(service["logging"]["options"]) for service in services().values())
