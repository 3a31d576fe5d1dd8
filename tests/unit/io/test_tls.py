"""TLS on every connection: who is who, and what each side says when that is not clear."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netloader.config import Endpoint, Secret
from netloader.fsm.messages import Lane, Offer, Reject
from netloader.fsm.reasons import Reason
from netloader.io import ClientOptions, Outcome, ServerOptions
from netloader.log import capture
from netloader.secure.tls import Tls
from netloader.wire.frames import encode
from tests.support.pki import Authority
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    MIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    hello,
    module_of,
    random,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
INSECURE = "netloader.listener.insecure"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the fleet."""
    return Authority(tmp_path_factory.mktemp("ours")).make()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority."""
    return Authority(tmp_path_factory.mktemp("theirs"), "other").make()


@pytest.fixture(scope="module")
def server_side(ours: Authority) -> Tls:
    """A server that asks for certificates."""
    return ours.tls("server")


@pytest.fixture(scope="module")
def client_side(ours: Authority) -> Tls:
    """A client with a certificate."""
    return ours.tls("client", "DNS:client.invalid")


class Wiretap:
    """Passes the bytes of every connection on, and keeps those that the server sends."""

    def __init__(self, listening: socket.socket, server: Endpoint, heard: bytearray) -> None:
        self._listening, self._server, self._heard = listening, server, heard
        self._socks: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection((self._server.host, self._server.port), SOON_S)
                self._socks += [near, far]
                for ends in ((near, far, None), (far, near, self._heard)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, to: socket.socket, heard: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(64 * 1024):
                if heard is not None:
                    heard += data
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close what it has accepted."""
        self._listening.close()
        for sock in self._socks:
            sock.close()


def tried(at: Endpoint, tls: Tls | None, **options: Any) -> Outcome:
    return fill(zoo(2), [at], IDENTITY, asking(tls=tls, **options))


def why(at: Endpoint, tls: Tls | None) -> str:
    """What a client says that gets nothing."""
    outcome = tried(at, tls)
    assert not outcome.ok
    assert not outcome.weights_dirty
    return outcome.attempts[0].detail


def test_weights_arrive_over_tls_with_a_token_on_every_lane(
    server_side: Tls, client_side: Tls
) -> None:
    source = module_of(w=random(3 * MIB, seed=1), b=random(7, seed=2))
    target = module_of(w=random(3 * MIB, seed=3), b=random(7, seed=4))
    token = Secret("a token of sixteen characters")
    with serving(source, tls=server_side, token=token, segment_bytes=MIB) as server:
        options = asking(tls=client_side, token=token, lanes=3)
        outcome = fill(target, [server.endpoint], IDENTITY, options)
    assert outcome.ok, outcome.history()
    assert contents(target) == contents(source)


def test_lanes_over_other_interfaces_of_the_source_have_tls_with_the_name_that_was_dialled(
    server_side: Tls, client_side: Tls
) -> None:
    source, target = module_of(w=random(3 * MIB, seed=1)), module_of(w=random(3 * MIB, seed=3))
    rails: dict[str, Any] = {"rails": ("127.0.0.2", "127.0.0.3")}
    with serving(source, host="", tls=server_side, segment_bytes=MIB, **rails) as server:
        at = Endpoint("127.0.0.1", server.endpoint.port)
        outcome = fill(target, [at], IDENTITY, asking(tls=client_side, lanes=2, **rails))
    assert outcome.ok, outcome.history()
    assert contents(target) == contents(source)


def test_nothing_of_a_session_can_be_read_on_the_way(server_side: Tls, client_side: Tls) -> None:
    heard, source, target = (
        bytearray(),
        module_of(w=random(1 << 16, seed=1)),
        module_of(w=random(1 << 16, seed=2)),
    )
    weights = contents(source)["w"]
    with serving(source, tls=server_side) as server, ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.callback(Wiretap(listening, server.endpoint, heard).close)
        at = Endpoint("127.0.0.1", listening.getsockname()[1])
        assert fill(target, [at], IDENTITY, asking(tls=client_side, lanes=1)).ok
    assert contents(target) == contents(source)
    assert len(heard) > len(weights)
    for word in (b"NETL", b"tiny", b"digest", weights[:8], weights[-8:]):
        assert word not in heard


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"days": -1}, "has expired"),
        ({"host": "DNS:elsewhere.invalid,IP:192.0.2.1"}, "is for another host"),
        ({"host": "DNS:127.0.0.1"}, "is for another host"),
    ],
)
def test_a_server_with_a_certificate_that_is_not_good_is_left(
    ours: Authority, client_side: Tls, flaw: dict[str, object], said: str
) -> None:
    bad = ours.tls("flawed", **flaw)  # type: ignore[arg-type]
    with serving(zoo(1), tls=bad) as server:
        assert said in why(server.endpoint, client_side)


def test_a_server_of_another_authority_is_left_and_both_sides_say_so(
    theirs: Authority, client_side: Tls
) -> None:
    with capture() as lines, serving(zoo(1), tls=theirs.tls("server")) as server:
        assert "an authority that TLS_CA does not have" in why(server.endpoint, client_side)
        assert eventually(lambda: [line for line in lines if line["event"] == INSECURE])
        [line] = [line for line in lines if line["event"] == INSECURE]
        assert "the peer refuses this side (unknown ca)" in line["netloader.detail"]
        assert line["network.peer.address"] == "127.0.0.1"


def test_a_client_that_does_not_know_the_authority_of_its_own_server_trusts_nobody(
    server_side: Tls,
) -> None:
    with serving(zoo(1), tls=server_side) as server:
        assert "an authority that TLS_CA does not have" in why(server.endpoint, Tls())


@pytest.mark.parametrize("flaw", ["none", "expired", "another authority"])
def test_a_client_must_have_a_good_certificate_where_the_server_has_an_authority(
    ours: Authority, theirs: Authority, server_side: Tls, flaw: str
) -> None:
    clients = {
        "none": lambda: Tls(ca=ours.pem),
        "expired": lambda: ours.tls("late", days=-1),
        "another authority": lambda: Tls(*theirs.issue("stranger"), ours.pem),
    }
    said = {
        "none": ("certificate required", "the peer has no certificate; set TLS_CERT"),
        "expired": ("certificate expired", "the certificate of the peer has expired"),
        "another authority": ("unknown ca", "from an authority that TLS_CA does not have"),
    }
    with capture() as lines, serving(zoo(1), tls=server_side) as server:
        assert said[flaw][0] in why(server.endpoint, clients[flaw]())
        assert eventually(lambda: [line for line in lines if line["event"] == INSECURE])
        [line] = [line for line in lines if line["event"] == INSECURE]
        assert said[flaw][1] in line["netloader.detail"]
        assert all(model.clients == 0 for model in server.snapshot().models)


def test_without_an_authority_a_server_takes_clients_without_certificates(ours: Authority) -> None:
    with serving(zoo(1), tls=Tls(*ours.issue("open"))) as server:
        assert tried(server.endpoint, Tls(ca=ours.pem)).ok


def test_a_plain_client_is_told_that_the_server_takes_tls_only(server_side: Tls) -> None:
    with serving(zoo(1), tls=server_side) as server:
        attempt = tried(server.endpoint, None).attempts[0]
        assert attempt.reason is Reason.TLS_REQUIRED
        assert "set TLS_CA" in attempt.detail
        with Peer.call(server.endpoint) as peer:
            peer.say(Lane("no such session", 0))
            answer = peer.hear()
            assert isinstance(answer, Reject)
            assert answer.reason == Reason.TLS_REQUIRED.value


def test_a_client_with_tls_says_so_where_the_server_is_plain_and_so_does_the_server(
    client_side: Tls,
) -> None:
    with capture() as lines, serving(zoo(1)) as server:
        assert "does not speak TLS" in why(server.endpoint, client_side)
        assert eventually(lambda: [1 for x in lines if x["event"] == "netloader.peer.violation"])
        [line] = [x for x in lines if x["event"] == "netloader.peer.violation"]
        assert "a TLS handshake, and this side has no TLS" in line["netloader.detail"]


def test_certificates_are_replaced_while_the_server_runs(
    theirs: Authority, client_side: Tls, tmp_path: Path
) -> None:
    ours = Authority(tmp_path).make()
    pem, key = ours.issue("first", days=-1)
    server_side, client_side = Tls(pem, key), Tls(ca=ours.pem)
    with serving(zoo(1), tls=server_side) as server:
        assert "has expired" in why(server.endpoint, client_side)
        second, second_key = ours.issue("second")
        with capture() as lines:
            second_key.replace(key)
            server_side.server()  # a key without its certificate: the pair before stays in force
            second.replace(pem)
            assert tried(server.endpoint, client_side).ok
    told = [line["event"] for line in lines if line["event"].startswith("netloader.secret")]
    assert told == ["netloader.secret.unreadable", "netloader.secret.reloaded"]
    assert "BEGIN" not in str(lines)


def test_a_flood_of_handshakes_that_do_not_end_keeps_nobody_out(
    server_side: Tls, client_side: Tls
) -> None:
    begun = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with serving(zoo(1), tls=server_side) as server, ExitStack() as stack:
        for _ in range(300):
            at = (server.endpoint.host, server.endpoint.port)
            idle = stack.enter_context(socket.create_connection(at, SOON_S))
            idle.sendall(begun)
        assert tried(server.endpoint, client_side).ok


def test_a_client_gives_up_a_server_that_is_silent_in_the_handshake(client_side: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = Endpoint("127.0.0.1", silent.getsockname()[1])
        options = asking(tls=client_side, deadlines=replace(FAST, handshake_s=0.2))
        attempt = fill(zoo(2), [at], IDENTITY, options).attempts[0]
    assert attempt.reason is Reason.UNREACHABLE
    assert "no answer in the handshake" in attempt.detail


def test_what_comes_in_one_record_with_the_first_frame_is_not_left_there(
    ours: Authority,
) -> None:
    with serving(zoo(1), tls=Tls(*ours.issue("plain"))) as server:
        context = ssl.create_default_context(cafile=str(ours.pem))
        at = (server.endpoint.host, server.endpoint.port)
        raw = socket.create_connection(at, SOON_S)
        with Peer(context.wrap_socket(raw, server_hostname="127.0.0.1")) as peer:
            peer.sock.sendall(encode(hello()) * 2)  # the second is a violation: it was read
            answer = peer.hear()
            if isinstance(answer, Offer):  # it may have been ready before the second was read
                answer = peer.hear()
    assert isinstance(answer, Reject)
    assert answer.reason == Reason.PROTOCOL_VIOLATION.value


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("-tls1_3",), "TLSv1.3"),
        (("-tls1_2",), "alert protocol version"),
        (("-no_cert",), "certificate required"),
    ],
)
def test_openssl_s_own_client_sees_what_the_manual_says(
    ours: Authority, server_side: Tls, extra: tuple[str, ...], said: str
) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no command openssl here")
    pem, key = ours.issue("s_client")
    own = () if extra == ("-no_cert",) else ("-cert", str(pem), "-key", str(key))
    wanted = tuple(word for word in extra if word != "-no_cert")
    with serving(zoo(1), tls=server_side) as server:
        done = subprocess.run(
            [
                *(program, "s_client", "-connect", str(server.endpoint), "-CAfile", str(ours.pem)),
                *("-ign_eof", "-verify_return_error", "-verify_ip", "127.0.0.1", *own, *wanted),
            ],
            input=encode(hello()) * 2,  # a violation, so the server ends it
            capture_output=True,
            timeout=60,
            check=False,
        )
    shown = (done.stdout + done.stderr).decode(errors="replace")
    assert said in shown
    if extra == ("-tls1_3",):
        assert "Verify return code: 0 (ok)" in shown
        assert "NETL" in shown


# -- options ---------------------------------------------------------------------------------------


def test_with_tls_nothing_goes_over_a_transport_in_the_clear_unless_it_is_named(
    server_side: Tls,
) -> None:
    assert ServerOptions(tls=server_side).transports == ("tcp",)
    assert ClientOptions(tls=server_side).transports == ("tcp",)
    assert ClientOptions(tls=server_side, transports=("gloo",)).transports == ("gloo",)


def test_what_cannot_be_used_is_refused_with_its_file_and_no_key_is_shown(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    (pem, key), (_, other_key) = ours.issue("good"), theirs.issue("foreign")
    none, words = tmp_path / "none.pem", tmp_path / "words.pem"
    words.write_text("no certificate")
    with pytest.raises(ValueError, match="key values mismatch"):
        Tls(pem, other_key)
    with pytest.raises(ValueError, match=r"words\.pem with its key cannot be used"):
        Tls(words)
    with pytest.raises(ValueError, match=r"the authorities in .*words\.pem cannot be used"):
        Tls(ca=words)
    with pytest.raises(OSError, match=r"none\.pem cannot be read: No such file"):
        Tls(ca=none)
    with pytest.raises(ValueError, match="there is a key, and no certificate"):
        Tls(key=key)
    with pytest.raises(ValueError, match="tls has no certificate; a server needs one"):
        ServerOptions(tls=Tls(ca=ours.pem))
    assert repr(Tls(pem, key)) == f"Tls('{pem}', '{key}', None)"
