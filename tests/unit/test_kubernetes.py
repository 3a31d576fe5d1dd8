"""The manifests in deploy/kubernetes fit the API of Kubernetes, netloader, and each other."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from netloader.vllm_plugin.config.settings import Settings
from tests.support import kubernetes_schema
from tests.support.kubernetes_schema import NEWEST, OLDEST

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
RESOURCES = [
    resource
    for name in KUSTOMIZATION["resources"]
    for resource in yaml.safe_load_all((FOLDER / name).read_text())
]


def one(kind: str, name: str) -> Any:
    (found,) = (r for r in RESOURCES if (r["kind"], r["metadata"]["name"]) == (kind, name))
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "resource", RESOURCES, ids=lambda r: f"{r['kind']} {r['metadata']['name']}"
)
def test_the_api_takes_each_resource(resource: Any, version: str) -> None:
    kubernetes_schema.check(resource, version)


def test_a_field_that_the_api_does_not_have_is_noticed() -> None:
    resource = json.loads(json.dumps(one("Deployment", "vllm")))
    resource["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(ValidationError, match="readyProbe"):
        kubernetes_schema.check(resource)


def test_every_file_is_applied() -> None:
    generated = [f for c in KUSTOMIZATION["configMapGenerator"] for f in c["files"]]
    named = {"kustomization.yaml", *KUSTOMIZATION["resources"], *generated}
    assert named == {path.name for path in FOLDER.iterdir()}


def test_netloader_takes_the_configuration_that_the_engine_is_given(tmp_path: Path) -> None:
    (container,) = one("Deployment", "vllm")["spec"]["template"]["spec"]["containers"]
    (text,) = (a for a in container["args"] if a.startswith("--model-loader-extra-config="))
    path = Path(json.loads(text.partition("=")[2])["CONFIG_FILE"])
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert str(path.parent) == mounts["config"]

    given = json.loads((FOLDER / path.name).read_text())
    assert str(Path(given["AUTH_TOKEN_FILE"]).parent) == mounts["token"]
    token = tmp_path / "token"
    token.write_text("a token of 32 characters at least")
    assert Settings.parse({**given, "AUTH_TOKEN_FILE": str(token)})


def test_the_port_of_weights_is_the_same_everywhere() -> None:
    given = json.loads((FOLDER / "netloader.json").read_text())
    port = given["LISTEN_PORT"]
    (container,) = one("Deployment", "vllm")["spec"]["template"]["spec"]["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    (service,) = one("Service", "vllm-weights")["spec"]["ports"]
    policy = one("NetworkPolicy", "vllm")["spec"]["ingress"][0]["ports"][0]
    assert given["SOURCE"] == f"vllm-weights:{port}"
    assert (ports["weights"], service["port"], service["targetPort"]) == (port, port, "weights")
    assert policy["port"] == port
