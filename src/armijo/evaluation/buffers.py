"""The buffers of the modules that run in a forward pass (layer L2).

BatchNorm's running statistics, spectral norm's vectors, moving-average codebooks and quantisation observers change in
every forward. They are copied *before* the forward that meets them, without comparing values and without waiting for
a device, and put back for each trial.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Buffers"]


class Buffers:
    """What modules held at one moment: which tensors under which names, and the values of those tensors."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[Module, dict[str, torch.Tensor | None]]] = {}
        self._values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, module: Module) -> None:
        """Copy the buffers of a module and of everything inside it, unless they were copied already."""
        # A buffer that views a parameter belongs to the search: put back, it would undo a trial's move.
        parameters = {_memory(parameter) for parameter in module.parameters()} - {None}
        for inner in module.modules():
            if id(inner) not in self._names:
                self._names[id(inner)] = (inner, dict(inner._buffers))
                for buffer in inner._buffers.values():
                    if buffer is not None and _memory(buffer) not in parameters:
                        self._keep(buffer)

    def _keep(self, buffer: torch.Tensor) -> None:
        # Nothing writes an inference tensor in place. Inside torch.func transforms there is only a wrapper, which must
        # not outlive them.
        if not (buffer.is_inference() or _is_wrapped(buffer) or id(buffer) in self._values):
            self._values[id(buffer)] = (buffer, buffer.detach().clone())

    @contextmanager
    def watching(self, modules: Iterable[Module] | None = None) -> Iterator[None]:
        """Copy the buffers of every module whose forward runs in this context, just before it runs.

        Args:
            modules: the modules to copy instead, at once; no hook is set then.
        """
        if modules is not None:
            for module in modules:
                self.add(module)
            yield
            return
        thread = threading.get_ident()

        def look(module: Module, _inputs: object) -> None:
            # The hook is everybody's: what another thread runs meanwhile is no part of this forward. The outermost
            # module's hook runs first and copies everything inside, so for inner ones this is one look-up.
            if threading.get_ident() == thread and id(module) not in self._names:
                self.add(module)

        handle = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()

    def current(self) -> Buffers:
        """The same modules' buffers, and the same tensors, as they are now."""
        now = Buffers()
        for module, _ in self._names.values():
            now.add(module)
        for buffer, _ in self._values.values():
            now._keep(buffer)
        return now

    @torch.no_grad()
    def restore(self) -> None:
        """Put every buffer back: the tensor objects, should a forward have replaced or added some, and their values."""
        for module, names in self._names.values():
            if isinstance(module._buffers, dict):  # a scripted module's are bound for good
                module._buffers.clear()
                module._buffers.update(names)
        # Backwards, because of two tensors on one storage the later may have been copied after a change of the first.
        for buffer, copy in reversed(self._values.values()):
            if buffer.shape != copy.shape:  # observers take their shape from the first batch
                buffer.resize_(copy.shape)
            if not _untouched(buffer, copy):
                buffer.copy_(copy)


def _untouched(buffer: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether there is surely nothing to put back, and on a GPU without waiting for it."""
    if buffer.layout is not torch.strided or buffer.is_nested:
        return False
    # Nothing can have written in place where one element stands for many.
    if any(step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)):
        return True
    # A buffer may be a file mapped into memory for reading, where a write would end the process.
    plain = type(buffer) is torch.Tensor and buffer.device.type == "cpu" and buffer.is_contiguous()
    return plain and torch.equal(buffer.view(-1).view(torch.uint8), copy.view(-1).view(torch.uint8))


def _is_wrapped(tensor: torch.Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def _memory(tensor: torch.Tensor) -> int | None:
    """Where a tensor's numbers lie; None where that cannot be told or nothing lies there."""
    if _is_wrapped(tensor) or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # lazy, fake and wrapped tensors
        return None
