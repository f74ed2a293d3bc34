"""Averages of the iterates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import armijo


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_the_average_weighs_iterates_by_a_polynomial_of_their_number(power: float) -> None:
    model = torch.nn.Linear(2, 1).double()
    average = AveragedModel(model, multi_avg_fn=armijo.polynomial_average(power))
    iterates, weights = [], []
    for k in range(1, 8):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 2, dtype=torch.float64))
        average.update_parameters(model)
        iterates.append(model.weight.detach().clone())
        weight = (power + 1) / (k + power)
        weights = [each * (1 - weight) for each in weights] + [weight]
    expected = sum(w * x for w, x in zip(weights, iterates, strict=True))
    assert torch.allclose(average.module.weight, expected)
    assert weights == pytest.approx(sorted(weights))
    assert sum(weights) == pytest.approx(1)
    if power == 0:
        assert weights == pytest.approx([1 / 7] * 7)


@pytest.mark.parametrize("power", [-1.0, float("inf"), "3", True])
def test_a_power_that_is_none_is_refused(power: Any) -> None:
    with pytest.raises(armijo.ConfigurationError, match="power"):
        armijo.polynomial_average(power)


def test_running_statistics_are_averaged_and_counts_taken_over() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).double()
    norm: Any = model[1]
    average = AveragedModel(model, multi_avg_fn=armijo.polynomial_average(), use_buffers=True)
    expected = torch.zeros(3, dtype=torch.float64)
    for k in range(1, 6):
        model(torch.randn(5, 2, dtype=torch.float64))
        average.update_parameters(model)
        expected += 4 / (k + 3) * (norm.running_mean - expected)
    held: Any = average.module[1]
    assert torch.allclose(held.running_mean, expected)
    assert held.num_batches_tracked == 5
