"""Accumulation, a GradScaler and torch.compile, as docs/integrations/torch.md has them, take the plain loop's steps."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

import armijo
from integrations.plain import BATCH, cross_entropy, plain, same
from integrations.rows import batched, bert, parameters, rows


def by_closure(model: Any, optimizer: armijo.LineSearch, size: int) -> list[armijo.StepReport]:
    reports = []
    for _ in range(2):
        for batch in batched(rows(), size):
            optimizer.step(functools.partial(cross_entropy, model.train(), batch))
            reports.append(optimizer.report)
    return reports


def test_accumulated_micro_batches_take_the_steps_of_one_batch() -> None:
    model, twin = bert(), bert()
    # Along the gradient: Adam's direction makes full steps of what is rounding in the gradient of a key's bias.
    found = plain(model, armijo.SGDSLS(model.parameters()), accumulate=2)
    found = [replace(report, forwards=report.forwards // 2) for report in found]
    same(found, by_closure(twin, armijo.SGDSLS(twin.parameters()), 2 * BATCH), rtol=1e-5)


def halved(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.float16):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits.float(), batch["labels"])


def test_a_grad_scaler_changes_no_step() -> None:
    model, twin = bert(), bert()
    model.train()
    optimizer = armijo.SGDSLS(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=5)
    found = []
    for step, batch in enumerate(batched(rows(), BATCH) * 2):
        torch.manual_seed(step)
        optimizer.zero_grad()
        objective = armijo.Objective()
        loss = objective.baseline(functools.partial(halved, model, batch))
        scaler.scale(loss).backward()
        scaler.step(optimizer, objective)
        scaler.update()
        found.append(optimizer.report)
    assert scaler.get_scale() > 2.0**8
    # Scaled by powers of two, gradients differ only where float16 underflows without a scale.
    same(found, plain(twin, armijo.SGDSLS(twin.parameters()), halved), rtol=1e-3)


def test_a_step_is_skipped_where_the_gradients_overflow() -> None:
    model = bert().train()
    before = parameters(model)
    optimizer = armijo.AdamSLS(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    objective = armijo.Objective()
    scaler.scale(objective.baseline(functools.partial(halved, model, batched(rows(), BATCH)[0]))).backward()
    scaler.step(optimizer, objective)
    scaler.update()
    assert all(map(torch.equal, parameters(model), before))
    assert scaler.get_scale() == 2.0**59


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 cannot compile the wrappers of transformers 5")
def test_a_compiled_model_takes_the_steps_of_the_plain_one() -> None:
    torch.compiler.reset()
    model, twin = bert(), bert()
    compiled = torch.compile(model.train(), backend="aot_eager")
    optimizer = armijo.PLASLS(armijo.split(compiled, n_layer_groups=2))
    found = []
    for batch in batched(rows(), BATCH) * 2:
        optimizer.zero_grad()
        objective = armijo.Objective(modules=[model])
        objective.baseline(functools.partial(cross_entropy, compiled, batch)).backward()
        optimizer.step(objective)
        found.append(optimizer.report)
    same(found, plain(twin, armijo.PLASLS(armijo.split(twin, n_layer_groups=2))), rtol=1e-4)
