import sys
from pathlib import Path

import pytest

from armijo_lab import hub
from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, glue

REAL = Path(__file__).parents[3] / "shared" / "data" / "glue"
has_real = pytest.mark.skipif(not REAL.is_dir(), reason="the folder ../shared/data/glue is not there")

# Two rows of every task as the official files have them: header, rows, and what is to be read.
MADE_UP = {
    "sst2": ("SST-2", "dev.tsv", "sentence\tlabel\nso \"good 'n\t1\nbad \t0\n"),
    "mrpc": (
        "MRPC",
        "dev.tsv",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tHe "won\tHe did\r\n0\t9\t10\tA\tB\r\n',
    ),
    "qnli": ("QNLI", "dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWho?\tI\tentailment\n1\tA\tB\tnot_entailment\n"),
    "mnli": (
        "MNLI",
        "dev_matched.tsv",
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\tg\ta\tb\tneutral\tcontradiction\n1\tg\tc\td\tneutral\tneutral\n",
    ),
    "cola": ("CoLA", "dev.tsv", "gj04\t1\t\tA dog barks.\ngj04\t0\t*\tBarks dog a.\n"),
    "rte": ("RTE", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n"),
    "qqp": (
        "QQP",
        "dev.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        "1\t2\t3\tWhy\n?\tWhy not?\t1\n4\t5\t6\ta\tb\t0\n7\t8\t9\tc\td\t1\n",
    ),
    "stsb": (
        "STS-B",
        "dev.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tn\tf\t2012\t1\tnone\tnone\ta\tb\t5.000\n1\tn\tf\t2012\t2\tnone\tnone\tc\td\t0.25\n",
    ),
    "wnli": ("WNLI", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\tc\td\t0\n"),
}
EXPECTED = {
    "sst2": Split(("so \"good 'n", "bad "), None, (1, 0)),
    "mrpc": Split(('He "won', "A"), ("He did", "B"), (1, 0)),
    "qnli": Split(("Who?", "A"), ("I", "B"), (0, 1)),
    "mnli": Split(("a", "c"), ("b", "d"), (2, 1)),
    "cola": Split(("A dog barks.", "Barks dog a."), None, (1, 0)),
    "rte": Split(("a", "c"), ("b", "d"), (1, 0)),
    "qqp": Split(("a", "c"), ("b", "d"), (0, 1)),
    "stsb": Split(("a", "c"), ("b", "d"), (5.0, 0.25)),
    "wnli": Split(("a", "c"), ("b", "d"), (1, 0)),
}


def lay_out(folder: Path, task: str, content: str | bytes | None = None) -> Path:
    """The task's two files in the official layout."""
    name, held_out, made_up = MADE_UP[task]
    content = made_up if content is None else content
    (folder / name).mkdir()
    for file in ("train.tsv", held_out):
        (folder / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def refused(task: str, data_dir: Path | None) -> str:
    with pytest.raises(BadInputError) as caught:
        glue.load(task, data_dir)
    message = str(caught.value)
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("task", glue.TASKS)
def test_official_files_of_every_task(tmp_path, task):
    data = glue.load(task, lay_out(tmp_path, task))
    assert data.train == data.evaluation == EXPECTED[task]
    assert data.name == task
    assert data.num_labels == (1 if task == "stsb" else len(data.labels))
    assert data.metrics == glue.TASKS[task].metrics


def test_the_labels_have_the_official_order():
    orders = {task: spec.labels for task, spec in glue.TASKS.items()}
    assert orders["mnli"] == ("entailment", "neutral", "contradiction")
    assert orders["qnli"] == orders["rte"] == ("entailment", "not_entailment")
    assert orders["wnli"] == ("not_entailment", "entailment")
    assert orders["mrpc"] == ("not_equivalent", "equivalent")
    assert orders["stsb"] == ()
    assert all(len(spec.values) == len(spec.labels) for spec in glue.TASKS.values())


def test_torn_rows_of_qqp_are_counted(tmp_path, caplog):
    data = glue.load("qqp", lay_out(tmp_path, "qqp"))
    assert data.provenance["rows_passed_over"] == 4
    assert "2 rows of" in caplog.text


def test_a_row_with_a_wrong_number_of_fields_is_refused_with_its_line(tmp_path):
    message = refused("sst2", lay_out(tmp_path, "sst2", "sentence\tlabel\na\t1\n\nb\n"))
    assert message.startswith("Line 4 of")
    assert "has 1 tab-separated fields where 2 are due" in message


def test_an_unknown_label_is_named(tmp_path):
    message = refused("rte", lay_out(tmp_path, "rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n"))
    assert "The label 'yes' in line 2 of" in message
    assert "known are entailment, not_entailment" in message


@pytest.mark.parametrize("score", ["high", "nan", "inf", ""])
def test_a_score_that_is_no_number_is_named(tmp_path, score):
    message = refused("stsb", lay_out(tmp_path, "stsb", f"sentence1\tsentence2\tscore\na\tb\t{score}\n"))
    assert f"The score {score!r} in line 2 of" in message


def test_a_missing_column_is_named(tmp_path):
    message = refused("sst2", lay_out(tmp_path, "sst2", "text\tlabel\na\t1\n"))
    assert message.endswith("has no column sentence; its columns are text, label.")


@pytest.mark.parametrize("content", ["", "\n", "sentence\tlabel\n"])
def test_files_without_rows_are_refused(tmp_path, content):
    message = refused("sst2", lay_out(tmp_path, "sst2", content))
    assert message.endswith(("is empty.", "has no rows."))


def test_other_encodings_are_refused(tmp_path):
    assert "is not text in UTF-8" in refused("sst2", lay_out(tmp_path, "sst2", b"sentence\tlabel\n\xe9t\xe9\t1\n"))


def test_missing_folders_and_files_are_named(tmp_path):
    assert "There is no folder" in refused("sst2", tmp_path / "none")
    message = refused("rte", lay_out(tmp_path, "sst2"))
    assert "There is no folder RTE in" in message
    assert "but SST-2;" in message
    (tmp_path / "SST-2" / "dev.tsv").unlink()
    assert "There is no file dev.tsv in" in refused("sst2", tmp_path)


def test_an_unknown_task_is_told_the_known_ones():
    assert "There is no GLUE task sst; there are sst2, mrpc" in refused("sst", None)


def test_a_hub_that_cannot_be_reached_is_told_what_to_do_instead(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refused("mnli", None)
    assert "the hub cannot be reached" in message
    assert "give --data-dir (data_dir= in a study) with a folder that holds MNLI/train.tsv" in message
    monkeypatch.setattr(hub, "reach", lambda *_: None)
    assert (
        "(ConnectionError); give --data-dir (data_dir= in a study) with a folder that holds MNLI/train.tsv"
        in refused("mnli", None)
    )


def test_what_this_machine_keeps_of_the_hub_is_used_without_it(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]})

    def load_dataset(name, task):
        assert datasets.config.HF_HUB_OFFLINE
        return datasets.DatasetDict({"train": rows, "validation": rows})

    def unreachable(*_):
        raise BadInputError("The hub cannot be reached.")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "reach", unreachable)
    assert glue.load("sst2", None).train.targets == (1, 0)
    assert not datasets.config.HF_HUB_OFFLINE


def test_without_datasets_the_hub_is_told_what_to_do_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "not installed; give --data-dir" in refused("sst2", None)


def test_rows_from_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]})

    def load_dataset(name, task):
        assert (name, task) == ("nyu-mll/glue", "mnli")
        return datasets.DatasetDict({"train": rows, "validation_matched": rows.select([1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "reach", lambda *_: None)
    data = glue.load("mnli", None)
    assert data.train == Split(("a", "b"), ("c", "d"), (2, 0))
    assert data.evaluation == Split(("b",), ("d",), (0,))


@has_real
@pytest.mark.parametrize(
    ("task", "train", "evaluation"),
    [("sst2", 67349, 872), ("mrpc", 4076, 1725), ("qnli", 8999, 1000), ("mnli", 8999, 1000)],
)
def test_the_real_files(task, train, evaluation):
    data = glue.load(task, REAL)
    assert (len(data.train), len(data.evaluation)) == (train, evaluation)
    assert set(data.train.targets) == set(data.evaluation.targets) == set(range(data.num_labels))
    if task == "sst2":
        assert data.train.texts[0] == "hide new secretions from the parental units"
        assert data.limited(500, 400).train.targets == data.train.targets[:500]
