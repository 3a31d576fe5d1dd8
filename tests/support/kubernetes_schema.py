"""Whether a document is what Kubernetes takes or answers, by the schemas that it publishes.

`kubernetes-validate` brings them. In them an object has no field that its schema does not name.
"""

from collections.abc import Mapping
from functools import cache
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


def check(document: Mapping[str, Any], version: str = NEWEST) -> None:
    """That the API of this version has such a document.

    Raises:
        jsonschema.ValidationError: it has not; the message names what is wrong.
        FileNotFoundError: there is no schema of its kind.
    """
    kind = document["kind"]
    group, _, of_group = document["apiVersion"].rpartition("/")
    group = "meta" if kind in OF_NO_GROUP else group.partition(".")[0]
    name = "-".join(part for part in (kind.lower(), group, of_group) if part)
    Draft202012Validator(schema(name, version), registry=definitions(version)).validate(document)


def schema(name: str, version: str) -> Any:
    """The file of that name, as `kubernetes-validate` has it."""
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    return schema_contents(f"{folder}/{name}.json", version)


@cache
def definitions(version: str) -> Registry[Any]:
    """What the schemas of that version refer to."""
    return Registry().with_resources([_named(schema("_definitions", version))])


def _named(contents: Any) -> tuple[str, Resource[Any]]:
    found = Resource.from_contents(contents)
    return str(found.id()), found
