"""`armijo doctor`: what there is on this machine, whether a search works on it, and what to do where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from armijo_lab.health import Health

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a bug report.")] = False,
) -> None:
    """Look whether line searches work on this machine, and say what to do where they do not.

    Versions, devices, a self-test of 20 steps on each device (the loss falls, a
    trial at step size 0 repeats the loss, a checkpoint goes on), and what would
    be refused here. No name of a machine, a user or a folder is printed.

    \b
    Examples:
      armijo doctor
      armijo doctor --json > doctor.json

    \b
    Exit codes:
      0    all is well
      1    something is wrong; the last lines say what, and what to do
    """  # noqa: D301 (\b, which keeps the lines that follow as they are, is one character)
    import dataclasses
    import json

    from armijo_lab.commands.progress import output
    from armijo_lab.health import examine

    health = examine()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(health), indent=2))
    else:
        for line in _lines(health):
            output.print(line, markup=False, highlight=False)
    raise typer.Exit(1 if health.problems else 0)


def _lines(health: Health) -> list[str]:
    lines = ["Versions"]
    width = max(map(len, health.versions))
    lines += [f"  {package:{width}}  {version}" for package, version in health.versions.items()]
    lines += ["", "Devices"]
    for device in health.devices:
        facts = ", ".join(_fact(name, value) for name, value in device.facts.items() if value is not None)
        lines.append(f"  {device.name}: {facts}" if facts else f"  {device.name}")
    lines += ["", "Self-test, 20 steps"]
    for check in health.checks:
        verdict = "ok" if check.problem is None else "FAILED"
        lines.append(f"  {check.optimizer} on {check.device}: {verdict}: {check.said}")
    lines += ["", "What would be refused here"]
    lines += [f"  {sentence}" for sentence in health.refused] or ["  nothing that was looked for"]
    lines += [
        "",
        *(["Something is wrong", *(f"  {p}" for p in health.problems)] if health.problems else ["All is well."]),
    ]
    return lines


def _fact(name: str, value: Any) -> str:
    match name:
        case "threads" | "cores":
            return f"{value} {name}"
        case "memory":
            return f"{value / 2**30:.0f} GiB"
        case "cuda":
            return f"CUDA {value}"
        case "bfloat16":
            return "bfloat16" if value else "no bfloat16"
        case "float32_matmul":
            return f"float32 products {value}" + ("" if value == "highest" else " (TensorFloat-32)")
        case "cudnn_tf32":
            return "convolutions may use TensorFloat-32" if value else "convolutions in float32"
    return str(value)
