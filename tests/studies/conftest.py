"""A GLUE folder of made-up sentences and a model that learns them in seconds."""

import pytest

from lab import tiny


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with `model` and `glue`."""
    folder = tmp_path_factory.mktemp("place")
    tiny.save_model(folder / "model")
    made_up = tiny.task(64, 32)
    for name in ("SST-2", "MRPC"):
        (folder / "glue" / name).mkdir(parents=True)
        for side, split in (("train", made_up.train), ("dev", made_up.evaluation)):
            rows = zip(split.texts, split.targets, strict=True)
            if name == "SST-2":
                lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
            else:
                lines = ["Quality\t#1 String\t#2 String", *(f"{label}\t{text}\t{text}" for text, label in rows)]
            (folder / "glue" / name / f"{side}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def small(place, tmp_path):
    """The options that make any study small, as `key=value`."""
    return [
        f"model={place / 'model'}",
        f"data_dir={place / 'glue'}",
        "limit=24",
        "evaluation_limit=16",
        "epochs=2",
        "batch_size=8",
        "max_length=16",
        "threads=1",
        f"results={tmp_path / 'results'}",
        f"work={tmp_path / 'work'}",
    ]
