"""To import these frameworks takes longer than many tests: where these are not asked for, none is read."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = config.option.markexpr or ""
    return None if not asked or "heavy" in asked.replace("not heavy", "") else True
