"""The doctor finds what is wrong, says what to do, and exits with 1 only then."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import armijo
from armijo.evaluation import objective
from armijo.evaluation.rng import RandomState
from armijo.step import step
from armijo_lab import cli, health

Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that this machine or the shell happens to say about accelerate."""
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "FSDP_VERSION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the self-test, which is not what is looked at."""
    monkeypatch.setattr(health, "_self_test", lambda kind, device: "left out")


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*options: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as raised:
            cli.main(["doctor", *options])
        assert isinstance(raised.value.code, int)
        captured = capsys.readouterr()
        assert captured.err == ""
        return raised.value.code, captured.out

    return run


def test_a_healthy_machine(doctor: Run) -> None:
    before = torch.get_rng_state()
    code, out = doctor()
    assert code == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert f"torch                  {importlib.metadata.version('torch')}" in out
    assert "cpu: 1 threads" in out
    for kind in ("AdamSLS", "PLASLS"):
        assert f"  {kind} on cpu: ok: loss" in out
    assert out.endswith("All is well.\n")


def test_json_is_for_bug_reports(doctor: Run, untested: None) -> None:
    code, out = doctor("--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (0, [])
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["armijo"] == armijo.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert [(check["optimizer"], check["device"]) for check in found["checks"]] == [
        (kind, device["name"]) for device in found["devices"] for kind in ("AdamSLS", "PLASLS")
    ]
    assert all(check["problem"] is None for check in found["checks"])
    for private in (str(Path.home()), sys.prefix):
        assert private not in out


# ------------------------------------------------------------------------------------------------ a failing self-test


def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_commit", lambda optimizer, lines, plan, snapshot: None)


def other_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomState, "restore", lambda self: None)


def other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_one_kernel", nullcontext)


def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(armijo.LineSearch, "load_state_dict", lambda self, state: None)


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any) -> None:
        raise RuntimeError("no kernel image is available.\nAnd more.")

    monkeypatch.setattr(torch.nn.TransformerEncoderLayer, "forward", fail)


@pytest.mark.parametrize(
    ("breaking", "sentence"),
    [
        (unmoved, "AdamSLS on cpu: the loss did not fall in 20 steps"),
        (other_masks, "AdamSLS on cpu: a trial at step size 0 did not repeat the loss in training mode"),
        (other_kernels, "AdamSLS on cpu: a trial at step size 0 did not repeat the loss in evaluation mode"),
        (forgotten, "AdamSLS on cpu: a run that went on from a checkpoint took other steps"),
        (broken, "AdamSLS on cpu ended in an error (RuntimeError: no kernel image is available); see whether torch"),
    ],
)
def test_a_self_test_that_fails_is_a_sentence(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, breaking: Callable[[pytest.MonkeyPatch], None], sentence: str
) -> None:
    breaking(monkeypatch)
    code, out = doctor()
    assert code == 1
    assert "AdamSLS on cpu: FAILED: " in out
    assert f"Something is wrong\n  {sentence}" in out
    assert "report it with what `armijo doctor --json` prints" in out
    assert "All is well" not in out


# --------------------------------------------------------------------------------------------------- old versions


@pytest.mark.parametrize(
    ("package", "version", "old"),
    [
        ("torch", "2.5.1+cu121", True),
        ("torch", "2.6", False),
        ("torch", "2.10.0", False),
        ("transformers", "4.57.3", True),
        ("transformers", "5.6.0rc1", False),
        ("transformers", "6", False),
        ("numpy", "1.0", False),  # has no floor
    ],
)
def test_a_version_below_the_floor_is_a_sentence(
    doctor: Run, untested: None, monkeypatch: pytest.MonkeyPatch, package: str, version: str, old: bool
) -> None:
    real = health._version
    monkeypatch.setattr(health, "_version", lambda name: version if name == package else real(name))
    code, out = doctor()
    assert code == int(old)
    assert ("is older than" in out) == old
    if old:
        floor = {"torch": "2.6", "transformers": "5.6"}[package]
        assert f"{package} {version} is older than {floor}" in out
        assert f"pip install --upgrade '{package}>={floor}'" in out


def test_what_is_not_installed_is_not_listed(untested: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = health._version
    monkeypatch.setattr(health, "_version", lambda name: real(name) if name == "torch" else None)
    assert list(health.examine().versions) == ["python", "armijo", "torch"]

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    # Run from a folder and not installed, armijo has no metadata.
    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert health._floors() == {}


# ----------------------------------------------------------------------------------------- what would be refused


FSDP = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: {}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("distributed_type: DEEPSPEED\n", "default_config.yaml asks for DeepSpeed. DeepSpeed steps inside backward()"),
        ('{\n  "distributed_type": "NO"\n}', None),
        ("distributed_type: 'DEEPSPEED'\n", "asks for DeepSpeed"),
        ("# distributed_type: DEEPSPEED\ndistributed_type: MULTI_GPU\n", None),
        (FSDP.format(1), "default_config.yaml asks for FSDP1"),
        ("distributed_type: FSDP\n", "default_config.yaml asks for FSDP1"),
        (FSDP.format(2), None),
        ("parallelism_config:\n  parallelism_config_cp_size: 4\n", "splits rows over ranks"),
        ("parallelism_config:\n  parallelism_config_cp_size: 1\n", None),
        ("\udcff", None),
    ],
)
def test_what_accelerate_is_configured_for(
    doctor: Run, untested: None, tmp_path: Path, text: str, sentence: str | None
) -> None:
    (tmp_path / "cache" / "accelerate").mkdir(parents=True)
    path = tmp_path / "cache" / "accelerate" / "default_config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    code, out = doctor()
    assert code == 0  # a script that is started with python has nothing to do with it
    _, _, refused = out.partition("What would be refused here\n")
    assert (sentence or "nothing that was looked for") in refused
    assert str(tmp_path) not in out


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "This process was launched for DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "This process was launched for FSDP1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "use FSDP2 (accelerate launch --fsdp_version 2)"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, None),
        ({"ACCELERATE_USE_DEEPSPEED": "false"}, None),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "with rows split over ranks"),
    ],
)
def test_a_launch_that_cannot_train_is_wrong(
    doctor: Run, untested: None, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out = doctor()
    assert code == (0 if sentence is None else 1)
    assert (sentence or "All is well") in out


class Cuda:
    """Two GPUs that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Properties:
            name, total_memory = "NVIDIA Made Up", 80 * 2**30

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
        monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
        monkeypatch.setattr(torch.version, "cuda", None)


def test_several_gpus_are_described_and_would_be_wrapped(
    doctor: Run, untested: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cuda(monkeypatch)
    code, out = doctor()
    assert code == 0
    assert "  cuda:1: NVIDIA Made Up, 80 GiB, no bfloat16, float32 products highest" in out
    assert "2 GPUs are visible to one process" in out
    assert "torchrun --nproc-per-node 2, or set CUDA_VISIBLE_DEVICES=0" in out
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "GPUs are visible" not in doctor()[1]


def test_a_half_precision_default_is_wrong(doctor: Run, untested: None) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        code, out = doctor()
    finally:
        torch.set_default_dtype(torch.float32)
    assert code == 1
    assert "New tensors are bfloat16 by default" in out


def test_the_self_test_stands_a_half_precision_default(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        said = health._self_test(armijo.AdamSLS, torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert said.startswith("loss ")


def test_torch_and_armijo_are_all_that_is_needed() -> None:
    tree = ast.parse(Path(health.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "armijo"}
