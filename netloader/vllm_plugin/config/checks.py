"""Check at start the settings that only vLLM or a transport can judge.

`settings` imports neither, so that it stays a parser; the values it has read are tried here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm.config import replace as replace_config
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from netloader.config import shown
from netloader.fsm.digest_choice import flaw_of
from netloader.io.publishing import too_slow
from netloader.io.store.digests import ALGORITHMS
from netloader.io.transports import named as transport_named
from netloader.vllm_plugin.config.readers import EVERY, HIDDEN, Fallback
from netloader.vllm_plugin.config.settings import (
    AUTO,
    RELAYED_OVER,
    LayoutChoice,
    Settings,
)

SECRET_CHARS = 4
"""Shorter values of a loader's extra config may be ordinary words."""


def settings_of(load_config: LoadConfig) -> Settings:
    """The operator's settings, tried as far as that can be done without side effects.

    Raises:
        ConfigError: it lists every problem.
    """
    extra = load_config.model_loader_extra_config
    return Settings.parse(extra, lambda options: _problems(load_config, options))


def loader_of(
    load_config: LoadConfig, load_format: str, extra: Mapping[str, Any]
) -> BaseModelLoader:
    """The loader that vLLM has for a format, with an extra config of its own."""
    changes = {"load_format": load_format, "model_loader_extra_config": dict(extra)}
    return get_model_loader(replace_config(load_config, **changes))


def _problems(load_config: LoadConfig, options: Mapping[str, Any]) -> Iterator[str]:
    transport = options["transport"]
    if transport not in (None, AUTO):
        try:
            transport_named(transport)
        except ValueError as error:
            yield f"TRANSPORT: {error}"
    digest = options["digest"]
    if digest is not None and (flaw := flaw_of(digest, ALGORITHMS)):
        yield f"DIGEST: {shown(digest)} cannot be computed here; {flaw}"
    fallback = options["fallback"]
    if fallback is not None:
        try:
            loader_of(load_config, fallback.load_format, fallback.extra)
        except Exception as error:  # noqa: BLE001 - whatever a loader raises, it cannot be used
            why = _without_secrets(f"{type(error).__name__}: {error}", fallback)
            yield (
                f"FALLBACK: {shown(fallback.load_format)} cannot be used; give a load format that "
                f"vLLM has, and a model_loader_extra_config that it takes: {why}"
            )
    if options["relay"]:
        yield from _relay_problems(transport, options["layout"])
    if options["standby"] and options["layout"] is LayoutChoice.PROCESSED:
        yield (
            "STANDBY: true, but a model is filled in place from the raw layout only, and LAYOUT is "
            "'processed'; set LAYOUT to auto or raw, or STANDBY to false"
        )
    yield from _rate_problems(options)
    if options["rails"] and options["listen_host"] != EVERY:
        yield f"RAILS: a rank listens at one address; set LISTEN_HOST to {EVERY!r}, every address"
    yield from _log_problems(options["log_json"])


def _relay_problems(transport: str | None, layout: LayoutChoice | None) -> Iterator[str]:
    """What leaves a relay nothing to do."""
    if transport not in (None, AUTO, *RELAYED_OVER):
        yield (
            f"RELAY: true, but what is received is served over tcp only, and TRANSPORT is "
            f"{shown(transport)}; set TRANSPORT to auto or tcp, or RELAY to false"
        )
    if layout is LayoutChoice.PROCESSED:
        yield (
            "RELAY: true, but only weights in the raw layout are served while they are received, "
            "and LAYOUT is 'processed'; set LAYOUT to auto or raw, or RELAY to false"
        )


def _rate_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """What would have a server end its own transfers."""
    clients, least = options["max_clients"], options["min_rate_bytes_per_s"]
    for name in ("max_bandwidth", "max_bandwidth_busy"):
        rate = options[name]
        if rate and clients and least and (why := too_slow(rate, clients, least)):
            yield f"{name.upper()}: {why}"


def _without_secrets(text: str, fallback: Fallback) -> str:
    """What a loader says of its extra config, without the values in it: they may be credentials."""
    for value in _leaves(fallback.extra):
        text = text.replace(value, str(HIDDEN))
    return " ".join(text.split())[:300]


def _leaves(value: object) -> Iterator[str]:
    match value:
        case Mapping():
            for item in value.values():
                yield from _leaves(item)
        case list() | tuple():
            for item in value:
                yield from _leaves(item)
        case bool() | None:
            pass
        case _ if len(str(value)) >= SECRET_CHARS:
            yield str(value)


def _log_problems(target: str | None) -> Iterator[str]:
    """Nothing is opened yet: the constructor only looks."""
    if target in (None, "stderr"):
        return
    path = Path(str(target))
    if path.is_dir():
        yield f"LOG_JSON: {shown(target)} is a folder; give the path of a file, or `stderr`"
    elif not path.parent.is_dir():
        yield f"LOG_JSON: the folder of {shown(target)} does not exist; make it, or give another"
