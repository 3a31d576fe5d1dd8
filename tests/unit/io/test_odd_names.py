"""Names that are not UTF-8, as arguments and file names may be (PEP 383), raise nowhere."""

import os

import pytest

from netloader.fsm.identity import Identity
from netloader.fsm.messages import Description, Hello, Purpose, Reject
from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.describe import describe
from netloader.wire.frames import Decoder, encode
from tests.unit.io.helpers import Peer, asking, contents, hello, module_of, random, serving

ODD = os.fsdecode(b"mod\xffel")
SEEN = r"mod\udcffel"
NAMED = {"model": ODD, ODD: "x"}


@pytest.mark.parametrize(
    "message",
    [
        Hello((2,), Purpose.WEIGHTS, Identity(NAMED, NAMED), layouts=(ODD, "raw")),
        Description(Identity({"model": ODD}), {"path": ODD, ODD: ""}),
        Reject("busy", f"a detail with {ODD} and \ud800"),
    ],
)
def test_a_message_with_such_a_name_is_sent_with_escapes(message: Hello | Description) -> None:
    (heard,) = Decoder(1 << 16).feed(encode(message))
    assert type(heard) is type(message)
    assert SEEN in str(heard).replace("\\\\", "\\")


def test_a_model_and_tensors_with_such_names_are_served_and_filled() -> None:
    source, target = (
        module_of(**{ODD: random(50, seed=s), "w": random(9, seed=s)}) for s in (1, 2)
    )
    facts = {"path": ODD}
    with serving(source, NAMED, facts=facts) as server:
        found = describe([server.endpoint], Identity(NAMED), asking()).description
        outcome = fill(target, [server.endpoint], NAMED, asking())
    assert outcome.ok, outcome.history()
    assert contents(target) == contents(source)
    assert found is not None
    assert found.facts == {"path": SEEN}


def test_a_difference_in_such_a_name_is_a_refusal_that_shows_it() -> None:
    with serving(module_of(w=random(9)), {"model": ODD}) as server:
        outcome = fill(module_of(w=random(9)), [server.endpoint], {"model": "other"}, asking())
        with Peer.call(server.endpoint) as peer:
            peer.say(hello())
            assert isinstance(peer.hear(), Reject)
    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.IDENTITY_MISMATCH
    assert attempt.differences[0].theirs == SEEN
