"""Where the sources of one fetch are: endpoints by number."""

from collections.abc import Iterable

from netloader.config import Endpoint


class Directory:
    """Endpoints in the order in which they are to be asked; the index is the number of a source.

    What is known already is not taken up when a source names it, nor is what is in `never`: the
    client's own endpoint, and those that are silent. Not thread-safe.
    """

    def __init__(self, endpoints: Iterable[Endpoint], never: Iterable[Endpoint] = ()) -> None:
        self._endpoints = [*endpoints]
        self._known = {*self._endpoints, *never}

    def __len__(self) -> int:
        return len(self._endpoints)

    def __getitem__(self, number: int) -> Endpoint:
        return self._endpoints[number]

    def take_up(self, named: Iterable[Endpoint], room: int) -> tuple[int, ...]:
        """Add the endpoints that were not known, at most `room` of them; their numbers."""
        begin = len(self)
        for endpoint in named:
            if len(self) - begin < room and endpoint not in self._known:
                self._known.add(endpoint)
                self._endpoints.append(endpoint)
        return tuple(range(begin, len(self)))
