"""One rank of a distributed test: runs every case of its kind and writes what each gave to a file.

python ranks.py FOLDER RANK WORLD [CASE…]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import armijo

ROWS, STEPS = 12, 8
CASES: dict[str, Callable[[int, int], Any]] = {}


def case(function: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    CASES[function.__name__] = function
    return function


# ------------------------------------------------------------------------- the problem, alike in every process


def network(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(12) if norm else nn.LayerNorm(12)
    model = nn.Sequential(nn.Linear(6, 12), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 12), nn.Linear(12, 3))
    return model.double()


def batches(steps: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(ROWS, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (ROWS,), generator=generator),
        )
        for _ in range(steps)
    ]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    children = [(name, list(child.parameters())) for name, child in model.named_children()]
    return [{"params": parameters, "component": name} for name, parameters in children if parameters]


def optimizer_of(kind: str, model: nn.Module, **options: Any) -> armijo.LineSearch:
    if kind == "paper":
        return armijo.paper.PLASLS(groups(model))
    classes = {"sgdsls": armijo.SGDSLS, "adamsls": armijo.AdamSLS, "plasls": armijo.PLASLS}
    return classes[kind](groups(model), **options)


def share(batch: tuple[torch.Tensor, torch.Tensor], rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0][rank::world], batch[1][rank::world]


def closure_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], torch.Tensor]:
    return lambda: nn.functional.cross_entropy(model(batch[0]), batch[1])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def told(model: nn.Module, reports: list[armijo.StepReport]) -> dict[str, Any]:
    return {
        "parameters": [whole(parameter) for parameter in model.parameters()],
        "losses": [report.loss for report in reports],
        "step_sizes": [[component.step_size for component in report.components] for report in reports],
        "slopes": [[component.slope for component in report.components] for report in reports],
        "trials": [[component.trials for component in report.components] for report in reports],
        "statuses": [[str(component.status) for component in report.components] for report in reports],
        "merges": [report.merges for report in reports],
    }


def train(
    model: nn.Module,
    optimizer: armijo.LineSearch,
    rank: int,
    world: int,
    forward: nn.Module | None = None,
    steps: slice = slice(None),
) -> dict[str, Any]:
    reports: list[armijo.StepReport] = []
    with watching(optimizer, reports):
        for batch in batches()[steps]:
            optimizer.step(closure_of(forward or model, share(batch, rank, world)))
    return told(model, reports)


@contextmanager
def watching(optimizer: armijo.LineSearch, reports: list[armijo.StepReport]) -> Iterator[None]:
    handle = optimizer.register_observer(reports.append)
    yield
    handle.remove()


# --------------------------------------------------------------------------------------------------- the cases


def data_parallel(kind: str, rank: int, world: int, **options: Any) -> dict[str, Any]:
    model = network(**options)
    return train(model, optimizer_of(kind, model), rank, world, DistributedDataParallel(model))


@case
def ddp_sgdsls(rank: int, world: int) -> Any:
    return data_parallel("sgdsls", rank, world)


@case
def ddp_adamsls(rank: int, world: int) -> Any:
    return data_parallel("adamsls", rank, world)


@case
def ddp_plasls(rank: int, world: int) -> Any:
    return data_parallel("plasls", rank, world)


@case
def ddp_paper(rank: int, world: int) -> Any:
    return data_parallel("paper", rank, world)


@case
def ddp_dropout_and_batch_norm(rank: int, world: int) -> Any:
    model = network(dropout=0.3, norm=True)
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(100 + rank)  # every rank its own masks
    found = train(model, optimizer_of("plasls", model), rank, world, wrapped)
    wrapped(batches()[0][0])  # sends the running statistics round, and then adds the same to all of them
    return {**found, "statistics": [whole(buffer) for buffer in model.buffers()]}


def sharded(kind: str, rank: int, world: int, shape: tuple[int, ...]) -> dict[str, Any]:
    model = network()
    shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :]))
    return train(model, optimizer_of(kind, model), rank, world)


def shard(model: nn.Sequential, **options: Any) -> None:
    # The last layer belongs to the root, which stays gathered after a forward without gradients.
    for layer in model[:-1]:
        if list(layer.parameters()):
            fully_shard(layer, **options)
    fully_shard(model, **options)


@case
def fsdp_sgdsls(rank: int, world: int) -> Any:
    return sharded("sgdsls", rank, world, (world,))


@case
def fsdp_adamsls(rank: int, world: int) -> Any:
    return sharded("adamsls", rank, world, (world,))


@case
def fsdp_plasls(rank: int, world: int) -> Any:
    return sharded("plasls", rank, world, (world,))


@case
def hsdp_replicated(rank: int, world: int) -> Any:
    return sharded("plasls", rank, world, (world, 1))


@case
def hsdp_sharded(rank: int, world: int) -> Any:
    return sharded("plasls", rank, world, (1, world))


@case
def accumulated(rank: int, world: int) -> Any:
    """Two micro-batches a step, and the gradients exchanged with the second."""
    model = network()
    wrapped, optimizer = DistributedDataParallel(model), optimizer_of("adamsls", model)
    reports: list[armijo.StepReport] = []
    with watching(optimizer, reports):
        for batch in batches():
            inputs, labels = share(batch, rank, world)
            objective = armijo.Objective()
            with wrapped.no_sync():
                _half(objective, wrapped, (inputs[::2], labels[::2]))
            _half(objective, wrapped, (inputs[1::2], labels[1::2]))
            optimizer.step(objective)
            optimizer.zero_grad()
    return told(model, reports)


def _half(objective: armijo.Objective, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    objective.baseline(lambda: closure_of(model, batch)() / 2).backward()


@case
def named_group(rank: int, world: int) -> Any:
    """Gradients exchanged by hand: no wrapper says which ranks there are."""
    model = network()
    optimizer = optimizer_of("adamsls", model)
    reports: list[armijo.StepReport] = []
    with watching(optimizer, reports):
        for batch in batches():
            objective = armijo.Objective(process_group=distributed.group.WORLD)
            objective.baseline(closure_of(model, share(batch, rank, world))).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                distributed.all_reduce(parameter.grad)
                parameter.grad /= world
            optimizer.step(objective)
            optimizer.zero_grad()
    return told(model, reports)


def failing(rank: int, world: int, at: int, *, before_the_model: bool = False) -> dict[str, Any]:
    """The third step fails on the last rank, at its evaluation number `at`; the fourth is taken."""
    # In the second forward DistributedDataParallel exchanges the order of its buckets.
    model = network(norm=True)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = optimizer_of("plasls", model)
    *first, second, third = batches(4)
    for batch in first:
        optimizer.step(closure_of(wrapped, share(batch, rank, world)))
    before = {
        "model": {key: value.clone() for key, value in model.state_dict().items()},
        "optimizer": [dict(group) for group in optimizer.param_groups],
        "moments": [state["exp_avg_sq"].clone() for state in optimizer.state.values()],
        "random": torch.get_rng_state(),
    }
    calls = iter(range(1000))
    loss_of = closure_of(wrapped, share(second, rank, world))

    def closure() -> torch.Tensor:
        fails = next(calls) == at and rank == world - 1
        if fails and before_the_model:
            raise OSError("the disk is gone")
        loss = loss_of()
        if fails:
            raise OSError("the disk is gone")
        return loss

    error = None
    try:
        optimizer.step(closure)
    except Exception as raised:
        error = raised
    same = (
        all(torch.equal(value, before["model"][key]) for key, value in model.state_dict().items())
        and [dict(group) for group in optimizer.param_groups] == before["optimizer"]
        and all(map(torch.equal, before["moments"], [state["exp_avg_sq"] for state in optimizer.state.values()]))
        and torch.equal(before["random"], torch.get_rng_state())
    )
    optimizer.step(closure_of(wrapped, share(third, rank, world)))
    return {"error": f"{type(error).__name__}: {error}", "same": same, **told(model, [optimizer.report])}


@case
def failing_in_the_forward(rank: int, world: int) -> Any:
    return failing(rank, world, at=0)


@case
def failing_before_the_forward(rank: int, world: int) -> Any:
    return failing(rank, world, at=0, before_the_model=True)


@case
def failing_in_a_trial(rank: int, world: int) -> Any:
    return failing(rank, world, at=1)


@case
def failing_from_the_first_step(rank: int, world: int) -> Any:
    """A trial of the first step fails, then the next closure before it reaches the model; then a step is taken."""
    model = network()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = optimizer_of("adamsls", model)
    loss_of = closure_of(wrapped, share(batches(1)[0], rank, world))
    for _ in range(2):  # see failing()
        loss_of().backward()
    errors = []
    for at in (1, 0):
        calls = iter(range(1000))

        def closure(at: int = at, calls: Iterator[int] = calls) -> torch.Tensor:
            if next(calls) == at and rank == world - 1:
                raise OSError("the disk is gone")
            return loss_of()

        try:
            optimizer.step(closure)
        except Exception as raised:
            errors.append(type(raised).__name__)
    optimizer.step(loss_of)
    return {"errors": errors, **told(model, [optimizer.report])}


@case
def not_finite_on_one_rank(rank: int, world: int) -> Any:
    model = network()
    wrapped, optimizer = DistributedDataParallel(model), optimizer_of("adamsls", model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batch = share(batches()[0], rank, world)
    factor = float("inf") if rank == world - 1 else 1.0
    optimizer.step(lambda: closure_of(wrapped, batch)() * factor)
    same = all(map(torch.equal, before, model.parameters()))
    return {"same": same, **told(model, [optimizer.report])}


@case
def checkpoint(rank: int, world: int) -> Any:
    """Four steps, a distributed checkpoint, and in a new model four more."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def made() -> tuple[nn.Module, armijo.LineSearch]:
        model = network()
        shard(model)
        return model, optimizer_of("plasls", model)

    folder = os.environ["CHECKPOINT"]
    model, optimizer = made()
    train(model, optimizer, rank, world, steps=slice(0, 4))
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=folder)

    model, optimizer = made()
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    return train(model, optimizer, rank, world, steps=slice(4, None))


@case
def split_over_ranks(rank: int, world: int) -> Any:
    """ZeroRedundancyOptimizer gives each rank a share of the parameters, and so a step of its own."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=armijo.AdamSLS)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        optimizer.step(closure_of(wrapped, share(batches(1)[0], rank, world)))
    except armijo.ConfigurationError as error:
        return {"error": str(error), "same": all(map(torch.equal, before, model.parameters()))}
    return {"error": "", "same": False}


@case
def unwrapped(rank: int, world: int) -> Any:
    """What is logged where nothing says that the ranks train one model."""
    import logging

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("armijo").addHandler(handler)
    model = network()
    optimizer = optimizer_of("adamsls", model)
    for batch in batches(2):
        optimizer.step(closure_of(model, share(batch, rank, world)))
    logging.getLogger("armijo").removeHandler(handler)
    return said


def dying(rank: int, world: int) -> Any:
    """The last rank ends in the middle of a step."""
    model = network()
    wrapped, optimizer = DistributedDataParallel(model), optimizer_of("adamsls", model)
    first, second = batches(2)
    optimizer.step(closure_of(wrapped, share(first, rank, world)))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss_of = closure_of(wrapped, share(second, rank, world))

    def closure() -> torch.Tensor:
        loss = loss_of()
        if rank == world - 1 and not loss.requires_grad:
            os._exit(3)
        return loss

    try:
        optimizer.step(closure)
    except armijo.RankError as error:
        return {"error": str(error), "same": all(map(torch.equal, before, model.parameters()))}
    return None


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    # A rank that waits for one that has ended must not wait for ever.
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    wanted = sys.argv[4:] or list(CASES)
    found = {name: (CASES.get(name) or globals()[name])(rank, world) for name in wanted}
    torch.save(found, folder / f"{world}-{rank}.pt")
    if "dying" not in wanted:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
