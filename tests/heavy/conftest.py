"""To import these frameworks takes longer than many tests: where these are not asked for, none is read."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if "not heavy" in (config.option.markexpr or "") else None
