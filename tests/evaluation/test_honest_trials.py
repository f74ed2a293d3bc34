"""A trial at η = 0 is the baseline again, to the last bit; and afterwards it is as if one forward had run."""

import random
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import armijo
from armijo.directions.kernel import StoredVectors
from armijo.evaluation.rng import RandomState
from armijo.snapshot import Copies, Snapshot


class Codebook(nn.Module):
    """Replaces its buffer by another tensor in every forward, as moving-average codebooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(6))
        self.register_buffer("seen", None)
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(x)
        self.centre = 0.9 * self.centre + 0.1 * hidden.detach().mean(0)
        self.seen = torch.ones(1) if self.seen is None else self.seen + 1
        return hidden - self.centre / self.seen


class Noisy(nn.Module):
    """Draws from NumPy's and Python's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1 + 0.1 * float(np.random.rand())) + 0.1 * random.random()


def attention(training: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.3, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), layer, nn.Flatten()).train(training)


class Twice(nn.Module):
    """Two modules that own one buffer tensor; the first changes it before the second runs."""

    class Counter(nn.Module):
        def __init__(self, buffer: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("count", buffer)
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return self.linear(x) * self.count.clone()

    def __init__(self) -> None:
        super().__init__()
        shared = torch.zeros(1)
        self.parts = [self.Counter(shared), self.Counter(shared.view(1))]  # a plain list: found by their own forwards
        self.first, self.second = self.parts[0].linear, self.parts[1].linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts[0](x) + self.parts[1](x)


class Late(nn.Module):
    """Registers a buffer in its first forward, and holds a mask that is one row, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mask", torch.ones(1, 6).expand(16, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(6))
        hidden = self.linear(x) * self.mask
        self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return hidden - self.mean


class FrozenAttention(nn.Module):
    """A frozen encoder below a trainable head: nothing in it asks for gradients, even in the baseline."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)
        self.head = nn.Linear(6, 6)
        self.register_buffer("padding", torch.tensor([[False, True, True]]).repeat(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.stack([x, x + 1, x - 1], 1)
        return self.head(self.encoder(tokens, src_key_padding_mask=self.padding)).mean(1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)),
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 6)),
    "codebook": Codebook,
    "NumPy and Python": Noisy,
    "attention, training": lambda: attention(True),
    "attention, evaluating": lambda: attention(False),
    "attention, frozen below a head": FrozenAttention,
    "one buffer in two modules": Twice,
    "a late and an expanded buffer": Late,
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), LastHidden()),
}


class LastHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 6, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0][:, -1]


def buffers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def draws() -> tuple[float, float, float]:
    """The next numbers of all generators, which are left as they are."""
    state = RandomState.capture()
    numbers = (float(torch.rand(())), float(np.random.rand()), random.random())
    state.restore()
    return numbers


def closure_for(model: nn.Module) -> Callable[[], torch.Tensor]:
    inputs, targets = torch.randn(16, 6), torch.randn(16, 6)
    return lambda: nn.functional.mse_loss(model(inputs), targets)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    return build()


@pytest.mark.parametrize("name", MODELS)
def test_a_trial_without_a_move_repeats_the_baseline_to_the_last_bit(name: str) -> None:
    model = seeded(MODELS[name])
    closure = closure_for(model)
    for _ in range(2):
        objective = armijo.Objective()
        loss = objective.baseline(closure)
        loss.backward()
        after, numbers = buffers_of(model), draws()
        assert [objective.trial() for _ in range(3)] == [loss.item()] * 3
        objective.restore_after_baseline()
        assert draws() == numbers
        assert all(torch.equal(buffer, after[key]) for key, buffer in model.named_buffers())
        assert objective.evaluations == 4


@pytest.mark.parametrize("name", MODELS)
def test_after_a_step_generators_and_buffers_are_as_one_forward_leaves_them(name: str) -> None:
    inputs, targets = torch.randn(16, 6), torch.randn(16, 6)
    searched, plain = seeded(MODELS[name]), seeded(MODELS[name])
    state = RandomState.capture()
    search = armijo.Backtracking(guess=armijo.Growth(10.0))
    optimizer = armijo.LineSearch(searched.parameters(), search=search, partition=armijo.Together())
    optimizer.step(lambda: nn.functional.mse_loss(searched(inputs), targets))
    assert optimizer.report is not None
    assert optimizer.report.forwards > 2, "the search must have made several trials, or this test shows nothing"
    numbers = draws()
    state.restore()
    nn.functional.mse_loss(plain(inputs), targets)
    assert draws() == numbers
    ours, expected = buffers_of(searched), buffers_of(plain)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[key], expected[key]) for key in ours)


def test_a_trial_keeps_no_graph_and_sees_the_moved_parameters() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    grad_modes = []

    def closure() -> torch.Tensor:
        grad_modes.append(torch.is_grad_enabled())
        return (weight**2).sum()

    objective = armijo.Objective()
    objective.baseline(closure)
    with torch.no_grad(), Snapshot() as snapshot:
        snapshot.save({0: [weight]})
        snapshot.move({0: (0.5, StoredVectors([torch.ones(1)]))})
        assert objective.trial() == 2.25
    assert weight.item() == 2.0
    assert grad_modes == [True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_arrives_as_infinity(bad: float) -> None:
    weight, losses = torch.nn.Parameter(torch.ones(1)), iter([1.0, bad])
    objective = armijo.Objective()
    objective.baseline(lambda: weight.sum() * next(losses))
    assert objective.trial() == float("inf")


def test_under_one_outer_autocast_region_trials_and_steps_see_the_moved_weights() -> None:
    def run(outer: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        inputs, labels = torch.randn(32, 6), torch.randint(3, (32,))
        optimizer = armijo.AdamSLS(model.parameters())
        losses = []

        def closure() -> torch.Tensor:
            with nullcontext() if outer else torch.autocast("cpu", torch.bfloat16):
                return nn.functional.cross_entropy(model(inputs).float(), labels)

        with torch.autocast("cpu", torch.bfloat16) if outer else nullcontext():
            for _ in range(8):
                loss = optimizer.step(closure)
                assert loss is not None
                losses.append(loss.item())
        return losses

    assert run(outer=True) == run(outer=False)


def test_several_forwards_add_up_and_are_rewound_each() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.BatchNorm1d(6))
    objective, total = armijo.Objective(), 0.0
    for _ in range(3):
        loss = objective.baseline(closure_for(model), weight=1 / 3)
        (loss / 3).backward()
        total += loss.item() / 3
    after = buffers_of(model)
    assert objective.trial() == objective.value() == pytest.approx(total)
    objective.restore_after_baseline()
    assert all(torch.equal(buffer, after[key]) for key, buffer in model.named_buffers())
    assert objective.evaluations == 6


def test_named_modules_are_copied_without_a_hook() -> None:
    from torch.nn.modules import module as torch_module

    norm = nn.BatchNorm1d(6)
    inputs = torch.randn(8, 6)
    hooks = []

    def closure() -> torch.Tensor:
        hooks.append(len(torch_module._global_forward_pre_hooks))
        return norm(inputs).square().sum()

    objective = armijo.Objective(modules=[norm])
    objective.baseline(closure)
    after = buffers_of(norm)
    objective.trial()
    objective.restore_after_baseline()
    assert hooks == [0, 0]
    assert all(torch.equal(buffer, after[key]) for key, buffer in norm.named_buffers())


def test_a_baseline_that_fails_leaves_generators_and_buffers() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5))
    before, numbers = buffers_of(model), draws()

    def closure() -> torch.Tensor:
        model(torch.randn(8, 6))
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        armijo.Objective().baseline(closure)
    assert draws() == numbers
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())


def test_a_snapshot_restores_to_the_last_bit_and_moves_only_what_is_named() -> None:
    parameters = [torch.randn(50), torch.randn(50)]
    start = [p.clone() for p in parameters]
    directions = [torch.randn(50), torch.randn(50), torch.randn(50)]
    first, second, other = (StoredVectors([direction]) for direction in directions)
    with Snapshot() as snapshot:
        snapshot.save({key: [p] for key, p in enumerate(parameters)})
        snapshot.move({0: (0.1, first), 1: (0.3, second)})
        assert torch.equal(parameters[0], start[0].add(directions[0], alpha=-0.1))
        snapshot.move({1: (0.2, second)})
        assert torch.equal(parameters[0], start[0])
        assert torch.equal(parameters[1], start[1].add(directions[1], alpha=-0.2))
        snapshot.move({1: (0.2, other)})
        assert torch.equal(parameters[1], start[1].add(directions[2], alpha=-0.2))
    assert all(torch.equal(p, s) for p, s in zip(parameters, start, strict=True))


def test_a_snapshot_keeps_what_it_is_told_to_keep_and_uses_its_memory_again() -> None:
    copies, directions = Copies(), [torch.randn(50), torch.randn(50)]
    parameters = [torch.randn(50), torch.randn(50)]
    rays = [StoredVectors([direction]) for direction in directions]
    memory = set()
    for step in range(3):
        start = [p.clone() for p in parameters]
        with Snapshot(copies) as snapshot:
            snapshot.save({key: [p] for key, p in enumerate(parameters)})
            memory |= {tensor.data_ptr() for saved in snapshot._start.values() for tensor in saved}
            snapshot.move({key: (0.5, ray) for key, ray in enumerate(rays)})
            assert snapshot.is_at(0, 0.5, rays[0])
            assert not snapshot.is_at(0, 0.4, rays[0])
            assert not snapshot.is_at(0, 0.5, rays[1])
            if step:
                snapshot.keep(0)
        kept = start[0].add(directions[0], alpha=-0.5) if step else start[0]
        assert torch.equal(parameters[0], kept)
        assert torch.equal(parameters[1], start[1])
    assert len(memory) == 2


def test_buffers_handed_in_by_functional_call_are_as_one_forward_leaves_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    own = buffers_of(model)
    given, plain = ({key: value.clone() for key, value in own.items()} for _ in range(2))
    inputs = torch.randn(16, 6)
    optimizer = armijo.AdamSLS(model.parameters(), initial_step_size=10.0)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer.step(lambda: torch.func.functional_call(model, given, inputs).square().mean())
    torch.func.functional_call(model, {**start, **plain}, inputs)
    assert all(torch.equal(given[key], plain[key]) for key in plain)
    assert all(torch.equal(buffer, own[key]) for key, buffer in model.named_buffers())


def test_an_ensemble_under_vmap_can_be_searched() -> None:
    models = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    inputs = torch.randn(16, 6)

    def one(own: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(models[0], (own, held), inputs)

    optimizer = armijo.AdamSLS(list(parameters.values()))
    losses = [
        float(optimizer.step(lambda: torch.func.vmap(one)(parameters, buffers).square().mean())) for _ in range(5)
    ]
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------------------------- unusual buffers


def qat() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)


class Lookup(nn.Module):
    """Holds a buffer of the given kind, and multiplies by a matrix or adds a vector."""

    def __init__(self, table: torch.Tensor | None, name: str = "table") -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.ones(6)
        hidden = self.linear(x)
        return self.table @ hidden if self.table.layout is not torch.strided else hidden + self.table


def filled_under_inference_mode() -> nn.Module:
    model = Lookup(None)
    with torch.inference_mode():
        model(torch.ones(2, 6))
    assert model.table.is_inference()
    return model


class Aside(nn.Module):
    """Holds a buffer that takes no part."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def flat_batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(6)
    flat = torch.cat([torch.ones(6), torch.zeros(6), torch.zeros(6), torch.ones(6)])
    norm.weight, norm.bias = nn.Parameter(flat.data[:6]), nn.Parameter(flat.data[6:12])
    norm.running_mean, norm.running_var = flat.data[12:18], flat.data[18:]
    return nn.Sequential(nn.Linear(6, 6), norm)


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "observers that take their shape from the first batch": qat,
    "filled under inference mode": filled_under_inference_mode,
    "a scripted module": lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 6)), nn.Linear(6, 6)),
    "a compressed sparse table": lambda: Lookup(torch.eye(16).to_sparse_csr()),
    "a quantised table": lambda: Aside(torch.quantize_per_tensor(torch.ones(6), 1, 0, torch.qint8)),
    "a conjugate table": lambda: Aside(torch.ones(6, dtype=torch.cfloat).conj()),
    "one storage for all of a batch norm": flat_batch_norm,
    "a sparse table": lambda: Lookup(torch.eye(16).to_sparse()),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, on observers and sparse tensors
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_buffers_are_no_hindrance(name: str) -> None:
    model = seeded(UNUSUAL[name])
    optimizer = armijo.AdamSLS(model.parameters())
    closure = closure_for(model)
    losses = [float(optimizer.step(closure)) for _ in range(5)]
    assert losses[-1] < losses[0]
    counts = [module.num_batches_tracked for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert all(count == 5 for count in counts)
    objective = armijo.Objective()
    baseline = float(objective.baseline(closure).detach())
    assert objective.trial() == baseline
    objective.restore_after_baseline()


def test_a_buffer_that_may_only_be_read_is_not_written(tmp_path: Path) -> None:
    """A write into such a memory map would end the process."""
    np.save(tmp_path / "table.npy", np.ones(6, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that the array is not writable
        table = torch.from_numpy(np.load(tmp_path / "table.npy", mmap_mode="r"))
    model = Lookup(table)
    optimizer = armijo.AdamSLS(model.parameters())
    optimizer.step(closure_for(model))
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "accepted"


def test_a_buffer_that_views_a_parameter_does_not_undo_the_trials() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("view", self.weight.data)

        def forward(self) -> torch.Tensor:
            return (self.weight**2).sum()

    model = Viewing()
    optimizer = armijo.SGDSLS(model.parameters(), initial_step_size=0.1)
    optimizer.step(model)
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "accepted"
    torch.testing.assert_close(model.weight.detach(), 1 - 2 * optimizer.param_groups[0]["step_size"] * torch.ones(3))


def test_one_tensor_for_all_results_does_not_change_the_recorded_loss() -> None:
    """As a forward that was captured in a graph has it."""
    weight, result = nn.Parameter(torch.tensor([3.0, 1.0])), torch.zeros(())

    class Static(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(w)
            return result.copy_((w * w).sum())

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return 2 * ctx.saved_tensors[0] * grad

    optimizer = armijo.SGDSLS([weight])
    assert float(optimizer.step(lambda: Static.apply(weight))) == 10.0
    assert optimizer.report is not None
    assert optimizer.report.loss == 10.0


def test_what_another_thread_runs_meanwhile_is_left_alone() -> None:
    own, others = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), nn.BatchNorm1d(6)
    inputs, calls = torch.randn(16, 6), []

    def closure() -> torch.Tensor:
        calls.append(1)
        thread = threading.Thread(target=others, args=(inputs,))
        thread.start()
        thread.join()
        return own(inputs).square().mean()

    armijo.AdamSLS(own.parameters()).step(closure)
    assert others.num_batches_tracked == len(calls) > 1
    assert own[1].num_batches_tracked == 1


def test_statistics_beside_parameters_in_one_storage_are_those_of_one_forward() -> None:
    flat, plain = seeded(flat_batch_norm), seeded(flat_batch_norm)
    inputs = torch.randn(16, 6) + 3
    plain(inputs)
    armijo.AdamSLS(flat.parameters()).step(lambda: flat(inputs).square().mean())
    assert torch.equal(flat[1].running_mean, plain[1].running_mean)


def test_an_expanded_buffer_written_in_place_is_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("count", torch.zeros(1, 6).expand(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.fill_(float(self.count[0, 0]) + 1)
            return self.linear(x) * self.count[0]

    model = Counting()
    optimizer = armijo.AdamSLS(model.parameters())
    for step in range(3):
        optimizer.step(closure_for(model))
        assert float(model.count[0, 0]) == step + 1
