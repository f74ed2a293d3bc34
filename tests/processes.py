"""Commands of several processes, which must end: after its time a command is killed with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_to_end(
    command: Sequence[str], seconds: float, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command; when its time is over its whole process group is killed, and what it wrote is in the error."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Alone the launcher's end would leave its ranks, which hold the pipes open.
        os.killpg(process.pid, signal.SIGKILL)
        out, said = process.communicate()
        raise AssertionError(f"{' '.join(command)} did not end in {seconds:g} s:\n{said[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, said)


def torchrun(script: Path, *arguments: str, ranks: int = 2) -> list[str]:
    """The command that runs a script on several ranks, which meet at a port that nobody else has."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, str(script), *arguments]
