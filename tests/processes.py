"""Commands as processes of their own: of several ranks, which must end in their time, or in a fork of the tests."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
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


def forked(
    run: Callable[[list[str]], object], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command's main function in a fork of this process, which has imported everything already.

    What a command prints, its exit code and what it leaves behind are those of a process of its own; the seconds that
    it takes to import torch and transformers are spared.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            _become(run, list(arguments), out.fileno(), said.fileno(), cwd)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        said.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), said.read())


def _become(run: Callable[[list[str]], object], arguments: list[str], out: int, said: int, cwd: Path | None) -> None:
    code: object = 1
    try:
        os.dup2(out, 1)
        os.dup2(said, 2)
        with open(1, "w", closefd=False) as printed, open(2, "w", closefd=False) as error, open(os.devnull) as nothing:
            sys.stdout, sys.stderr, sys.stdin = printed, error, nothing
            code = _exit_code(run, arguments, cwd)
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _exit_code(run: Callable[[list[str]], object], arguments: list[str], cwd: Path | None) -> object:
    logging.root.handlers.clear()  # pytest's
    warnings.resetwarnings()
    sys.argv = ["armijo", *arguments]
    try:
        os.chdir(cwd or ".")
        return run(arguments) or 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
        return 1
