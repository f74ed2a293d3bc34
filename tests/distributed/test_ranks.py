"""Two and three processes take the decisions of one process that has all rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import ranks

WORLDS = (2, pytest.param(3, marks=pytest.mark.soak))
TRAJECTORIES = {
    "ddp_sgdsls": "sgdsls",
    "ddp_adamsls": "adamsls",
    "ddp_plasls": "plasls",
    "ddp_paper": "paper",
    "fsdp_sgdsls": "sgdsls",
    "fsdp_adamsls": "adamsls",
    "fsdp_plasls": "plasls",
    "hsdp_replicated": "plasls",
    "hsdp_sharded": "plasls",
    "accumulated": "adamsls",
    "named_group": "adamsls",
}


def launch(folder: Path, world: int, *cases: str, seconds: float = 120.0) -> list[dict[str, Any] | None]:
    """What each rank wrote, `None` for one that ended before it could."""
    environment = {**os.environ, "CHECKPOINT": str(folder / "checkpoint"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(ranks.__file__)), str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), *cases], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    files = [folder / f"{world}-{rank}.pt" for rank in range(world)]
    if not cases:
        assert all(file.is_file() for file in files), "\n".join(said)
    return [torch.load(file) if file.is_file() else None for file in files]


@pytest.fixture(scope="module", params=WORLDS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return launch(tmp_path_factory.mktemp("ranks"), request.param)


def alone(kind: str) -> dict[str, Any]:
    model = ranks.network()
    return ranks.train(model, ranks.optimizer_of(kind, model), 0, 1)


def alike(found: list[Any], case: str) -> Any:
    """What a case gave, having seen that all ranks took the same decisions and hold the same parameters."""
    first, *others = (rank[case] for rank in found)
    for other in others:
        assert all(map(torch.equal, first["parameters"], other["parameters"]))
        for key in ("losses", "step_sizes", "slopes", "trials", "statuses", "merges"):
            assert repr(first[key]) == repr(other[key]), key
    return first


@pytest.mark.parametrize("case", TRAJECTORIES)
def test_the_trajectory_is_that_of_one_process_with_all_rows(found: list[Any], case: str) -> None:
    one, many = alone(TRAJECTORIES[case]), alike(found, case)
    assert many["trials"] == one["trials"]
    assert many["statuses"] == one["statuses"]
    assert many["merges"] == one["merges"]
    torch.testing.assert_close(many["step_sizes"], one["step_sizes"], rtol=1e-12, atol=0)
    torch.testing.assert_close(many["slopes"], one["slopes"], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(many["losses"], one["losses"], rtol=1e-9, atol=0)
    torch.testing.assert_close(many["parameters"], one["parameters"], rtol=1e-8, atol=1e-9)


def test_masks_may_differ_between_ranks_and_running_statistics_are_sent_round(found: list[Any]) -> None:
    many = alike(found, "ddp_dropout_and_batch_norm")
    assert {status for step in many["statuses"] for status in step} >= {"accepted"}
    for rank in found:
        assert all(map(torch.equal, rank["ddp_dropout_and_batch_norm"]["statistics"], many["statistics"]))


@pytest.mark.parametrize("case", ["failing_in_the_forward", "failing_before_the_forward", "failing_in_a_trial"])
def test_a_rank_that_fails_ends_the_step_on_all(found: list[Any], case: str) -> None:
    *others, last = (rank[case] for rank in found)
    assert last["error"] == "OSError: the disk is gone"
    for other in others:
        assert other["error"].startswith(f"RankError: Rank {len(found) - 1} has failed in this step")
    assert all(rank[case]["same"] for rank in found), "the failed step left something behind"
    assert alike(found, case)["statuses"][0].count("accepted") >= 1


def test_the_ranks_are_known_from_the_first_baseline_on(found: list[Any]) -> None:
    *others, last = [rank["failing_from_the_first_step"] for rank in found]
    assert last["errors"] == ["OSError", "OSError"]
    assert all(rank["errors"] == ["RankError", "RankError"] for rank in others)
    assert all(rank["step_sizes"] == last["step_sizes"] for rank in others)


def test_a_loss_that_is_not_finite_on_one_rank_is_so_on_all(found: list[Any]) -> None:
    assert alike(found, "not_finite_on_one_rank")["statuses"] == [["nonfinite"]]
    assert all(rank["not_finite_on_one_rank"]["same"] for rank in found)


def test_a_distributed_checkpoint_goes_on(found: list[Any]) -> None:
    through, resumed = alike(found, "fsdp_plasls"), alike(found, "checkpoint")
    for key in ("losses", "step_sizes", "slopes", "trials", "statuses", "merges"):
        assert resumed[key] == through[key][4:], key
    assert all(map(torch.equal, through["parameters"], resumed["parameters"]))


def test_ranks_that_hold_different_parameters_are_refused_on_all(found: list[Any]) -> None:
    for rank in found:
        assert rank["split_over_ranks"]["error"].startswith("The optimizers of the ranks hold different parameters")
        assert rank["split_over_ranks"]["same"]


def test_ranks_that_nothing_joins_are_warned_once(found: list[Any]) -> None:
    for rank in found:
        (said,) = rank["unwrapped"]
        assert said.startswith(f"torch.distributed runs on {len(found)} ranks")
        assert "process_group=torch.distributed.group.WORLD" in said


@pytest.mark.soak
@pytest.mark.parametrize("part", range(8))
def test_no_rank_aborts_at_its_end(part: int, tmp_path: Path) -> None:
    """A process group that is not destroyed, or a thread that still waits, ends a process in `terminate called`."""
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, str(Path(ranks.__file__)), str(folder)]
        processes = [
            subprocess.Popen([*command, str(rank), "2", "ddp_sgdsls"], stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        said = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        assert not any("terminate called" in words for words in said)


def test_a_rank_that_ends_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    first, last = launch(tmp_path, 2, "dying")
    assert last is None
    assert first is not None
    assert first["dying"]["error"].startswith("This rank could not exchange its losses with the others")
    assert first["dying"]["same"]
