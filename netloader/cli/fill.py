"""`netloader fill`: have an instance on standby receive its weights, through its HTTP API."""

import http.client
import json
import ssl
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlsplit

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, plain
from netloader.cli.codes import Code
from netloader.cli.options import Access
from netloader.config import Endpoint
from netloader.errors import cause
from netloader.io.clock import monotonic
from netloader.secure.tokens import current
from netloader.units import counted, duration, rate, size
from netloader.vllm_plugin.front.gate import FILL

MOST_BYTES: Final = 1 << 20
"""Of an answer: a few hundred bytes for each rank."""
PROVE: Final = "give its token in --token-file or NETLOADER_TOKEN, or vLLM's API key in the latter"


def run(standby: str, sources: Sequence[str], wait_s: float, access: Access) -> Answer:
    """Fill an instance from sources, or from those that it knows.

    Raises:
        CommandError: it was not filled; why.
    """
    begun = monotonic()
    status, said = _post(standby, {"source": list(sources)}, wait_s, access)
    why = said.get("why") or said.get("error", {}).get("message") or "it gives no reason"
    match status:
        case http.client.OK:
            return _filled(standby, said, monotonic() - begun)
        case http.client.NOT_FOUND:
            problem = f"{standby} is no instance on standby; start it with `netloader standby`"
            raise CommandError(Code.REFUSED, problem)
        case http.client.UNAUTHORIZED:
            raise CommandError(Code.REFUSED, f"{standby} refuses: {PROVE}")
        case http.client.BAD_GATEWAY:
            raise CommandError(Code.FAILED, f"{standby} stays on standby: {why}")
        case _:
            raise CommandError(Code.REFUSED, f"{standby} answers {status}: {why}")


def _post(
    standby: str, document: dict[str, object], wait_s: float, access: Access
) -> tuple[int, dict[str, Any]]:
    place, secure = _place(standby)
    headers = {"Content-Type": "application/json"}
    if tokens := current(access.token):
        headers["Authorization"] = f"Bearer {tokens[0].reveal()}"
    given: dict[str, Any] = {"timeout": wait_s}
    if secure:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            place.host, place.port, context=_context(access), **given
        )
    else:
        connection = http.client.HTTPConnection(place.host, place.port, **given)
    with closing(connection):
        try:
            connection.request("POST", FILL, json.dumps(document), headers)
            answer = connection.getresponse()
            said = json.loads(answer.read(MOST_BYTES))
        except TimeoutError as error:
            problem = f"{standby} has not answered within {wait_s:g} s (--wait)"
            raise CommandError(Code.UNREACHABLE, problem) from error
        except OSError as error:
            why = cause(error)
            raise CommandError(Code.UNREACHABLE, f"{standby}: {why}") from error
        except (http.client.HTTPException, ValueError) as error:
            problem = f"{standby} is no HTTP API of vLLM: {type(error).__name__}"
            raise CommandError(Code.REFUSED, problem) from error
    return answer.status, said if isinstance(said, dict) else {}


def _place(text: str) -> tuple[Endpoint, bool]:
    """Where an HTTP API is, and whether it speaks TLS."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or parts.path.strip("/"):
        raise CommandError(Code.USAGE, "not an instance: write host:port or https://host:port")
    try:
        return Endpoint.parse(parts.netloc), parts.scheme == "https"
    except ValueError as error:
        raise CommandError(Code.USAGE, f"not an instance: {error}") from error


def _context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.tls_ca)
        if access.tls_cert is not None:
            context.load_cert_chain(access.tls_cert, access.tls_key)
    except OSError as error:
        problem = f"--tls-ca, --tls-cert, --tls-key: {error.strerror or error}"
        raise CommandError(Code.USAGE, problem) from error
    return context


def _filled(standby: str, said: dict[str, Any], seconds: float) -> Answer:
    ranks = said.get("ranks", [])
    nbytes = sum(each.get("bytes", 0) for each in ranks)
    data = {"standby": standby, **said, "bytes": nbytes, "seconds": round(seconds, 3)}
    if not nbytes:
        return Answer(data, (plain(f"{standby} had its weights already"),))
    took = f"{duration(seconds)} ({rate(nbytes / max(seconds, 1e-9))})"
    count = counted(len(ranks), "rank")
    line = Text(f"{standby} is filled: {size(nbytes)} in {count} in {took}, verified")
    return Answer(data, (line,))
