"""torchrun with two processes: the Trainer's steps are those of one process with all rows."""

import os
from pathlib import Path

import pytest
import torch

import armijo
from integrations import trainer_ranks
from integrations.plain import plain
from integrations.rows import bert, parameters
from processes import run_to_end, torchrun


@pytest.mark.parametrize("case", ["ddp", "fsdp2", pytest.param("accumulated", marks=pytest.mark.soak)])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, case: str) -> None:
    command = torchrun(Path(trainer_ranks.__file__), str(tmp_path), case)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = run_to_end(command, 200, environment)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{case}-{rank}.pt") for rank in range(2))
    for key in ("losses", "trials", "step_sizes"):
        assert first[key] == second[key], key
    assert all(map(torch.equal, first["parameters"], second["parameters"]))
    assert first["sharded"] == (case == "fsdp2")

    twin = bert()
    accumulate = trainer_ranks.CASES[case].get("gradient_accumulation_steps", 1)
    reports = plain(twin, armijo.PLASLS(armijo.split(twin, n_layer_groups=2)), accumulate=accumulate)
    assert first["trials"] == [[c.trials for c in report.components] for report in reports]
    torch.testing.assert_close(first["losses"], [report.loss for report in reports], rtol=1e-4, atol=0)
    for (name, _), found, wanted in zip(twin.named_parameters(), first["parameters"], parameters(twin), strict=True):
        # The gradient of a key's bias is zero but for rounding, of which Adam's direction makes full steps.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
