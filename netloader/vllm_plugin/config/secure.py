"""How the fields about security are read. No error shows a secret."""

from netloader.config import Place, each, network, text_line
from netloader.secure.tls import Tls
from netloader.secure.tokens import TokenFile
from netloader.vllm_plugin.config.readers import HIDDEN, file_text


def tokens(at: Place, value: object) -> TokenFile | None:
    """Read the path of a file with tokens, one a line."""
    if file_text(at, value, HIDDEN) is None:
        return None
    try:
        return TokenFile(str(value))
    except (OSError, ValueError) as error:
        at.refuse(HIDDEN, str(error))
        return None


def networks(at: Place, value: object) -> tuple[str, ...]:
    """Read a list of networks."""
    given: tuple[str | None, ...] = each(text_line)(at, value)
    for i, text in enumerate(given):
        try:
            network(text or "::")  # of one that is no text, `each` has noted it
        except ValueError as error:
            at.problems.append(f"{at.path}[{i}]: {error}")
    return tuple(text or "" for text in given)


def key_path(at: Place, value: object) -> str | None:
    """Read the path of a private key; what is none may be the key itself, and is not shown."""
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    at.refuse(HIDDEN, "give the path of a file")
    return None


def tls(at: Place, certificate: str | None, key: str | None, ca: str | None) -> Tls | None:
    """What TLS_CERT, TLS_KEY and TLS_CA make together; None where none of them is given."""
    if any(problem.startswith("TLS_") for problem in at.problems):
        return None  # what is missing may be what was refused
    if certificate is None:
        if key is not None or ca is not None:
            at.refuse(None, "every instance serves, so it needs a certificate: give TLS_CERT, too")
        return None
    try:
        return Tls(certificate, key, ca)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        at.problems.append(f"{at.path}: {why or error}")
        return None
