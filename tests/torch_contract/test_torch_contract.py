"""The properties that torch's optimizer tests are known for, for the three of armijo.

The inputs come as torch's own `OptimizerInfo`; the tests are ours. `docs/torch_contract.md` lists each property.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import armijo
from torch_contract.infos import INFOS

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = [(info, given) for info in INFOS for given in info.optim_inputs_func("cpu")]

each_kind = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
each_input = pytest.mark.parametrize(
    ("info", "given"), CASES, ids=[f"{info.name}-{given.desc}" for info, given in CASES]
)
each_device = pytest.mark.parametrize("device", DEVICES)


class Problem:
    """A small regression; two groups."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32, *, contiguous: bool = True) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).to(device, dtype)
        if not contiguous:
            for module in (self.model[0], self.model[2]):
                wide = torch.randn(*module.weight.shape, 2, device=device, dtype=dtype)
                module.weight = nn.Parameter(wide[..., 0])
                assert not module.weight.is_contiguous()
        self.inputs = torch.randn(20, 6, device=device, dtype=dtype)
        self.targets = torch.randn(20, 1, device=device, dtype=dtype)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model[0].parameters())}, {"params": list(self.model[2].parameters())}]

    def loss(self) -> torch.Tensor:
        return (self.model(self.inputs) - self.targets).square().mean()

    def closure(self, sign: int = 1) -> Callable[[], torch.Tensor]:
        return lambda: sign * self.loss()

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def run(problem: Problem, optimizer: Any, steps: int) -> list[float]:
    sign = -1 if optimizer.param_groups[0]["maximize"] else 1
    return [sign * float(optimizer.step(problem.closure(sign))) for _ in range(steps)]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# ------------------------------------------------------------------------------------------------------ construction


@each_kind
@each_device
def test_errors(info: Any, device: str) -> None:
    for error in info.optim_error_inputs_func(device, torch.float32):
        given = error.optimizer_error_input
        params = given.params if given.params is not None else [nn.Parameter(torch.randn(2, 3, device=device))]
        if error.error_type is UserWarning:
            # torch announces an error for duplicates; here it is one already, because they would move twice.
            with (
                pytest.warns(UserWarning, match=error.error_regex),
                pytest.raises(armijo.ConfigurationError, match="one parameter twice"),
            ):
                info.optim_cls(params, **given.kwargs)
        else:
            with pytest.raises(error.error_type, match=error.error_regex):
                info.optim_cls(params, **given.kwargs)


@each_kind
@pytest.mark.parametrize("keyword", ["foreach", "fused", "capturable", "differentiable"])
def test_kernel_switches_are_no_arguments(info: Any, keyword: str) -> None:
    with pytest.raises(TypeError, match=keyword):
        info.optim_cls([nn.Parameter(torch.ones(1))], **{keyword: True})


@each_input
def test_it_can_be_printed(info: Any, given: Any) -> None:
    shown = repr(info.optim_cls(Problem().groups(), **given.kwargs))
    assert shown.startswith(info.name)
    assert "step_size" in shown


@each_kind
def test_named_parameters_are_kept(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    run(problem, optimizer, 2)
    # A state with names loads into an optimizer without, and the other way round.
    plain = info.optim_cls(problem.model.parameters())
    plain.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(info.optim_cls(problem.model.parameters()).state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


# ---------------------------------------------------------------------------------------------------------- stepping


@each_input
@each_device
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_it_goes_the_right_direction(info: Any, given: Any, device: str, contiguous: bool) -> None:
    problem = Problem(device, contiguous=contiguous)
    losses = run(problem, info.optim_cls(problem.groups(), **given.kwargs), 20)
    assert losses[-1] < losses[0]


@each_input
def test_the_layout_of_the_parameters_does_not_matter(info: Any, given: Any) -> None:
    strided, plain = Problem(dtype=torch.float64, contiguous=False), Problem(dtype=torch.float64)
    plain.model.load_state_dict(strided.model.state_dict())
    plain.inputs, plain.targets = strided.inputs, strided.targets
    for problem in (strided, plain):
        run(problem, info.optim_cls(problem.groups(), **given.kwargs), 10)
    for a, b in zip(strided.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@each_input
def test_maximize_is_minimize_of_the_negative(info: Any, given: Any) -> None:
    kwargs = {key: value for key, value in given.kwargs.items() if key != "maximize"}
    down, up = Problem(), Problem()
    a, b = info.optim_cls(down.groups(), **kwargs), info.optim_cls(up.groups(), **kwargs, maximize=True)
    assert run(down, a, 12) == run(up, b, 12)
    assert equal(down.weights(), up.weights())


@each_input
def test_without_gradients_it_is_a_noop(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **given.kwargs)
    other = nn.Parameter(torch.ones(1))
    before = problem.weights()
    sign = -1 if optimizer.param_groups[0]["maximize"] else 1
    optimizer.step(lambda: sign * other.square().sum())
    assert equal(before, problem.weights())
    assert not optimizer.state


@each_input
def test_with_zero_gradients_it_is_a_noop(info: Any, given: Any) -> None:
    problem = Problem()
    kwargs = {**given.kwargs, "weight_decay": 0.0}
    optimizer = info.optim_cls(problem.groups(), **kwargs)
    before = problem.weights()
    for _ in range(3):
        optimizer.step(lambda: 0.0 * problem.loss() + 1.0)
    assert equal(before, problem.weights())
    assert {str(component.status) for component in optimizer.report.components} <= {"skipped", "unsearched"}


@each_input
def test_lr_zero_moves_nothing_and_remembers(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **{**given.kwargs, "lr": 0.0})
    before = problem.weights()
    run(problem, optimizer, 3)
    assert equal(before, problem.weights())
    assert all(state["step"] == 3 for state in optimizer.state.values())


@each_kind
def test_lr_and_decay_act_per_group(info: Any) -> None:
    problem = Problem()
    first, second = problem.groups()
    optimizer = info.optim_cls([{**first, "lr": 0.0}, second], weight_decay=0.1)
    before = problem.weights()
    run(problem, optimizer, 3)
    moved = [not torch.equal(a, b) for a, b in zip(before, problem.weights(), strict=True)]
    assert moved == [False, False, True, True]
    # A parameter whose gradient is zero moves by its decay alone.
    weight = nn.Parameter(torch.ones(3))
    other = nn.Parameter(torch.ones(3))
    optimizer = info.optim_cls([{"params": [weight], "weight_decay": 0.5}, {"params": [other]}])
    optimizer.step(lambda: other.square().sum() + 0.0 * weight.sum())
    step_size = optimizer.param_groups[0]["step_size"]
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - step_size * 0.5))


@each_kind
def test_zero_grad(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.model.parameters())
    problem.loss().backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in problem.model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in problem.model.parameters())
    run(problem, optimizer, 1)
    assert all(p.grad is not None for p in problem.model.parameters()), "gradients stay after a step"


@each_kind
@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad, lambda: torch.set_grad_enabled(False)])
def test_the_surrounding_grad_mode_does_not_matter(info: Any, around: Any) -> None:
    first, second = Problem(), Problem()
    a, b = info.optim_cls(first.groups()), info.optim_cls(second.groups())
    with around():
        losses = run(first, a, 3)
    assert losses == run(second, b, 3)
    assert torch.is_grad_enabled()


@each_kind
@each_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(info: Any, device: str, dtype: torch.dtype) -> None:
    problem = Problem(device, dtype)
    # In float16 the usual ε of 1e-8 is 0, as in torch.optim.Adam, and squares of gradients underflow.
    half = dtype == torch.float16 and info.optim_cls is not armijo.SGDSLS
    optimizer = info.optim_cls(problem.groups(), **({"eps": 1e-3} if half else {}))
    losses = run(problem, optimizer, 8)
    assert losses[-1] < losses[0]
    for parameter, state in optimizer.state.items():
        assert parameter.dtype == dtype
        assert all(tensor.dtype == dtype for key, tensor in state.items() if key != "step")


@each_kind
def test_several_dtypes_in_one_group(info: Any) -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, dtype=dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    optimizer = info.optim_cls(weights)
    losses = [
        float(optimizer.step(lambda: sum((w.double() - 1).square().sum() for w in weights)))  # type: ignore[arg-type]
        for _ in range(10)
    ]
    assert losses[-1] < losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second device is needed")
@each_kind
def test_several_devices_in_one_group(info: Any) -> None:
    weights = [nn.Parameter(torch.ones(4, device=device)) for device in ("cpu", "cuda")]
    optimizer = info.optim_cls(weights)
    losses = [float(optimizer.step(lambda: sum(w.square().sum().cpu() for w in weights))) for _ in range(10)]  # type: ignore[arg-type]
    assert losses[-1] < losses[0]


@each_kind
def test_odd_shapes(info: Any) -> None:
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((), (1,), (0,), (2, 0, 3), (1, 2, 1, 3))]
    optimizer = info.optim_cls(weights)
    losses = [float(optimizer.step(lambda: sum((w - 1).square().sum() for w in weights))) for _ in range(5)]  # type: ignore[arg-type]
    assert losses[-1] < losses[0]


@each_kind
def test_sparse_gradients_as_in_torchs_optimizer_of_that_name(info: Any) -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    twin = {armijo.SGDSLS: torch.optim.SGD, armijo.AdamSLS: torch.optim.Adam, armijo.PLASLS: torch.optim.Adam}
    other = copy.deepcopy(embedding)
    reference = twin[info.optim_cls](other.parameters(), lr=0.1)
    other(torch.tensor([1])).sum().backward()
    optimizer = info.optim_cls(embedding.parameters())
    before = embedding.weight.detach().clone()

    def closure() -> torch.Tensor:
        return embedding(torch.tensor([1, 3, 1])).square().sum()

    if info.supports_sparse:
        reference.step()
        losses = [float(optimizer.step(closure)) for _ in range(5)]
        assert losses[-1] < losses[0]
        moved = (embedding.weight.detach() != before).any(1).nonzero().flatten().tolist()
        assert moved == [1, 3]
    else:
        with pytest.raises(RuntimeError, match="sparse"):
            reference.step()
        with pytest.raises(armijo.ConfigurationError, match=r"cannot use sparse gradients.*sparse=False"):
            optimizer.step(closure)
        assert torch.equal(embedding.weight, before)


@each_kind
def test_groups_can_be_added(info: Any) -> None:
    problem = Problem()
    first, second = problem.groups()
    optimizer = info.optim_cls([first])
    run(problem, optimizer, 8)
    optimizer.add_param_group({**second, "lr": 0.25})
    before = problem.weights()
    run(problem, optimizer, 8)
    assert all(not torch.equal(a, b) for a, b in zip(before, problem.weights(), strict=True))
    assert [group["steps"] for group in optimizer.param_groups] == [16, 16]
    assert [int(state["step"]) for state in optimizer.state.values()] == [16, 16, 8, 8]
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group(second)


# -------------------------------------------------------------------------------------------------------- schedulers


def has_momentum(optimizer: Any) -> bool:
    return "betas" in optimizer.defaults and optimizer.defaults["betas"][0] > 0


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, step_size_up=3, cycle_momentum=has_momentum(o)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 12, cycle_momentum=has_momentum(o)),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.5, 3),
}


def test_no_scheduler_of_torch_is_left_out() -> None:
    there = {
        name
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found) and issubclass(found, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert there - {"LRScheduler"} <= SCHEDULERS.keys()


@each_kind
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_drives_lr(info: Any, name: str) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    keywords = {"betas": optimizer.defaults["betas"]} if "betas" in optimizer.defaults else {}
    reference = (torch.optim.Adam if keywords else torch.optim.SGD)([nn.Parameter(torch.ones(1))], lr=1.0, **keywords)
    schedulers = SCHEDULERS[name](optimizer), SCHEDULERS[name](reference)
    losses = []
    for _ in range(12):
        losses += run(problem, optimizer, 1)
        reference.step()
        for scheduler in schedulers:
            if name == "ReduceLROnPlateau":
                scheduler.step(1.0)
            else:
                scheduler.step()
        assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"] == reference.param_groups[0]["lr"]
        if keywords:
            assert optimizer.param_groups[0]["betas"] == reference.param_groups[0]["betas"]
    assert losses[-1] < losses[0]
    state = schedulers[0].state_dict()
    schedulers[0].load_state_dict(state)


@pytest.mark.parametrize(
    "schedule",
    [lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0), lambda o: lr_scheduler.OneCycleLR(o, 1.0, 12)],
    ids=["CyclicLR", "OneCycleLR"],
)
def test_a_scheduler_that_would_drive_a_momentum_which_there_is_not_is_told_so(schedule: Any) -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.groups())
    schedule(optimizer)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with pytest.raises(armijo.ConfigurationError, match="set cycle_momentum=False"):
        run(problem, optimizer, 1)
    assert all(map(torch.equal, before, problem.model.parameters()))


@each_kind
def test_numpy_numbers_are_numbers(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), lr=np.float32(0.5), weight_decay=np.float64(0.1))
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: np.float32(0.9**step))
    for _ in range(3):
        run(problem, optimizer, 1)
        scheduler.step()


@each_kind
def test_an_average_of_the_weights_can_be_kept(info: Any) -> None:
    problem = Problem()
    average = swa_utils.AveragedModel(problem.model)
    optimizer = info.optim_cls(problem.groups())
    for _ in range(3):
        run(problem, optimizer, 1)
        average.update_parameters(problem.model)
    assert average.n_averaged == 3
    assert torch.isfinite(average(problem.inputs)).all()


# ------------------------------------------------------------------------------------------------------------ states


@each_input
def test_a_state_loaded_again_goes_on_bit_for_bit(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **given.kwargs)
    run(problem, optimizer, 9)
    weights, state = copy.deepcopy(problem.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    losses = run(problem, optimizer, 10)
    after = problem.weights()
    problem.model.load_state_dict(weights)
    again = info.optim_cls(problem.groups(), **given.kwargs)
    again.load_state_dict(state)
    assert run(problem, again, 10) == losses
    assert equal(after, problem.weights())


@each_input
def test_state_dict_is_what_was_loaded(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **given.kwargs)
    run(problem, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    twin = info.optim_cls(problem.groups(), **given.kwargs)
    twin.load_state_dict(state)
    assert equal(state, twin.state_dict())


@each_input
def test_a_state_survives_a_file_that_holds_weights_only(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **given.kwargs)
    run(problem, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert equal(optimizer.state_dict(), torch.load(file, weights_only=True))


@each_kind
def test_a_plain_number_for_step_can_be_loaded(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    run(problem, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    for moments in state["state"].values():
        moments["step"] = int(moments["step"])
    weights = copy.deepcopy(problem.model.state_dict())
    losses = run(problem, optimizer, 3)
    problem.model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert all(isinstance(moments["step"], torch.Tensor) for moments in optimizer.state.values())
    assert run(problem, optimizer, 3) == losses


@each_kind
def test_a_state_for_some_parameters_can_be_loaded(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    bias = problem.model[2].bias.requires_grad_(False)
    run(problem, optimizer, 2)
    assert bias not in optimizer.state
    twin = info.optim_cls(problem.groups())
    twin.load_state_dict(optimizer.state_dict())
    bias.requires_grad_(True)
    run(problem, twin, 2)
    assert twin.state[bias]["step"] == 2


@each_kind
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second device is needed")
def test_a_state_from_another_device_is_moved(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    run(problem, optimizer, 2)
    there = Problem("cuda")
    twin = info.optim_cls(there.groups())
    twin.load_state_dict(optimizer.state_dict())
    assert run(there, twin, 3)[-1] < float("inf")


@each_kind
def test_moments_there_are_for_every_parameter_that_moved(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    assert not optimizer.state
    run(problem, optimizer, 1)
    moments = set[str]() if info.optim_cls is armijo.SGDSLS else {"exp_avg_sq", "last_gradient"}
    expected = {"step"} | moments
    assert [state.keys() for state in optimizer.state.values()] == [expected] * 4


# ------------------------------------------------------------------------------------------------------------ copies


@each_input
def test_a_deep_copy_holds_every_public_attribute(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **given.kwargs)
    run(problem, optimizer, 2)
    twin = copy.deepcopy(optimizer)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public == {name for name in vars(twin) if not name.startswith("_")}
    assert equal(optimizer.state_dict(), twin.state_dict())


@each_input
def test_a_pickle_of_model_and_optimizer_goes_on(info: Any, given: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups(), **given.kwargs)
    run(problem, optimizer, 9)
    other, twin = pickle.loads(pickle.dumps((problem, optimizer)))
    assert run(problem, optimizer, 5) == run(other, twin, 5)
    assert equal(problem.weights(), other.weights())


# ------------------------------------------------------------------------------------------------------------- hooks


@each_kind
def test_step_hooks(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("every optimizer, before")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_post_hook(lambda *_: seen.append("every optimizer, after")),
    ]
    run(problem, optimizer, 1)
    # The order is torch's.
    reference = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    order, seen[:] = list(seen), []
    reference.register_step_pre_hook(lambda *_: seen.append("before"))
    reference.register_step_post_hook(lambda *_: seen.append("after"))
    reference.step()
    assert order == seen
    for handle in handles:
        handle.remove()
    seen.clear()
    run(problem, optimizer, 1)
    assert seen == []


@each_kind
def test_a_step_hook_may_hand_over_the_closure(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: ((optimizer, problem.closure()), kwargs))
    assert optimizer.step() is not None
    assert optimizer.report.step == 1


@each_kind
def test_state_dict_hooks(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("second"))
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("first"), prepend=True)
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": "kept"})
    assert optimizer.state_dict()["note"] == "kept"
    assert seen == ["first", "second"]


@each_kind
def test_load_state_dict_hooks(info: Any) -> None:
    problem = Problem()
    optimizer = info.optim_cls(problem.groups())
    state = optimizer.state_dict()
    foreign = {"inner": state}
    seen: list[str] = []
    optimizer.register_load_state_dict_pre_hook(lambda _, found: found["inner"])
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    # Our own look at the state comes after the hook that makes one of what was given.
    optimizer.load_state_dict(foreign)
    assert seen == ["loaded"]
    with pytest.raises(armijo.ConfigurationError, match="This is not a state"):
        optimizer.load_state_dict({"inner": {}})
    assert seen == ["loaded"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


# ------------------------------------------------------------------------------------------------------- the table


def test_the_table_in_the_docs_names_these_tests_and_leaves_none_out() -> None:
    page = (Path(__file__).parents[2] / "docs" / "torch_contract.md").read_text(encoding="utf-8")
    here = {name for name in globals() if name.startswith("test_")}
    named = set(re.findall(r"`(test_\w+)`", page))
    assert here - named == {test_the_table_in_the_docs_names_these_tests_and_leaves_none_out.__name__}
    elsewhere = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name in named if f"def {name}(" not in elsewhere] == []
