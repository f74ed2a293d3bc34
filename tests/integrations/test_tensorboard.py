"""The scalars in the event files are those of the steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import armijo
from armijo.errors import ConfigurationError
from armijo.observers.tensorboard import TensorBoardObserver

pytest.importorskip("tensorboard")


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def trained(folder: Path, steps: int, **options: Any) -> list[armijo.StepReport]:
    from torch.utils.tensorboard import SummaryWriter

    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    optimizer = armijo.PLASLS(armijo.split(model, by="module"), selection=armijo.Cycle(joint_steps=1))
    reports: list[armijo.StepReport] = []
    optimizer.register_observer(reports.append)
    with SummaryWriter(folder) as writer:
        optimizer.register_observer(TensorBoardObserver(writer, **options))
        for step in range(steps):
            inputs, labels = torch.randn(8, 4), torch.randint(2, (8,))
            if step == 2:
                inputs[0] = math.nan
            optimizer.step(lambda i=inputs, t=labels: torch.nn.functional.cross_entropy(model(i), t))
    return reports


def same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [step for step, _ in found] == [step for step, _ in wanted]
    # Events hold float32.
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6, nan_ok=True)


def test_the_event_files_hold_every_number_of_every_step(tmp_path: Path) -> None:
    reports = trained(tmp_path, 6)
    found = read(tmp_path)
    same(found.pop("train/loss"), [(report.step, report.loss) for report in reports])
    same(found.pop("train/forwards"), [(report.step, report.forwards) for report in reports])
    searched = [report for report in reports if any(component.trials for component in report.components)]
    assert len(searched) == len(reports) - 1  # nothing is searched where the loss is not finite
    accepted = [[c.status == "accepted" for c in report.components if c.trials] for report in searched]
    shares = [sum(those) / len(those) for those in accepted]
    same(found.pop("train/accepted"), [(r.step, share) for r, share in zip(searched, shares, strict=True)])
    for place, label in enumerate(("0", "2")):
        parts = [(report.step, report.components[place]) for report in reports]
        same(found.pop(f"train/step_size/{label}"), [(step, part.step_size) for step, part in parts])
        known = [(step, part.slope) for step, part in parts if not math.isnan(part.slope)]
        assert len(known) == len(searched)
        same(found.pop(f"train/slope/{label}"), known)
    assert not found


def test_a_search_that_fails_is_not_accepted(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def part(label: str, status: armijo.Status, trials: int) -> armijo.ComponentReport:
        return armijo.ComponentReport(label, status, 0.1, 1.0, trials, None)

    exhausted, accepted, unsearched = (armijo.Status(name) for name in ("exhausted", "accepted", "unsearched"))
    parts = (part("a", exhausted, 5), part("b", accepted, 1), part("c", accepted, 1), part("d", unsearched, 0))
    with SummaryWriter(tmp_path) as writer:
        TensorBoardObserver(writer, prefix="")(armijo.StepReport(3, 0.5, parts, (), 8, 8))
    same(read(tmp_path)["accepted"], [(3, 2 / 3)])


def test_the_prefix_is_the_users_and_other_ranks_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "named", 1, prefix="mine/")
    assert all(tag.startswith("mine/") for tag in read(tmp_path / "named"))
    monkeypatch.setenv("RANK", "1")
    trained(tmp_path / "other", 1)
    assert read(tmp_path / "other") == {}


def test_a_folder_is_no_writer(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="takes a SummaryWriter, not a PosixPath"):
        TensorBoardObserver(tmp_path)  # pyright: ignore[reportArgumentType]
