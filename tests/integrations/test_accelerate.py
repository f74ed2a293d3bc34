"""A loop with Accelerate takes the steps of the loop without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import armijo
from integrations.plain import BATCH, cross_entropy, plain, same
from integrations.rows import batched, bert, parameters, rows

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

CHOICES = {
    "adamsls": lambda model: armijo.AdamSLS(model.parameters()),
    "plasls": lambda model: armijo.PLASLS(armijo.split(model, n_layer_groups=2)),
}


@pytest.fixture(autouse=True)
def _fresh_state() -> Any:
    """Accelerate keeps its configuration in singletons."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def loader(size: int) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(rows(), batch_size=size, collate_fn=lambda part: batched(part, len(part))[0])


def by_accelerate(
    model: Any, searcher: armijo.LineSearch, accumulate: int = 1, precision: str = "no", epochs: int = 2
) -> list[armijo.StepReport]:
    """The loop of examples/accelerate_loop.py; each update begins from a seed of its own, as in `plain`."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    prepared, optimizer, batches = accelerator.prepare(model.train(), searcher, loader(BATCH))
    reports, objective, opened = [], armijo.Objective(), True
    for _ in range(epochs):
        for batch in batches:
            if opened:
                torch.manual_seed(len(reports))
                opened = False
            with accelerator.accumulate(prepared):
                loss = objective.baseline(lambda batch=batch: cross_entropy(prepared, batch), weight=1 / accumulate)
                accelerator.backward(loss)
                optimizer.step(objective)
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                reports.append(searcher.report)
                objective, opened = armijo.Objective(), True
    return reports


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_steps_are_those_of_the_plain_loop(choice: str, accumulate: int) -> None:
    model, twin = bert(dropout=0.1), bert(dropout=0.1)
    found = by_accelerate(model, CHOICES[choice](model), accumulate)
    same(found, plain(twin, CHOICES[choice](twin), accumulate=accumulate))
    torch.testing.assert_close(parameters(model), parameters(twin), rtol=1e-5, atol=1e-7)
    assert len(found) == 2 * 48 // BATCH // accumulate


def test_a_closure_reaches_the_search_through_the_prepared_optimizer() -> None:
    model, twin = bert(), bert()
    accelerator = Accelerator(cpu=True)
    searcher = armijo.AdamSLS(model.parameters())
    prepared, optimizer, batches = accelerator.prepare(model.train(), searcher, loader(BATCH))
    found = []
    for _ in range(2):
        for batch in batches:
            optimizer.step(lambda batch=batch: cross_entropy(prepared, batch))
            found.append(searcher.report)
    same(found, plain(twin, armijo.AdamSLS(twin.parameters())))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def test_a_closure_in_accumulate_is_refused_where_it_would_miss_micro_batches() -> None:
    model = bert()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer, batches = accelerator.prepare(model.train(), armijo.AdamSLS(model.parameters()), loader(BATCH))

    def train() -> None:
        for batch in batches:
            with accelerator.accumulate(prepared):
                optimizer.step(lambda batch=batch: cross_entropy(prepared, batch))

    with pytest.raises(armijo.ClosureContractError, match=r"accumulates the gradients of 2 micro-batches.*Objective"):
        train()
    # A loop without Accelerate's optimizer is none of its business.
    other = bert()
    armijo.AdamSLS(other.parameters()).step(lambda: cross_entropy(other, next(iter(batches))))


def test_bf16_is_the_plain_loop_under_autocast() -> None:
    model, twin = bert(), bert()
    found = by_accelerate(model, armijo.AdamSLS(model.parameters()), precision="bf16")

    def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits.float(), batch["labels"])

    wanted = plain(twin, armijo.AdamSLS(twin.parameters()), loss_of)
    # Accelerate autocasts the loss of the head too, where it is computed in float32.
    same(found, wanted, rtol=1e-3)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_saved_state_goes_on_as_if_it_had_not_ended(tmp_path: Path, choice: str) -> None:
    model, twin = bert(), bert()
    whole = by_accelerate(model, CHOICES[choice](model))

    found = by_accelerate(twin, searcher := CHOICES[choice](twin), epochs=1)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(twin, searcher)
    accelerator.save_state(str(tmp_path / "state"))
    again = bert(seed=1)
    accelerator = Accelerator(cpu=True)
    resumed = CHOICES[choice](again)
    accelerator.prepare(again, resumed)
    accelerator.load_state(str(tmp_path / "state"))
    found += by_accelerate(again, resumed, epochs=1)
    assert [report.step for report in found] == [report.step for report in whole]
    assert [report.loss for report in found] == [report.loss for report in whole]
    assert all(map(torch.equal, parameters(again), parameters(model)))


def test_an_update_cut_short_by_the_end_of_an_epoch_counts_as_accelerate_counts_it() -> None:
    model, twin = bert(), bert()
    found = by_accelerate(model, armijo.SGDSLS(model.parameters()), accumulate=4, epochs=1)
    assert len(found) == 2
    optimizer, batches = armijo.SGDSLS(twin.train().parameters()), batched(rows(), BATCH)
    wanted = []
    for micro in (batches[:4], batches[4:]):
        optimizer.zero_grad()
        objective = armijo.Objective()
        for batch in micro:
            objective.baseline(lambda batch=batch: cross_entropy(twin, batch) / 4).backward()
        optimizer.step(objective)
        wanted.append(optimizer.report)
    same(found, wanted)
