"""How the fields about security are read. No error shows a secret."""

from netloader.config import Place, each, network, text_line
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
