"""Shared settings: one thread a process (runs share the cores) and no accidental network."""

import os
import signal
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

# A shell starts its background jobs with Ctrl-C ignored; the tests of Ctrl-C want it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("suite")

_OF_MANY_STEPS = {
    *("test_paper_lockstep", "test_properties", "test_torch_contract", "test_trajectories", "test_ranks"),
    *("test_faults", "test_checkpoints", "test_long_runs", "test_stateful"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure the coverage of the library by the tests that look at one thing each.

    The laboratory's tests do not look at the library, and those of many steps take half as long again while they are
    measured, for a hundredth of the lines that the others miss.
    """
    for item in items:
        if item.path.parent.name in ("lab", "studies") or item.path.stem in _OF_MANY_STEPS:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`tally("faults injected", 3)`: what a passed test says it has done is added up below the last line of dots."""

    def add(what: str, number: int | str = 1) -> None:
        request.node.user_properties.append(("tally", (what, number)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, int] = {}
    remarks: list[str] = []
    for report in terminalreporter.getreports("passed"):
        if report.when != "call":
            continue
        for key, value in report.user_properties:
            if key == "tally" and isinstance(value[1], str):
                remarks.append(f"{value[0]}: {value[1]}")
            elif key == "tally":
                counts[value[0]] = counts.get(value[0], 0) + value[1]
    if counts or remarks:
        terminalreporter.section("nothing lost")
        for what, number in sorted(counts.items()):
            terminalreporter.write_line(f"{number:7,d} {what}")
        for remark in sorted(remarks):
            terminalreporter.write_line(remark)
