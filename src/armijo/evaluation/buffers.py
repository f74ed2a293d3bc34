"""The buffers of the modules that run in a forward pass, and whether they train.

BatchNorm's running statistics, spectral norm's vectors, moving-average codebooks and quantisation observers change in
every forward. They are copied *before* the forward that meets them, without comparing values and without waiting for
a device, and put back for each trial.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Buffers"]


class Buffers:
    """What modules held at one moment: which tensors under which names, and the values of those tensors."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[Module, dict[str, torch.Tensor | None]]] = {}
        # A closure that ends with model.eval() would have its trials in that mode.
        self._modes: list[tuple[Module, bool]] = []
        self._values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # Whether DistributedDataParallel will send buffers round at its next forward. A forward without gradients
        # takes that back: trials would differ from the baseline, and buffers drift apart for good.
        self._sent_round: list[tuple[DistributedDataParallel, bool]] = []

    def add(self, module: Module) -> None:
        """Copy the buffers of a module and of everything inside it, unless they were copied already."""
        # A buffer that views a parameter belongs to the search: put back, it would undo a trial's move.
        owned: dict[int, list[tuple[int, int]]] = {}
        for parameter in module.parameters():
            if place := _memory(parameter):
                owned.setdefault(place[0], []).append(place[1:])
        for inner in module.modules():
            if id(inner) not in self._names:
                self._names[id(inner)] = (inner, dict(inner._buffers))
                self._modes.append((inner, inner.training))
                if isinstance(inner, DistributedDataParallel):
                    self._sent_round.append((inner, inner.require_forward_param_sync))
                for buffer in inner._buffers.values():
                    if buffer is not None and not _overlaps(buffer, owned):
                        self._keep(buffer)

    def _keep(self, buffer: torch.Tensor) -> None:
        # Nothing writes an inference tensor in place. Inside torch.func transforms there is only a wrapper, which must
        # not outlive them.
        if not (buffer.is_inference() or _is_wrapped(buffer) or id(buffer) in self._values):
            self._values[id(buffer)] = (buffer, buffer.detach().clone())

    @property
    def modules(self) -> list[Module]:
        """The modules whose buffers were copied, and all modules inside them."""
        return [module for module, _ in self._names.values()]

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
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        for wrapper, sent_round in self._sent_round:
            wrapper.require_forward_param_sync = sent_round
        # Backwards, because of two tensors on one storage the later may have been copied after a change of the first.
        for buffer, copy in reversed(self._values.values()):
            if buffer.shape != copy.shape:  # observers take their shape from the first batch
                buffer.resize_(copy.shape)
            if not _untouched(buffer, copy):
                _distinct(buffer).copy_(_distinct(copy, like=buffer))


def _untouched(buffer: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether there is surely nothing to put back, and on a GPU without waiting for it."""
    # A buffer may be a file mapped into memory for reading, where a write would end the process.
    plain = (
        type(buffer) is torch.Tensor
        and buffer.device.type == "cpu"
        and buffer.layout is torch.strided
        and not (buffer.is_nested or buffer.is_quantized or buffer.is_conj() or buffer.is_neg())
        and buffer.is_contiguous()
        and copy.is_contiguous()
    )
    return plain and torch.equal(buffer.view(-1).view(torch.uint8), copy.view(-1).view(torch.uint8))


def _distinct(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor, once where `like` (itself) is expanded: torch refuses to write where one element stands for many."""
    like = tensor if like is None else like
    if like.layout is not torch.strided or like.is_nested:
        return tensor
    for dimension, (step, size) in enumerate(zip(like.stride(), like.shape, strict=True)):
        if step == 0 and size > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def _is_wrapped(tensor: torch.Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def _memory(tensor: torch.Tensor) -> tuple[int, int, int] | None:
    """The storage of a tensor, and its first and last byte; None where that cannot be told or nothing lies there."""
    if _is_wrapped(tensor) or tensor.layout is not torch.strided or tensor.is_nested or tensor.numel() == 0:
        return None
    try:
        storage, first = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # lazy, fake and wrapped tensors
        return None
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return (storage, first, first + reach * tensor.element_size() - 1) if storage else None


def _overlaps(buffer: torch.Tensor, owned: Mapping[int, Sequence[tuple[int, int]]]) -> bool:
    place = _memory(buffer) if owned else None
    return place is not None and any(place[1] <= last and first <= place[2] for first, last in owned.get(place[0], ()))
