"""The proof of a token in an HTTP request: of this request, near this time, under this token."""

import hashlib
import hmac

import pytest

from netloader.config import Secret
from netloader.secure.request_proof import WINDOW_S, HttpRequest, ProofError

TOKEN = Secret("correct horse battery staple")
OTHER = Secret("another one of a fleet")
NOW = 1_700_000_000.5
REQUEST = HttpRequest("POST", "/netloader/fill", b'{"source": ["10.0.0.1:19374"]}')


def refused(header: str | bytes, request: HttpRequest = REQUEST, now_s: float = NOW) -> str:
    data = header if isinstance(header, bytes) else header.encode()
    with pytest.raises(ProofError) as raised:
        request.check(data, [OTHER, TOKEN], now_s)
    assert TOKEN.reveal() not in str(raised.value)
    return str(raised.value)


def test_the_proof_is_hmac_sha256_of_the_documented_bytes() -> None:
    digest = hashlib.sha256(REQUEST.body).hexdigest()
    told = f"l9:netloader12:http request4:POST15:/netloader/filli1700000000e64:{digest}e"
    proof = hmac.new(TOKEN.reveal().encode(), told.encode(), hashlib.sha256).hexdigest()
    header = f"Netloader-HMAC-SHA256 time=1700000000, proof={proof}"
    assert REQUEST.prove(TOKEN, NOW) == header
    for each in (
        header,
        header.replace(", ", ","),
        header.replace("Netloader-HMAC", "netloader-hmac"),
    ):
        REQUEST.check(each.encode(), [OTHER, TOKEN], NOW)


@pytest.mark.parametrize(
    "other",
    [
        HttpRequest("PUT", REQUEST.path, REQUEST.body),
        HttpRequest("POST", "/netloader/standby", REQUEST.body),
        HttpRequest("POST", REQUEST.path, b""),
    ],
)
def test_a_proof_is_for_one_request(other: HttpRequest) -> None:
    assert "is none of AUTH_TOKEN_FILE" in refused(REQUEST.prove(TOKEN, NOW), other)


def test_a_proof_under_another_token_is_none_and_a_changed_time_neither() -> None:
    assert "is none of" in refused(REQUEST.prove(Secret("not of this fleet"), NOW))
    later = REQUEST.prove(TOKEN, NOW - 1000).replace("1699999000", "1700000000")
    assert "is none of" in refused(later)


def test_a_proof_holds_for_some_minutes_and_an_old_one_tells_how_the_clocks_differ() -> None:
    for off in (-WINDOW_S + 1, WINDOW_S - 1):
        REQUEST.check(REQUEST.prove(TOKEN, NOW + off).encode(), [OTHER, TOKEN], NOW)
    assert "1000 s behind" in refused(REQUEST.prove(TOKEN, NOW - 1000))
    assert "1000 s ahead of" in refused(REQUEST.prove(TOKEN, NOW + 1000))
    assert "behind" not in refused(REQUEST.prove(Secret("not of this fleet"), NOW - 1000))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic dXNlcjpwYXNz",
        "Netloader-HMAC-SHA256",
        "Netloader-HMAC-SHA256 time=1700000000",
        f"Netloader-HMAC-SHA256 time={'9' * 13}, proof={'0' * 64}",
        f"Netloader-HMAC-SHA256 time=\N{ARABIC-INDIC DIGIT ONE}, proof={'0' * 64}",
        b"\xff\xfe \x00",
    ],
)
def test_a_header_that_proves_nothing_is_told_what_is_needed(header: str | bytes) -> None:
    assert "is needed" in refused(header)


def test_a_token_may_be_shown_and_is_compared_whole() -> None:
    unusual = Secret("a token with \N{LATIN SMALL LETTER E WITH ACUTE}")
    for token in (TOKEN, unusual):
        REQUEST.check(f"bearer {token.reveal()}".encode(), [OTHER, unusual, TOKEN], NOW)
    for shown in (TOKEN.reveal()[:-1], f"{TOKEN.reveal()}x", "", b"\xff".decode("latin-1")):
        assert "is none of" in refused(f"Bearer {shown}")
    assert "is none of" in refused(b"Bearer \xff")
