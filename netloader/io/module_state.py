"""All that a module holds: tensors, and values beside them. What cannot be sent is an error.

What `state_dict()` has beside parameters and buffers (extra state, packed parameters, what hooks
add) becomes values: plain data as JSON, small tensors in it as their bytes, and views of tensors
that travel anyway as references to those. Nothing is pickled, and no received code is run.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from netloader.errors import WeightsError
from netloader.fsm.digest_choice import STRONG
from netloader.io.hidden import Found, dotted, look
from netloader.io.memory import memory_of
from netloader.io.store.digests import digest_of
from netloader.io.tensors import Named
from netloader.io.values import NotPlainError, decode, dtype_of, encode

INLINE_BYTES = 64 << 10
"""Tensors up to this size travel inside a value, so the client's may have another shape, or be None
still. Larger ones must be seen on the module, where they travel like any other tensor."""
VALUES_BYTES = 8 << 20
"""All values together: they are part of the offer, and a client takes one of 64 MiB."""

Key = tuple[int, torch.dtype, torch.Size, tuple[int, ...]]


class ModuleState:
    """What one look at a module found. The module is kept.

    Raises:
        WeightsError: something of it cannot travel.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: Found = look(module)
        self._inlined: set[Key] = set()
        self.values: tuple[tuple[str, str], ...] = self._encoded(self._inline)
        """Name and JSON of everything in the `state_dict()` that is no registered tensor."""
        if sum(len(text) for _, text in self.values) > VALUES_BYTES:
            largest = max(self.values, key=lambda value: len(value[1]))[0]
            raise WeightsError(f"{largest} is too large for what travels beside tensors; {_REMEDY}")
        self.named: list[Named] = self._travelling()
        """The tensors that travel on their own."""

    def canonical(self) -> tuple[tuple[str, str], ...]:
        """The values, each tensor as its dtype, shape and digest: equal for equal values."""
        return self._encoded(_digested)

    def put(self, values: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Give values to the module's `load_state_dict`; returns their canonical form.

        The tensors that they refer to must hold what was sent.

        Raises:
            ValueError: they were not written by `ModuleState`.
            Exception: whatever the module raises.
        """
        decoded = {name: decode(text, self._restored) for name, text in values}
        wanted = tuple((name, encode(value, _digested)) for name, value in decoded.items())
        for path, root in self.found.roots:
            own = root.state_dict(keep_vars=True)
            mine = {name: decoded.get(dotted(path, name), held) for name, held in own.items()}
            if any(mine[name] is not held for name, held in own.items()):
                root.load_state_dict(mine)
        return wanted

    def _encoded(self, tensor: Callable[[Tensor], Any]) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        for name, value in self._extras():
            try:
                found.append((name, encode(value, tensor)))
            except NotPlainError as error:
                why = str(error).replace("it is", "which is", 1)
                raise WeightsError(
                    f"{name} in the state_dict cannot travel: {why}; {_REMEDY}"
                ) from error
            except _TooLargeError as error:
                raise WeightsError(
                    f"{name} in the state_dict cannot travel: {error}; {_REMEDY}"
                ) from error
        return tuple(found)

    def _extras(self) -> Iterator[tuple[str, object]]:
        """What the state_dict has that is not the registered tensor of that name."""
        registered: dict[str, Tensor] | None = None
        for path, root in self.found.roots:
            if not any(map(_adds, root.modules())):
                continue
            if registered is None:
                registered = {n: t for n, t in self.found.tensors if n in self.found.registered}
            for name, value in root.state_dict(keep_vars=True).items():
                at = dotted(path, name)
                held = registered.get(at)
                if held is None or not isinstance(value, Tensor) or _key(held) != _key(value):
                    yield at, value

    def _inline(self, tensor: Tensor) -> Any:
        """A tensor of a value: which one that travels it is a view of, or its bytes."""
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise NotPlainError(f"it is a tensor that is {tensor.dtype}, {tensor.layout}")
        if reference := self._reference(tensor):
            return reference
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > INLINE_BYTES:
            raise _TooLargeError(f"it holds a tensor of {nbytes} bytes that is not on the module")
        self._inlined.add(_key(tensor))
        elements = base64.b64encode(_bytes_of(tensor)).decode()
        return ["bytes", str(tensor.dtype).removeprefix("torch."), list(tensor.shape), elements]

    def _reference(self, tensor: Tensor) -> Any:
        small = tensor.numel() * tensor.element_size() <= INLINE_BYTES
        for name, whole in self._by_storage().get(tensor.untyped_storage().data_ptr(), ()):
            if small and name not in self.found.registered:
                continue
            offset = tensor.storage_offset() - whole.storage_offset()
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            end = offset + sum((size - 1) * step for size, step in steps)
            if (
                whole.dtype == tensor.dtype
                and whole.is_contiguous()
                and 0 <= offset <= end < whole.numel()
            ):
                return ["view", name, list(tensor.shape), list(tensor.stride()), offset]
        return None

    def _by_storage(self) -> dict[int, list[Named]]:
        by_storage: dict[int, list[Named]] = {}
        for name, tensor in self.found.tensors:
            if tensor.layout == torch.strided and not tensor.is_meta:
                by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(
                    (name, tensor)
                )
        return by_storage

    def _restored(self, form: Any) -> Tensor:
        match form:
            case ["bytes", str(dtype), list(shape), str(elements)]:
                plain = torch.frombuffer(bytearray(base64.b64decode(elements)), dtype=torch.uint8)
                return plain.view(dtype_of(dtype)).reshape(shape)
            case ["view", str(name), list(shape), list(stride), int(offset)]:
                whole = dict(self.found.tensors)[name].detach()
                return whole.as_strided(shape, stride, whole.storage_offset() + offset)
        raise TypeError("not a tensor that netloader encoded")

    def _travelling(self) -> list[Named]:
        if not self._inlined:
            return self.found.tensors
        registered = self.found.registered
        return [
            (name, tensor)
            for name, tensor in self.found.tensors
            if name in registered or _key(tensor) not in self._inlined
        ]


_REMEDY = (
    "keep plain data there (None, bool, int, float, str, bytes, list, tuple, dict) and small"
    " tensors, and large tensors in registered buffers"
)


class _TooLargeError(Exception):
    """A tensor that is not sent inside a value."""


def _adds(part: nn.Module) -> bool:
    """Whether a module's state_dict may have more than its parameters and persistent buffers."""
    kind = type(part)
    return bool(part._state_dict_hooks or part._state_dict_pre_hooks) or (  # noqa: SLF001
        kind._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001
        or kind.get_extra_state is not nn.Module.get_extra_state
        or kind.state_dict is not nn.Module.state_dict
    )


def _key(tensor: Tensor) -> Key:
    address = 0 if tensor.is_meta or tensor.layout != torch.strided else tensor.data_ptr()
    return (address, tensor.dtype, tensor.shape, tuple(tensor.stride()) if address else ())


def _bytes_of(tensor: Tensor) -> bytes:
    elements = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(memory_of(elements.view(torch.uint8))) if elements.numel() else b""


def _digested(tensor: Tensor) -> Any:
    digest = digest_of(STRONG, [memoryview(_bytes_of(tensor))])
    return [str(tensor.dtype), list(tensor.shape), digest]
