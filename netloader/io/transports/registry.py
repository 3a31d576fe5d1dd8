"""Transports by name. `auto` chooses by capabilities."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from netloader.config import check_type
from netloader.io.transports.base import Transport
from netloader.log import Logger, emit

Load = Callable[[], Transport]
"""Makes a transport: it may import a library."""


class Registry:
    """The transports of a process. Safe to use from any thread.

    `built_in` come in order of preference. `installed` finds those of other packages, by name; it
    is asked once, when a name is not known or all are wanted. Transports that were registered come
    before those that are installed, and these before the built-in ones.
    """

    def __init__(
        self,
        built_in: Mapping[str, Load],
        installed: Callable[[], Mapping[str, Load]] = dict,
    ) -> None:
        self._built_in = dict(built_in)
        self._find_installed: Callable[[], Mapping[str, Load]] | None = installed
        self._installed: dict[str, Load] = {}
        self._registered: dict[str, Transport] = {}
        self._loaded: dict[str, Transport] = {}
        self._lock = threading.RLock()

    def register(self, transport: Transport) -> None:
        """Make a transport known; one of the same name is replaced.

        Raises:
            TypeError: it is no transport.
        """
        check_type("transport", transport, Transport, "give an object with all of its members")
        with self._lock:
            self._registered = {transport.name: transport, **self._registered}
            self._registered[transport.name] = transport

    @contextlib.contextmanager
    def registered(self, transport: Transport) -> Iterator[None]:
        """Make a transport known inside this block, for a test of it."""
        with self._lock:
            before = dict(self._registered)
            self.register(transport)
        try:
            yield
        finally:
            with self._lock:
                self._registered = before

    def known(self) -> tuple[str, ...]:
        """The names of all transports, whether they can be used here or not, in order."""
        return tuple(sorted(self._names()))

    def named(self, name: str) -> Transport:
        """The transport of a name.

        Raises:
            ValueError: there is none (the message names those there are), or it cannot be used
                here.
        """
        transport = self._load(name)
        if why := transport.obstacle():
            raise ValueError(f"the transport {name} cannot be used here: {why}")
        return transport

    def suited(self, device_type: str, logger: Logger) -> tuple[str, ...]:
        """Names of transports for memory of a type of device, best first; logs those left out.

        Those made for the type come first, then those for one host, if the memory is the host's,
        then those that go through host memory. A transport for one host that cannot be used is left
        out without a word: a sandbox may forbid it, and others do the same.
        """
        with self._lock:
            names = self._names()
        made_for_it: list[str] = []
        own_host: list[str] = []
        for_all: list[str] = []
        for name in names:
            try:
                capabilities = self._load(name).capabilities
                devices = capabilities.devices
                if not capabilities.automatic:
                    continue
                if devices is not None and device_type not in devices:
                    continue
                if capabilities.same_host:
                    if device_type == "cpu" and not self._load(name).obstacle():
                        own_host.append(name)
                    continue
                self.named(name)
            except ValueError as error:
                fields = {"netloader.transport": name, "netloader.detail": str(error)}
                emit(logger, "netloader.transport.left_out", fields)
            else:
                (for_all if devices is None else made_for_it).append(name)
        return (*made_for_it, *own_host, *for_all)

    def _names(self) -> Iterable[str]:
        with self._lock:
            if self._find_installed is not None:
                self._installed = dict(self._find_installed())
                self._find_installed = None
            return tuple({**self._registered, **self._installed, **self._built_in})

    def _load(self, name: str) -> Transport:
        with self._lock:
            if name in self._registered:
                return self._registered[name]
            if name not in self._loaded:
                load = self._built_in.get(name) or self._found(name)
                self._loaded[name] = load()
            return self._loaded[name]

    def _found(self, name: str) -> Load:
        names = self._names()
        if name not in self._installed:
            there = ", ".join(sorted(names))
            raise ValueError(f"no transport named {name!r}; there are: {there}")
        return self._installed[name]
