"""What is under deploy/ fits the APIs of Kubernetes and KServe, netloader, and each other.

It is looked at as `kubectl apply -k` would send it.
"""

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from netloader.vllm_plugin.config.settings import Settings
from tests.support import kubernetes_schema
from tests.support.kubernetes_schema import NEWEST, OLDEST

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDERS = ("kubernetes", "kserve/inference-service", "kserve/llm-inference-service", "llm-d")
POD_OF = {
    "Deployment": ("spec", "template", "spec"),
    "ServingRuntime": ("spec",),
    "LLMInferenceService": ("spec", "template"),
}
"""Where a kind has the containers with vLLM and their volumes."""

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="there is no kubectl here, which renders the manifests"
)

GUIDE: Any = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "decode", "labels": {"llm-d.ai/guide": "optimized-baseline"}},
    "spec": {
        "selector": {"matchLabels": {"llm-d.ai/role": "decode"}},
        "template": {
            "metadata": {"labels": {"llm-d.ai/role": "decode"}},
            "spec": {
                "containers": [
                    {
                        "name": "modelserver",
                        "image": "REPLACE_MODEL_SERVER_IMAGE",
                        "command": ["vllm", "serve"],
                        "args": ["some/model"],
                        "env": [{"name": "HF_HOME", "value": "/.cache"}],
                        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                    }
                ],
                "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            },
        },
    },
}
"""A Deployment with what those of llm-d's guides have that the component needs."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The resources of each folder."""
    place = tmp_path_factory.mktemp("deploy")
    shutil.copytree(DEPLOY, place / "deploy")
    guide = place / "guide"
    guide.mkdir()
    (guide / "guide.yaml").write_text(yaml.safe_dump(GUIDE))
    overlay = {"resources": ["guide.yaml"], "components": ["../deploy/llm-d"]}
    (guide / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    places = {name: place / "deploy" / name for name in FOLDERS} | {"llm-d": guide}
    return {name: list(_rendered(folder)) for name, folder in places.items()}


def _rendered(folder: Path) -> Iterator[Any]:
    ran = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return iter(yaml.safe_load_all(ran.stdout))


def one(resources: list[Any], *kinds: str) -> Any:
    (found,) = (r for r in resources if r["kind"] in kinds)
    return found


def weights(resources: list[Any]) -> Any:
    (found,) = (
        r for r in resources if r["metadata"]["name"] == "vllm-weights" and "ports" in r["spec"]
    )
    return found


def pod(resources: list[Any]) -> Any:
    """The specification of the pods with vLLM."""
    found = one(resources, *POD_OF)
    for name in POD_OF[found["kind"]]:
        found = found[name]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_api_takes_each_resource(
    folder: str, version: str, rendered: dict[str, list[Any]]
) -> None:
    for resource in rendered[folder]:
        kubernetes_schema.check(resource, version)


@pytest.mark.parametrize(
    ("folder", "kind", "path", "name"),
    [
        ("kubernetes", "Deployment", "spec.template.spec.containers.0", "readyProbe"),
        ("kubernetes", "NetworkPolicy", "spec.ingress.0", "source"),
        ("kserve/inference-service", "InferenceService", "spec.predictor.model", "storageUrl"),
        ("kserve/inference-service", "InferenceService", "metadata", "labelz"),
        ("kserve/inference-service", "ServingRuntime", "spec.containers.0", "readyProbe"),
        ("kserve/llm-inference-service", "LLMInferenceService", "spec.model", "url"),
        ("kserve/llm-inference-service", "LLMInferenceService", "spec.template", "volume"),
        ("llm-d", "Deployment", "spec.strategy.rollingUpdate", "maxDown"),
    ],
)
def test_a_field_that_the_api_does_not_have_is_noticed(
    folder: str, kind: str, path: str, name: str, rendered: dict[str, list[Any]]
) -> None:
    resource = copy.deepcopy(one(rendered[folder], kind))
    place = resource
    for step in path.split("."):
        place = place[int(step) if step.isdigit() else step]
    place[name] = {}
    with pytest.raises(ValidationError, match=name):
        kubernetes_schema.check(resource)


def test_a_field_of_another_type_and_one_that_is_missing_are_noticed(
    rendered: dict[str, list[Any]],
) -> None:
    service = one(rendered["kserve/llm-inference-service"], "LLMInferenceService")
    for model in ({"name": "llm"}, {"name": "llm", "uri": 7}):
        with pytest.raises(ValidationError, match=r"uri|7"):
            kubernetes_schema.check({**service, "spec": {**service["spec"], "model": model}})


def test_every_file_is_used() -> None:
    named = set()
    for path in DEPLOY.rglob("kustomization.yaml"):
        found = yaml.safe_load(path.read_text())
        files = [*found.get("resources", []), *found.get("configurations", [])]
        files += [patch["path"] for patch in found.get("patches", []) if "path" in patch]
        files += [file for each in found.get("configMapGenerator", []) for file in each["files"]]
        named |= {path, *(path.parent / file for file in files)}
    others = {DEPLOY / "Dockerfile", *(DEPLOY / "ray").rglob("*")}  # tests/e2e/test_ray.py
    assert {path for path in DEPLOY.rglob("*") if path.is_file()} <= named | others


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_downloads_the_model_before_the_engine_starts(
    folder: str, rendered: dict[str, list[Any]]
) -> None:
    assert "initContainers" not in pod(rendered[folder])
    for resource in rendered[folder]:
        predictor = resource.get("spec", {}).get("predictor", {})
        assert not {"storageUri", "storageUris", "storage"} & predictor.get("model", {}).keys()
        if resource["kind"] == "LLMInferenceService":
            assert resource["spec"]["model"]["uri"].startswith("pvc://")


@pytest.mark.parametrize("folder", FOLDERS)
def test_netloader_takes_the_configuration_that_the_engine_is_given(
    folder: str, rendered: dict[str, list[Any]], tmp_path: Path
) -> None:
    (container,) = pod(rendered[folder])["containers"]
    arguments = engine_arguments(container)
    assert arguments["--load-format"] == "netloader"
    path = Path(json.loads(arguments["--model-loader-extra-config"])["CONFIG_FILE"])
    mounted = {Path(m["mountPath"]): m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod(rendered[folder]).get("volumes", [])}
    generated = one(rendered[folder], "ConfigMap")
    assert volumes[mounted[path.parent]]["configMap"]["name"] == generated["metadata"]["name"]

    given = json.loads(generated["data"][path.name])
    secret = volumes[mounted[Path(given["AUTH_TOKEN_FILE"]).parent]]["secret"]
    assert secret["secretName"] == "netloader-token"
    token = tmp_path / "token"
    token.write_text("a token of 32 characters at least")
    assert Settings.parse({**given, "AUTH_TOKEN_FILE": str(token)})
    assert {"fieldRef": {"fieldPath": "status.podIP"}} in [
        each.get("valueFrom") for each in container["env"] if each["name"] == "VLLM_HOST_IP"
    ]


def engine_arguments(container: Any) -> dict[str, str]:
    """The options of vLLM, as it is given them; KServe has a shell evaluate a variable for it."""
    given = container.get("args")
    if given is None:
        (text,) = (e["value"] for e in container["env"] if e["name"] == "VLLM_ADDITIONAL_ARGS")
        script = "eval \"printf '%s\\n' ${VLLM_ADDITIONAL_ARGS} $@\""
        given = subprocess.run(
            ["bash", "-c", script, "--"],
            env={"VLLM_ADDITIONAL_ARGS": text},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout.splitlines()  # fmt: skip
    return dict(each.split("=", 1) for each in given if "=" in each)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_port_of_weights_is_the_same_everywhere(
    folder: str, rendered: dict[str, list[Any]]
) -> None:
    given = json.loads(one(rendered[folder], "ConfigMap")["data"]["netloader.json"])
    port = given["LISTEN_PORT"]
    (served,) = weights(rendered[folder])["spec"]["ports"]
    inside, outside = one(rendered[folder], "NetworkPolicy")["spec"]["ingress"]
    assert given["SOURCE"] == f"vllm-weights:{port}"
    assert (served["port"], served["targetPort"]) == (port, port)
    assert inside["ports"] == [{"port": port, "endPort": port + 7}]
    assert all(each["endPort"] < port or each["port"] > port + 7 for each in outside["ports"])
    assert "from" not in outside


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_name_and_the_rule_are_about_the_same_pods(
    folder: str, rendered: dict[str, list[Any]]
) -> None:
    chosen = weights(rendered[folder])["spec"]["selector"]
    policy = one(rendered[folder], "NetworkPolicy")["spec"]
    (source,) = policy["ingress"][0]["from"]
    assert chosen
    assert chosen == policy["podSelector"]["matchLabels"] == source["podSelector"]["matchLabels"]
    for resource in rendered[folder]:
        if resource["kind"] == "Deployment":
            labels = resource["spec"]["template"]["metadata"]["labels"]
            assert chosen.items() <= labels.items()


def test_kserve_does_not_take_the_name_of_weights_for_a_service_of_its_own(
    rendered: dict[str, list[Any]],
) -> None:
    service = weights(rendered["kserve/llm-inference-service"])
    assert not {*service["spec"]["selector"]} & {*service["metadata"].get("labels", {})}


def test_the_component_for_llm_d_adds_to_what_the_guide_has(
    rendered: dict[str, list[Any]],
) -> None:
    found = one(rendered["llm-d"], "Deployment")
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "vllm-netloader:latest"
    assert container["args"][0] == "some/model"
    assert found["spec"]["selector"] == GUIDE["spec"]["selector"]
    assert found["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
