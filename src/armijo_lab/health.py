"""What there is on this machine, and whether a line search works here: `armijo doctor` without its terminal.

torch and armijo are all that is needed; of other packages only the versions are looked up, none is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import itertools
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import armijo

__all__ = ["Check", "Device", "Health", "examine"]

_Kind = type[armijo.AdamSLS] | type[armijo.PLASLS]

STEPS = 20
_PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "trl", "sentence-transformers", "setfit"),
    *("lightning", "pytorch-lightning", "deepspeed", "tokenizers", "safetensors", "datasets", "numpy"),
    *("matplotlib", "tensorboard", "typer", "rich", "hydra-core"),
)
_REPORT = "report it with what `armijo doctor --json` prints"


@dataclass(frozen=True)
class Check:
    """One test of an optimizer on a device.

    Args:
        optimizer: its name.
        device: where it ran.
        said: what it found, for people.
        problem: what was wrong, and what to do; None if it passed.
    """

    optimizer: str
    device: str
    said: str
    problem: str | None = None


@dataclass(frozen=True)
class Device:
    """Something to compute on.

    Args:
        name: as torch names it.
        facts: what is to be known of it, each a JSON value.
    """

    name: str
    facts: dict[str, Any]


@dataclass
class Health:
    """What an examination found.

    Args:
        versions: of Python and of each package of interest that is installed.
        devices: what there is to compute on.
        checks: the self-test.
        problems: sentences on what is wrong and what to do about it.
        refused: sentences on what armijo would refuse if a training were launched as this machine is set up.
    """

    versions: dict[str, str] = field(default_factory=dict)
    devices: list[Device] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def examine() -> Health:
    """Look at versions, devices and settings, and train a small model on each device.

    Generators of torch, NumPy and Python are afterwards as before.
    """
    health = Health(versions=_versions(), devices=_devices())
    health.problems += _too_old(health.versions)
    for device in health.devices:
        for kind in (armijo.AdamSLS, armijo.PLASLS):
            check = _tried(kind, device.name)
            health.checks.append(check)
            if check.problem is not None:
                health.problems.append(check.problem)
    default = torch.get_default_dtype()
    if default in (torch.float16, torch.bfloat16):
        health.problems.append(
            f"New tensors are {str(default).removeprefix('torch.')} by default, in which a search cannot see small "
            "decreases of the loss: remove the call of torch.set_default_dtype and use torch.autocast."
        )
    active, configured = _launched(), _configured()
    health.problems += active
    health.refused += [sentence for sentence in configured if not active]
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        health.refused.append(
            f"{torch.cuda.device_count()} GPUs are visible to one process, and the Hugging Face Trainer would wrap the "
            "model in torch.nn.DataParallel, which has a loss for each: launch with torchrun --nproc-per-node "
            f"{torch.cuda.device_count()}, or set CUDA_VISIBLE_DEVICES=0."
        )
    return health


# ------------------------------------------------------------------------------------------------------------ versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    found = {package: version for package in _PACKAGES if (version := _version(package)) is not None}
    return {"python": platform.python_version(), "armijo": armijo.__version__, **found}


def _too_old(versions: dict[str, str]) -> list[str]:
    floors = _floors()
    return [
        f"{package} {version} is older than {floors[package]}, from which on armijo is tested: "
        f"pip install --upgrade '{package}>={floors[package]}'."
        for package, version in versions.items()
        if package in floors and _numbers(version) < _numbers(floors[package])
    ]


def _floors() -> dict[str, str]:
    """The least version of each package that armijo's own metadata name, none where it is not installed."""
    try:
        needed = importlib.metadata.requires("armijo") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    floors: dict[str, str] = {}
    for requirement in needed:
        name = re.match(r"[\w.-]+", requirement)
        least = re.search(r">=\s*(\d[\d.]*)", requirement)
        if name and least and _numbers(least[1]) > _numbers(floors.get(name[0], "0")):
            floors[name[0]] = least[1]
    return floors


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version, without zeros at its end: 2.6 is 2.6.0."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# ------------------------------------------------------------------------------------------------------------- devices


def _devices() -> list[Device]:
    cpu: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "float32_matmul": torch.get_float32_matmul_precision(),
    }
    devices = [Device("cpu", cpu)]
    if torch.cuda.is_available():
        devices += [Device(f"cuda:{index}", _gpu(index)) for index in range(torch.cuda.device_count())]
    elif torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        devices += [Device(f"{kind.type}:{index}", {}) for index in range(torch.accelerator.device_count())]
    return devices


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "gpu": properties.name,
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
        "bfloat16": bfloat16,
        # "highest" is float32 throughout; "high" lets matrix products go through TensorFloat-32.
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }


# ----------------------------------------------------------------------------------------------------------- self-test


def _tried(kind: _Kind, device: str) -> Check:
    random = armijo.RandomState.capture()
    name = kind.__name__
    try:
        return Check(name, device, _self_test(kind, torch.device(device)))
    except _FailedError as error:
        problem = f"{name} on {device}: {error}; reinstall torch, and if that does not help, {_REPORT}."
        return Check(name, device, str(error), problem)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        problem = (
            f"{name} on {device} ended in an error ({reason.rstrip('.')}); see whether torch itself works there with "
            f"python -c \"import torch; print(torch.ones(2, device='{device}').sum())\", and if it does, {_REPORT}."
        )
        return Check(name, device, reason, problem)
    finally:
        random.restore()


class _FailedError(Exception):
    """A part of the self-test did not come out as it must."""


def _self_test(kind: _Kind, device: torch.device) -> str:
    """Train a small classifier with attention and dropout on rows that it can learn, and say what came out.

    Raises:
        _FailedError: Something is not as it must be.
    """
    # Some kernels of a GPU add in no fixed order, and steps that follow each other magnify the difference.
    exact = device.type == "cpu"
    torch.manual_seed(0)
    inputs = torch.randn(32, 6, 16, dtype=torch.float32).to(device)
    labels = (inputs.mean(dim=(1, 2)) > 0).long()

    def made() -> tuple[nn.Module, armijo.LineSearch]:
        attention = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, dtype=torch.float32)
        model = nn.Sequential(attention, nn.Flatten(), nn.Linear(96, 2, dtype=torch.float32)).to(device)
        return model, kind(armijo.split(model, by="module"))

    def loss(model: nn.Module, rows: slice = slice(None)) -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs[rows]), labels[rows])

    def run(model: nn.Module, optimizer: armijo.LineSearch, steps: range) -> list[float]:
        losses = []
        for step in steps:
            torch.manual_seed(step)
            value = optimizer.step(lambda: loss(model))
            assert value is not None
            losses.append(float(value))
        return losses

    def close(found: float, wanted: float) -> bool:
        return found == wanted if exact else abs(found - wanted) <= 1e-3 * abs(wanted)

    model, optimizer = made()
    # Eight batches, because a wrong kernel may hit the right bits of one.
    for mode, first in itertools.product(("training", "evaluation"), range(0, len(inputs), 4)):
        model.train(mode == "training")
        objective = armijo.Objective()
        objective.baseline(functools.partial(loss, model, slice(first, first + 4)))
        if not close(trial := objective.trial(), objective.value()):
            raise _FailedError(
                f"a trial at step size 0 did not repeat the loss in {mode} mode ({objective.value():.9g}, then "
                f"{trial:.9g})"
            )
    with torch.no_grad():
        before = float(loss(model.eval()))
    run(model.train(), optimizer, range(STEPS // 2))
    checkpoint = _through_a_file((model.state_dict(), optimizer.state_dict()))
    later = range(STEPS // 2, STEPS)
    wanted = run(model, optimizer, later)
    with torch.no_grad():
        after = float(loss(model.eval()))
    if not after < before:
        raise _FailedError(f"the loss did not fall in {STEPS} steps ({before:.4g} to {after:.4g})")
    model, optimizer = made()
    model.load_state_dict(checkpoint[0])
    optimizer.load_state_dict(checkpoint[1])
    found = run(model.train(), optimizer, later if exact else later[:2])
    if not all(close(one, other) for one, other in zip(found, wanted, strict=False)):
        raise _FailedError(
            "a run that went on from a checkpoint took other steps than the one that was not interrupted"
        )
    return f"loss {before:.2g} to {after:.2g}, trials at 0 repeat it, a checkpoint goes on"


def _through_a_file(states: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ------------------------------------------------------------------------------------------- what would be refused

_DEEPSPEED = "DeepSpeed steps inside backward(), where no search can be put, and is refused: use DDP, or FSDP2"
_FSDP1 = "FSDP1 hides the parameters in flat shards, and is refused: use FSDP2"
_SPLIT_ROWS = (
    "context and sequence parallelism split each row over ranks in a way that a trial cannot repeat yet, and are "
    "refused: use DDP, or FSDP2"
)


def _launched() -> list[str]:
    """What `accelerate launch` has asked of this process that armijo refuses."""

    def asked(name: str) -> bool:
        return os.environ.get(name, "false").lower() in ("true", "1", "yes")

    sentences = []
    if asked("ACCELERATE_USE_DEEPSPEED"):
        sentences.append(f"This process was launched for DeepSpeed. {_DEEPSPEED} (accelerate launch --use_fsdp).")
    if asked("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        sentences.append(f"This process was launched for FSDP1. {_FSDP1} (accelerate launch --fsdp_version 2).")
    if any(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1") != "1" for kind in ("CP", "SP")):
        sentences.append(f"This process was launched with rows split over ranks: {_SPLIT_ROWS}.")
    return sentences


def _configured() -> list[str]:
    """What the file that `accelerate config` wrote asks for that armijo refuses."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    path = Path(home).expanduser() / "accelerate" / "default_config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []

    def value(key: str) -> str:
        # No reader of YAML comes with torch; these are plain words behind their keys.
        found = re.search(rf"^\s*{key}\s*:\s*[\"']?(\w+)", text, re.MULTILINE)
        return found[1].upper() if found else ""

    where = "accelerate's default_config.yaml"
    sentences = []
    if value("distributed_type") == "DEEPSPEED":
        sentences.append(f"{where} asks for DeepSpeed. {_DEEPSPEED} (accelerate config).")
    if value("distributed_type") == "FSDP" and value("fsdp_version") != "2":
        sentences.append(f"{where} asks for FSDP1. {_FSDP1} (fsdp_version: 2 in that file, or accelerate config).")
    if any(value(f"parallelism_config_{kind}_size") not in ("", "1") for kind in ("cp", "sp")):
        sentences.append(f"{where} splits rows over ranks: {_SPLIT_ROWS}.")
    return sentences
