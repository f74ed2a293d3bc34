"""PLASLS in the released code's order, against a search that is written out."""

import contextlib
import copy

import torch

import armijo.paper
from armijo_lab.methods.released import ReleasedPLASLS


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(5, 5, dtype=torch.float64) for _ in range(4)))
    inputs, targets = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    return model, lambda: torch.nn.functional.mse_loss(model(inputs).tanh(), targets)


def optimizer(kind, model, **keywords):
    groups = [{"params": list(layer.parameters()), "component": str(place)} for place, layer in enumerate(model)]
    joint = {"joint_steps": 2} if kind is ReleasedPLASLS else {"selection": armijo.Cycle(2)}
    return kind(groups, **joint, initial_step_size=0.5, **keywords)


def losses_tried(opt, loss):
    """The losses of the evaluations of one step, in their order."""
    seen = []

    def closure():
        value = loss()
        seen.append(value.item())
        return value

    opt.step(closure)
    return seen


def test_the_components_before_the_searched_one_have_moved_already():
    model, loss = make()
    opt = optimizer(ReleasedPLASLS, model)
    # Two joint steps, then components 0 and 1; at the fifth step component 2 is searched.
    for _ in range(4):
        opt.step(loss)
    before = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(opt.state_dict())
    tried = losses_tried(opt, loss)
    after = copy.deepcopy(model.state_dict())

    # By hand: components 0 and 1 at where the step ends, component 2 along its direction, component 3 as before.
    model.load_state_dict(before)
    value = loss()
    assert value.item() == tried[0]
    grads = torch.autograd.grad(value, list(model[2].parameters()))
    moments = [state["state"][place] for place in (4, 5)]
    size = state["param_groups"][2]["step_size"] * 2 ** (1 / 500)
    moved = {key: after[key] if key[0] in "01" else tensor for key, tensor in before.items()}
    model.load_state_dict(moved)
    with torch.no_grad():
        for parameter, grad, moment in zip(model[2].parameters(), grads, moments, strict=True):
            squares = 0.999 * moment["exp_avg_sq"] + 0.001 * grad**2
            denominator = (squares / (1 - 0.999 ** (float(moment["step"]) + 1))).sqrt() + 1e-8
            parameter -= size * grad / denominator
    torch.testing.assert_close(loss().item(), tried[1], rtol=1e-12, atol=0.0)


def test_only_the_searched_loss_differs_from_the_paper():
    ours, _loss = make()
    theirs = copy.deepcopy(ours)
    released, paper = optimizer(ReleasedPLASLS, ours), optimizer(armijo.paper.PLASLS, theirs)
    inputs = torch.randn(12, 5, dtype=torch.float64)

    def closure(model):
        return lambda: model(inputs).tanh().pow(2).mean()

    for step in range(5):
        first, second = losses_tried(released, closure(ours)), losses_tried(paper, closure(theirs))
        # The joint steps and a search of the first component are the same.
        if step < 3:
            assert first == second
    assert first != second


def test_what_a_failed_search_began_with_is_measured():
    model, loss = make()
    # Steps so long that the moves of the earlier components raise the loss.
    opt = optimizer(ReleasedPLASLS, model, max_trials=3)
    seen = []
    for _ in range(30):
        before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
        tried = losses_tried(opt, loss)
        statuses = {part.label: str(part.status) for part in opt.report.components}
        searched = state["param_groups"][0]["cycle_place"] % 4
        measured = [trial.loss for trial in opt.report.searches[0].trials if trial.step_size == 0]
        if statuses[str(searched)] == "exhausted" and searched > 0 and state["param_groups"][0]["steps"] >= 2:
            after = copy.deepcopy(model.state_dict())
            moved = {key: after[key] if int(key[0]) < searched else tensor for key, tensor in before.items()}
            model.load_state_dict(moved)
            seen.append((measured[0], loss().item(), tried[-1]))
            model.load_state_dict(after)
        elif statuses[str(searched)] == "accepted":
            assert not measured
    assert seen
    for measured, by_hand, last in seen:
        assert measured == last
        assert abs(measured - by_hand) < 1e-12


def test_a_failure_puts_everything_back():
    model, loss = make()
    opt = optimizer(ReleasedPLASLS, model)
    for _ in range(4):
        opt.step(loss)
    before = copy.deepcopy(model.state_dict())
    calls = []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the first trial")
        return loss()

    with contextlib.suppress(RuntimeError):
        opt.step(failing)
    assert len(calls) == 2
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
