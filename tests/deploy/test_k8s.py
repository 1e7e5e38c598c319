"""The Kubernetes manifests: what Kubernetes would refuse, and what it would accept but not carry out.

No cluster is used. Every object is validated against the API's schemas. References, periods and sizes are computed
from the service itself. kubectl, where it is installed, renders and edits the files as an operator does.
"""

import json
import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it carries no types
import pytest
import yaml

from core.limits import BODY_SIZE
from core.settings.config import Config, effective
from core.startup import PLACES, load
from deploy.k8s import prometheus_rule
from loadtests.cost.capacity import BUFFERS_WORKER, RESERVE_BASE, RESERVE_WORKER
from shm.layout import Layout
from testing.live_server import LiveServer
from tests.deploy.rulebook import rules
from tests.programs import needs

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMESPACE, APP = "mlsdm-production", "mlsdm-api"
LABELS = {"app": APP}
API_VERSIONS = ("1.27", "1.32")  # the oldest that has every field, and that of the kubectl that was tried
MONITOR = K8S / "service-monitor.yaml"
RULE = K8S / "prometheus-rule.yaml"
Object = dict[str, Any]


@cache
def objects() -> dict[str, Object]:
    """Return the objects of production-deployment.yaml by kind: there is one of each."""
    found = list(yaml.safe_load_all((K8S / "production-deployment.yaml").read_text()))
    assert len(found) == len({thing["kind"] for thing in found})
    return {thing["kind"]: thing for thing in found}


def pod() -> Object:
    spec: Object = objects()["Deployment"]["spec"]["template"]["spec"]
    return spec


def container() -> Object:
    [only] = pod()["containers"]
    assert only["name"] == APP
    found: Object = only
    return found


def environ() -> dict[str, str]:
    """Return the variables of the container; the key is one that an operator might have chosen."""
    return {variable["name"]: variable.get("value", "your-secret-key") for variable in container()["env"]}


def production() -> Config:
    """Return a pod's configuration from the production file, which is mounted as a ConfigMap or part of the image."""
    return load(str(ROOT / "config/production-ready.yaml"), environ()).config


def kubectl(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(["kubectl", *words], cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def edited(*words: str) -> Object:
    """Return the deployment after a kubectl command has changed it."""
    local = ("--local", "-f", "-", "-o", "yaml")
    changed: Object = yaml.safe_load(kubectl(*words, *local, stdin=yaml.safe_dump(objects()["Deployment"])))
    return changed


class TestSchema:
    @pytest.mark.parametrize("version", API_VERSIONS)
    @pytest.mark.parametrize("kind", objects())
    def test_the_api_knows_every_field(self, kind: str, version: str) -> None:
        """Validation is strict: a misspelt field would be dropped silently."""
        assert kubernetes_validate.validate(objects()[kind], version, strict=True)

    def test_a_misspelt_field_is_refused(self) -> None:
        """The schemas refuse it."""
        wrong = {**objects()["Service"], "spec": {"selectr": LABELS}}

        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, API_VERSIONS[-1], strict=True)

    def test_the_kinds_are_those_that_a_deployment_needs(self) -> None:
        """The operator's ConfigMap and Secret are not among them, because each `kubectl apply` would overwrite them;
        nor is a kind that a cluster may not know.
        """
        assert set(objects()) == {
            "Namespace", "ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget",
            "NetworkPolicy", "Ingress",
        }  # fmt: skip

    def test_the_kustomization_lists_every_file(self) -> None:
        """Every manifest of the folder, and nothing else."""
        kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())

        assert {path.name for path in K8S.glob("*.yaml")} - {"kustomization.yaml"} == set(kustomization["resources"])


class TestNames:
    def test_names_are_those_of_the_runbook(self) -> None:
        """Namespace, object, container, image and port have the documented names."""
        assert objects()["Namespace"]["metadata"]["name"] == NAMESPACE
        for kind, thing in objects().items():
            if kind != "Namespace":
                assert (kind, APP, NAMESPACE) == (kind, thing["metadata"]["name"], thing["metadata"]["namespace"])
        assert container()["image"] == f"ghcr.io/neuron7x/mlsdm-neuro-engine:{VERSION}"
        assert [(port["port"], port["targetPort"]) for port in objects()["Service"]["spec"]["ports"]] == [(80, "http")]
        assert [(port["name"], port["containerPort"]) for port in container()["ports"]] == [("http", 8000)]

    def test_every_selector_finds_the_pods(self) -> None:
        """One label, everywhere the same."""
        spec = {kind: thing.get("spec", {}) for kind, thing in objects().items()}
        selectors = [
            spec["Deployment"]["selector"]["matchLabels"],
            spec["Service"]["selector"],
            spec["PodDisruptionBudget"]["selector"]["matchLabels"],
            spec["NetworkPolicy"]["podSelector"]["matchLabels"],
            *(spread["labelSelector"]["matchLabels"] for spread in pod()["topologySpreadConstraints"]),
        ]

        assert selectors == [LABELS] * 6
        assert LABELS.items() <= spec["Deployment"]["template"]["metadata"]["labels"].items()

    def test_references_between_objects_resolve(self) -> None:
        """The autoscaler finds its deployment, the ingress its service and port, the pod its account."""
        target = objects()["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        deployment = objects()["Deployment"]

        assert target == {
            "apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": APP,
        }  # fmt: skip
        assert {
            (path["backend"]["service"]["name"], path["backend"]["service"]["port"]["name"]) for path in ingress_paths()
        } == {(APP, "http")}
        assert objects()["ServiceAccount"]["metadata"]["name"] == pod()["serviceAccountName"]

    def test_the_policy_opens_the_container_port(self) -> None:
        """It admits the ingress controller, Prometheus and labelled clients; DNS and traces may leave."""
        policy = objects()["NetworkPolicy"]["spec"]
        [rule] = policy["ingress"]

        assert rule["ports"] == [{"protocol": "TCP", "port": container()["ports"][0]["containerPort"]}]
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 4317, 4318}


class TestPod:
    def test_the_operators_objects_are_optional(self) -> None:
        """Without ConfigMap and Secret the pod is created all the same, so that the service itself can say what is
        missing.
        """
        volumes = {volume["name"]: volume for volume in pod()["volumes"]}
        [key] = [variable["valueFrom"]["secretKeyRef"] for variable in container()["env"] if "valueFrom" in variable]

        assert tuple(volumes["config"]["configMap"][name] for name in ("name", "optional")) == ("mlsdm-config", True)
        assert tuple(volumes["keys"]["secret"][name] for name in ("secretName", "optional")) == ("mlsdm-secrets", True)
        assert key == {"name": "mlsdm-secrets", "key": "API_KEY", "optional": True}

    def test_the_configuration_is_mounted_at_the_default_place(self) -> None:
        """The key config.yaml is mounted as the first of the places."""
        mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
        [item] = next(volume for volume in pod()["volumes"] if volume["name"] == "config")["configMap"]["items"]

        assert (f"{mounts['config']}/{item['path']}", item["key"]) == (PLACES[0], "config.yaml")
        assert {mount["name"] for mount in container()["volumeMounts"]} == {
            volume["name"] for volume in pod()["volumes"]
        }

    def test_its_variables_are_settings_of_the_service(self) -> None:
        """None is unknown, and none conflicts with the production file."""
        assert production().resources.shutdown_timeout == 24

    def test_it_stops_within_its_grace_period(self) -> None:
        """The sleep before SIGTERM and the service's own time to stop fit the 30 s."""
        verb, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
        resources = production().resources

        assert (verb, int(seconds) >= 5) == ("sleep", True)
        assert int(seconds) + resources.shutdown_timeout < pod()["terminationGracePeriodSeconds"] <= 30
        assert 5 + 10 < resources.shutdown_timeout - resources.drain_period  # deadlines of a head and of a body

    def test_probes_use_existing_routes(self, small_server: LiveServer) -> None:
        """Liveness serves start-up and life, readiness serves traffic; each answers 200."""
        probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}

        assert [probe["path"] for probe in probes.values()] == [
            "/health/liveness",
            "/health/liveness",
            "/health/readiness",
        ]
        assert {probe["port"] for probe in probes.values()} == {"http"}
        assert {small_server.get(probe["path"]).status for probe in probes.values()} == {200}

    def test_it_meets_the_restricted_pod_security_standard(self) -> None:
        """Its namespace enforces the standard, and its root file system is read-only."""
        spec, own = pod()["securityContext"], container()["securityContext"]

        assert objects()["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert (spec["runAsNonRoot"], spec["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert spec["runAsUser"] > 0
        assert (
            own["allowPrivilegeEscalation"],
            own["readOnlyRootFilesystem"],
            own["capabilities"]["drop"],
        ) == (False, True, ["ALL"])
        assert {"configMap", "secret", "emptyDir"} >= {key for volume in pod()["volumes"] for key in volume} - {"name"}

    def test_it_runs_as_the_user_of_the_image(self) -> None:
        """Both have the same numeric user."""
        user = f"USER {pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}"

        assert user in (ROOT / "Dockerfile").read_text().splitlines()

    def test_the_cluster_injects_nothing(self) -> None:
        """There are no service variables and no token."""
        assert (pod()["enableServiceLinks"], pod()["automountServiceAccountToken"]) == (False, False)

    def test_its_memory_fits_what_the_service_can_use(self) -> None:
        """The most that the service can use, with full buffers in every worker, is below the point where an emergency
        begins. The block is within its share of the limit. The request equals the limit.
        """
        resources, config = container()["resources"], production()
        limit = mebibytes(resources["limits"]["memory"])
        workers = int(resources["limits"]["cpu"])
        layout = Layout(
            config.dimension, config.capacity, config.payload_size_max, config.log_capacity, 4 * workers,
            config.idempotency_capacity,
        )  # fmt: skip

        usual = layout.block_size + RESERVE_BASE + workers * RESERVE_WORKER
        most, emergency = usual + workers * BUFFERS_WORKER, 0.95 * limit

        assert most < emergency
        assert layout.block_size < 0.8 * limit
        assert limit < 1.4e9
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        manifest = (K8S / "production-deployment.yaml").read_text()
        stated_mb = [int(number) for number in re.findall(r"(\d+) MB\b", manifest)]
        assert [round(size / 1e6) for size in (usual, BUFFERS_WORKER, most, emergency)] == stated_mb


def mebibytes(text: str) -> int:
    assert text.endswith("Mi")
    return int(text.removesuffix("Mi")) * 2**20


class TestReplicas:
    def test_the_autoscaler_keeps_at_least_three_pods(self) -> None:
        """The deployment names no number, because each apply would reset the autoscaler's."""
        assert "replicas" not in objects()["Deployment"]["spec"]
        assert objects()["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 3

    def test_pods_are_removed_one_by_one(self) -> None:
        """An update makes the new pod ready first; drains and scaling remove one pod at a time."""
        scale_down = objects()["HorizontalPodAutoscaler"]["spec"]["behavior"]["scaleDown"]

        assert objects()["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        assert objects()["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
        assert (
            scale_down["stabilizationWindowSeconds"],
            [policy["value"] for policy in scale_down["policies"]],
        ) == (3600, [1])

    def test_a_client_stays_with_one_pod(self) -> None:
        """Service and ingress have affinity, because memory is per pod."""
        annotations = objects()["Ingress"]["metadata"]["annotations"]

        assert objects()["Service"]["spec"]["sessionAffinity"] == "ClientIP"
        assert annotations["nginx.ingress.kubernetes.io/upstream-hash-by"] == "$remote_addr"


def ingress_paths() -> list[Object]:
    [rule] = objects()["Ingress"]["spec"]["rules"]
    found: list[Object] = rule["http"]["paths"]
    return found


class TestIngress:
    def test_the_ingress_reaches_every_route_except_metrics_and_details(self, small_server: LiveServer) -> None:
        """Each documented route is reachable."""
        documented = set(small_server.get("/openapi.json").json["paths"])
        held_back = {"/metrics", "/health/metrics", "/health/detailed"}

        assert held_back < documented
        assert documented - held_back == {
            path for path in documented if any(covers(rule, path) for rule in ingress_paths())
        }

    def test_the_ingress_lists_only_paths_of_the_service(self, small_server: LiveServer) -> None:
        """Every listed path is a route."""
        statuses = {path["path"]: small_server.get(path["path"]).status for path in ingress_paths()}
        only_below = {"/memories"}  # and /memories/1 is 404 because nothing is remembered yet

        assert {path: status for path, status in statuses.items() if status == 404 and path not in only_below} == {}

    def test_the_ingress_admits_the_largest_body(self) -> None:
        """Its limit equals the service's."""
        annotations = objects()["Ingress"]["metadata"]["annotations"]

        assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{BODY_SIZE.value // 2**20}m"


def covers(rule: Object, path: str) -> bool:
    """Return whether an Ingress path admits a path: as a whole, or as a prefix of its elements."""
    if rule["pathType"] == "Exact":
        return bool(path == rule["path"])
    assert rule["pathType"] == "Prefix"
    return f"{path}/".startswith(rule["path"] + "/")


class TestServiceMonitor:
    """Its schema belongs to the Prometheus Operator, so its members are listed here."""

    @staticmethod
    def endpoint() -> Object:
        [found] = yaml.safe_load(MONITOR.read_text())["spec"]["endpoints"]
        endpoint: Object = found
        return endpoint

    def test_it_has_the_members_of_its_kind_and_no_others(self) -> None:
        """Its kind is of monitoring.coreos.com/v1; a misspelt member would be dropped."""
        monitor = yaml.safe_load(MONITOR.read_text())

        assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
        assert set(monitor["spec"]) == {"selector", "namespaceSelector", "endpoints"}
        assert set(self.endpoint()) == {"port", "path", "interval", "scrapeTimeout", "relabelings", "metricRelabelings"}
        for rule in self.endpoint()["relabelings"] + self.endpoint()["metricRelabelings"]:
            assert {"action", "sourceLabels", "targetLabel", "replacement", "regex"} >= set(rule)

    def test_the_monitor_selects_the_service(self) -> None:
        """It selects by label and namespace, and names the port."""
        monitor, service = yaml.safe_load(MONITOR.read_text()), objects()["Service"]

        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
        assert self.endpoint()["port"] in [port["name"] for port in service["spec"]["ports"]]

    def test_the_monitors_job_is_that_of_the_alerts(self) -> None:
        """The job is `mlsdm-api`, whatever the service is called."""
        jobs = [rule["replacement"] for rule in self.endpoint()["relabelings"] if rule["targetLabel"] == "job"]

        assert jobs == [APP]

    def test_the_monitor_keeps_every_metric_of_the_service(self, small_server: LiveServer) -> None:
        """Every sample of a real scrape matches both families of names; one of another library does not."""
        [keep] = self.endpoint()["metricRelabelings"]
        exposed = small_server.get(self.endpoint()["path"]).body.decode()
        names = {re.split(r"[ {]", line)[0] for line in exposed.splitlines() if line and not line.startswith("#")}

        assert (keep["action"], keep["sourceLabels"]) == ("keep", ["__name__"])
        assert {"mlsdm_memories", "total_events_processed", "process_event_latency_seconds_bucket"} <= names
        assert {name for name in names if not re.fullmatch(keep["regex"], name)} == set()
        assert not re.fullmatch(keep["regex"], "python_gc_objects_collected_total")


class TestPrometheusRule:
    """The rules of deploy/prometheus, for the Prometheus Operator."""

    @staticmethod
    def groups() -> list[Object]:
        groups: list[Object] = yaml.safe_load(RULE.read_text())["spec"]["groups"]
        return groups

    def test_the_rule_object_is_generated_from_the_rule_files(self) -> None:
        """Run `make manual` when this fails."""
        assert prometheus_rule.manifest() == RULE.read_text(encoding="utf-8")

    def test_its_rules_are_those_of_the_files(self) -> None:
        """Each rule is unchanged and in order, and no group occurs twice."""
        names = [group["name"] for group in self.groups()]

        assert list(rules()) == [rule for group in self.groups() for rule in group["rules"]]
        assert len(set(names)) == len(names)

    def test_it_has_the_members_of_its_kind_and_no_others(self) -> None:
        """Its kind is of monitoring.coreos.com/v1; a misspelt member would be dropped."""
        rule = yaml.safe_load(RULE.read_text())

        assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
        assert set(rule) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(rule["spec"]) == {"groups"}
        for group in self.groups():
            assert {"name", "rules"} <= set(group) <= {"name", "interval", "rules"}
            for one in group["rules"]:
                alert = {"alert", "expr", "for", "labels", "annotations"}
                assert set(one) == {"record", "expr"} or {"alert", "expr"} <= set(one) <= alert
                assert all(isinstance(value, str) for value in {**one, "labels": "", "annotations": ""}.values())

    def test_it_has_the_metadata_of_the_monitor(self) -> None:
        """Whatever finds one by its name, namespace and labels finds the other."""
        assert yaml.safe_load(MONITOR.read_text())["metadata"] == yaml.safe_load(RULE.read_text())["metadata"]

    def test_it_can_be_applied(self) -> None:
        """kubectl stores the applied object in an annotation, and all annotations of an object may have 256 KiB."""
        assert len(json.dumps(yaml.safe_load(RULE.read_text()))) < 2**18

    @needs("promtool")
    def test_promtool_accepts_it(self, tmp_path: Path) -> None:
        """It reads the groups as the Prometheus Operator passes them on."""
        path = tmp_path / "rules.yml"
        path.write_text(yaml.safe_dump({"groups": self.groups()}))

        checked = subprocess.run(
            ["promtool", "check", "rules", "--lint=all", "--lint-fatal", path],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (checked.returncode, checked.stderr) == (0, "")


@needs("kubectl")
class TestKubectl:
    """The commands of an operator that need no cluster."""

    def test_the_directory_renders(self) -> None:
        """All objects of all files, unchanged; but Kustomize folds the lines of an expression in its own way."""
        rendered = {thing["kind"]: thing for thing in yaml.safe_load_all(kubectl("kustomize", "deploy/k8s"))}
        rule = rendered.pop("PrometheusRule")

        assert objects() | {"ServiceMonitor": yaml.safe_load(MONITOR.read_text())} == rendered
        assert json.dumps(yaml.safe_load(RULE.read_text()), sort_keys=True).replace("\\n", "") == json.dumps(
            rule, sort_keys=True
        ).replace("\\n", "")

    def test_an_overlay_labels_what_the_operator_selects(self, tmp_path: Path) -> None:
        """The overlay of README.md, from any folder: it labels the monitor and the rule, and nothing else."""
        [overlay] = re.findall(r"```yaml\n(resources: .*?)```", (K8S / "README.md").read_text(), re.DOTALL)
        (tmp_path / "kustomization.yaml").write_text(overlay.replace("../deploy/k8s", os.path.relpath(K8S, tmp_path)))

        rendered = list(yaml.safe_load_all(kubectl("kustomize", str(tmp_path))))

        labelled = {thing["kind"] for thing in rendered if "release" in thing["metadata"].get("labels", {})}
        assert labelled == {"ServiceMonitor", "PrometheusRule"}

    def test_a_new_image_is_set_where_it_belongs(self) -> None:
        """`kubectl set image deployment/mlsdm-api mlsdm-api=…`: the container has that name."""
        image = "ghcr.io/neuron7x/mlsdm-neuro-engine:1.0.1"
        changed = edited("set", "image", f"{APP}={image}")

        assert [each["image"] for each in changed["spec"]["template"]["spec"]["containers"]] == [image]

    def test_a_variable_is_set_where_it_belongs(self) -> None:
        """`kubectl set env deployment/mlsdm-api LOG_LEVEL=DEBUG`, and the service accepts it."""
        changed = edited("set", "env", "LOG_LEVEL=DEBUG")
        [names] = [each["env"] for each in changed["spec"]["template"]["spec"]["containers"]]

        assert {"name": "LOG_LEVEL", "value": "DEBUG"} in names
        assert load(None, environ() | {"LOG_LEVEL": "DEBUG"}).config.observability.logging.level == "DEBUG"

    def test_the_configmap_is_made_from_the_production_file(self, tmp_path: Path) -> None:
        """What `kubectl create configmap` makes has the name and the key that the pod mounts, and is the same
        configuration.
        """
        made = yaml.safe_load(
            kubectl(
                "create", "configmap", "mlsdm-config", "--from-file=config.yaml=config/production-ready.yaml",
                "-n", NAMESPACE, "--dry-run=client", "-o", "yaml",
            )
        )  # fmt: skip
        source = next(volume["configMap"] for volume in pod()["volumes"] if volume["name"] == "config")
        path = tmp_path / "config.yaml"
        path.write_text(made["data"][source["items"][0]["key"]])

        assert (source["name"], NAMESPACE) == (made["metadata"]["name"], made["metadata"]["namespace"])
        assert effective(production()) == effective(load(str(path), environ()).config)
