"""`netloader fill`: have an instance on standby receive its weights, through its HTTP API."""

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlsplit

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, plain
from netloader.cli.codes import Code
from netloader.cli.options import Access
from netloader.config import Endpoint, Secret
from netloader.errors import cause
from netloader.io.clock import monotonic, unix_time
from netloader.secure.request_proof import FILL, HttpRequest
from netloader.secure.tokens import current
from netloader.units import counted, duration, rate, size

MOST_BYTES: Final = 1 << 20
"""Of an answer: a few hundred bytes for each rank."""
PROVE: Final = "give its token in --token-file or NETLOADER_TOKEN, or vLLM's API key in the latter"


def run(standby: str, sources: Sequence[str], wait_s: float, access: Access) -> Answer:
    """Fill an instance from sources, or from those that it knows.

    Raises:
        CommandError: it was not filled; why.
    """
    begun = monotonic()
    tokens = current(access.token)[:1]
    body = json.dumps({"source": list(sources)}).encode()
    status, text = _post(standby, body, wait_s, access, tokens)
    said = _document(text)
    why = _why(said)
    match status:
        case http.client.OK if said.get("state") == "filled":
            return _filled(standby, said, monotonic() - begun)
        case http.client.NOT_FOUND:
            problem = f"{standby} is no instance on standby; start it with `netloader standby`"
            raise CommandError(Code.REFUSED, problem)
        case http.client.UNAUTHORIZED:
            raise CommandError(Code.REFUSED, f"{standby} refuses: {why if tokens else PROVE}")
        case http.client.BAD_GATEWAY if "state" in said:
            raise CommandError(Code.FAILED, f"{standby} stays on standby: {why}")
        case _ if status >= http.client.INTERNAL_SERVER_ERROR:
            raise CommandError(Code.FAILED, f"{standby} answers {status}: {why}")
        case _ if not said or status == http.client.OK:
            problem = f"{standby} is no HTTP API of an instance on standby: it answers {status}"
            raise CommandError(Code.REFUSED, f"{problem}, and not what such an instance says")
        case _:
            raise CommandError(Code.REFUSED, f"{standby} answers {status}: {why}")


def _document(text: bytes) -> dict[str, Any]:
    """The object that an answer is; an empty one for anything else."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _why(said: Mapping[str, Any]) -> str:
    """The reason in an answer: of an instance, of OpenAI's API, of another server."""
    error = said.get("error")
    inside = error.get("message") if isinstance(error, dict) else error
    return str(said.get("why") or inside or said.get("detail") or "it gives no reason")


def _post(
    standby: str, body: bytes, wait_s: float, access: Access, tokens: Sequence[Secret]
) -> tuple[int, bytes]:
    """The status and the body of the answer to a request that proves each of the tokens, or none.

    Raises:
        CommandError: no server answers, or the answer is not HTTP.
    """
    place, secure = _place(standby)
    headers = {"Content-Type": "application/json"}
    for token in tokens:
        headers["Authorization"] = HttpRequest("POST", FILL, body).prove(token, unix_time())
    given: dict[str, Any] = {"timeout": wait_s}
    if secure:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            place.host, place.port, context=_context(access), **given
        )
    else:
        connection = http.client.HTTPConnection(place.host, place.port, **given)
    with closing(connection):
        try:
            connection.request("POST", FILL, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MOST_BYTES)
        except TimeoutError as error:
            problem = f"{standby} has not answered within {wait_s:g} s (--wait)"
            raise CommandError(Code.UNREACHABLE, problem) from error
        except OSError as error:
            raise CommandError(Code.UNREACHABLE, f"{standby}: {cause(error)}") from error
        except (http.client.HTTPException, ValueError) as error:
            problem = f"{standby} is no HTTP API of vLLM: {type(error).__name__}"
            raise CommandError(Code.REFUSED, problem) from error


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


def _filled(standby: str, said: Mapping[str, Any], seconds: float) -> Answer:
    ranks = said.get("ranks")
    each = [rank for rank in ranks if isinstance(rank, dict)] if isinstance(ranks, list) else []
    counts = [rank.get("bytes", 0) for rank in each]
    nbytes = sum(count for count in counts if isinstance(count, int))
    data = {"standby": standby, **said, "bytes": nbytes, "seconds": round(seconds, 3)}
    if not nbytes:
        return Answer(data, (plain(f"{standby} had its weights already"),))
    took = f"{duration(seconds)} ({rate(nbytes / max(seconds, 1e-9))})"
    count = counted(len(each), "rank")
    line = Text(f"{standby} is filled: {size(nbytes)} in {count} in {took}, verified")
    return Answer(data, (line,))
