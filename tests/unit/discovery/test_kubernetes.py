"""The pods of a Kubernetes service: those that are ready, with the credentials of a pod."""

from pathlib import Path

import pytest
from jsonschema import ValidationError

from netloader.discovery.base import DiscoveryError, Key
from netloader.discovery.kubernetes import MOST_SLICES, KubernetesService
from netloader.discovery.urls import finder_of
from tests.support.kubernetes_api import endpoint_slice, kubernetes
from tests.unit.io.helpers import SOON_S

KEY = Key("tiny", "0123")
READY, UNREADY = {"ready": True}, {"ready": False}
FOUR = [
    {"addresses": ["10.0.0.1"], "conditions": READY},
    {"addresses": ["10.0.0.2"], "conditions": UNREADY},
    {"addresses": ["10.0.0.3"], "conditions": {}},
    {"addresses": ["10.0.0.1"], "conditions": READY},
]
SLICES = [
    endpoint_slice("servers", FOUR, 20000),
    endpoint_slice("servers", [{"addresses": ["fd00::1"]}], 20000, "IPv6"),
    endpoint_slice("servers", [{"addresses": ["pod.example"]}], 20000, "FQDN"),
    endpoint_slice("others", [{"addresses": ["10.0.0.9"]}], 20000),
]
ODD = {**SLICES[0], "endpoints": [{"addresses": 7}]}


def found(account: Path, service: str = "servers") -> tuple[list[str], int]:
    answer = KubernetesService("fleet", service, account).find(KEY, SOON_S)
    return [str(candidate.endpoint) for candidate in answer.candidates], answer.unreadable


def test_the_ready_endpoints_of_the_service_are_sources_at_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kubernetes(tmp_path, SLICES, monkeypatch):
        places = ["10.0.0.1:20000", "10.0.0.3:20000", "[fd00::1]:20000"]
        assert found(tmp_path) == (places, 0)
        assert found(tmp_path, "nobody") == ([], 0)


def test_what_is_no_slice_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kubernetes(tmp_path, [ODD, SLICES[1]], monkeypatch, lambda _: None):
        assert found(tmp_path) == (["[fd00::1]:20000"], 1)


def test_the_api_here_gives_nothing_that_the_published_schema_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = kubernetes(tmp_path, [ODD], monkeypatch)
    with pytest.raises(ValidationError, match="7 is not of type 'array'"), served:
        found(tmp_path)


def test_the_first_page_of_a_long_list_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [
        endpoint_slice("servers", [{"addresses": [f"10.0.0.{number}"]}], 20000)
        for number in range(1, MOST_SLICES + 3)
    ]
    with kubernetes(tmp_path, many, monkeypatch):
        places, unreadable = found(tmp_path)
    assert places == [f"10.0.0.{number}:20000" for number in range(1, MOST_SLICES + 1)]
    assert unreadable == 0


def test_a_refusal_is_told_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kubernetes(tmp_path, SLICES, monkeypatch):
        with pytest.raises(DiscoveryError, match="403"):
            KubernetesService("elsewhere", "servers", tmp_path).find(KEY, SOON_S)
        (tmp_path / "token").write_text("hunter2")
        with pytest.raises(DiscoveryError, match="401") as raised:
            found(tmp_path)

    assert "hunter2" not in str(raised.value)


def test_outside_a_pod_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(DiscoveryError, match="in no pod"):
        finder_of("k8s://fleet/servers", 0).find(KEY, SOON_S)


@pytest.mark.parametrize("text", ["k8s://fleet", "k8s://fleet/", "k8s://a/b/c", "k8s://A/b"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"k8s://namespace/service|followed by"):
        finder_of(text, 0)
