import dataclasses

import pytest

from armijo_lab.results import cells, quantities, store
from armijo_lab.results.page import Page, write
from armijo_lab.studies import plan
from studies import made_up


def collected(study, records):
    planned = [
        (config, [store.identity(plan.as_dict(run)) for run in runs])
        for config, runs in plan.cells(plan.Options(study=study))
    ]
    known = {entry["run"]: entry for entry in records}
    return cells.collect(planned, plan.STUDIES[study].varied, known)


def cell(found, optimizer, task="sst2"):
    return next(one for one in found if one.task == task and one.optimizer == optimizer)


ADAMW = "adamw:lr=1e-4,schedule=cosine,warmup=0.1"


@pytest.fixture(scope="module")
def found():
    return collected("rivals", made_up.rivals())


def page(study, found, folder, notes=None):
    shown = plan.STUDIES[study]
    command = f"armijo study {study}"
    write(
        Page(study, "A title", "A question?", command, "armijo report", notes, shown.tables, shown.figures),
        found,
        folder,
    )
    return (folder / f"{study}.md").read_text(encoding="utf-8")


def line(text, *starts):
    """The cells of the first row that begins with `starts`."""
    for row in text.splitlines():
        parts = [part.strip() for part in row.strip("|").split("|")]
        if parts[: len(starts)] == list(starts):
            return parts
    raise AssertionError(starts)


def test_a_cell_is_its_seeds(found):
    ours = cell(found, "adamsls")
    assert sorted(ours.ended) == [0, 1, 2]
    assert ours.mean(quantities.final) == pytest.approx(0.83)
    assert ours.mean(quantities.best) == pytest.approx(0.81)
    assert ours.spread(quantities.final).deviation == pytest.approx(0.01)
    diverged = cell(found, "sgd:lr=1e-1,schedule=cosine")
    assert diverged.diverged == 3
    assert diverged.mean(quantities.final) is None
    assert cell(found, "dog").failed == 1
    assert cell(found, "gen").records == (None, None, None)


def test_differences_are_paired_over_the_seeds(found):
    gap = cells.difference(cell(found, "adamsls"), cell(found, ADAMW), quantities.final)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.02, 0.02, 0.02))
    assert gap.verdict == "win"
    # Student's t for two degrees of freedom: 4.303 · 0.0907 / √3.
    wide = cells.difference(cell(found, "salsa"), cell(found, ADAMW), quantities.final)
    assert wide.mean == pytest.approx(-0.01 / 3)
    assert wide.high - wide.mean == pytest.approx(4.3027 * 0.0907 / 3**0.5, rel=1e-2)
    assert wide.verdict == "tie"
    one = cells.difference(cell(found, "growing-plasls"), cell(found, ADAMW), quantities.final)
    assert (one.seeds, one.low, one.verdict) == (1, None, None)
    assert cells.difference(cell(found, "gen"), cell(found, ADAMW), quantities.final) is None
    # What diverged has lost.
    lost = cells.difference(cell(found, "adamsls"), cell(found, "sgd:lr=1e-1,schedule=cosine"), quantities.final)
    assert lost.mean == pytest.approx(0.83)


def test_time_to_a_target(found):
    same = dict.fromkeys(range(3), 0.78)
    assert cells.seeds_reaching(cell(found, "adamsls"), same) == pytest.approx((3, 2.0, 20 * 2 / 3))
    # With the same seed: 0.79 after the second epoch of seed 0, and 0.82 only at the end of seed 2.
    assert cells.seeds_reaching(cell(found, "adamsls"), {0: 0.79, 2: 0.82, 1: 0.99}) == pytest.approx((2, 2.5, 50 / 3))
    assert cells.seeds_reaching(cell(found, "growing-plasls"), same) == (0, 0.0, 0.0)
    assert cells.seeds_reaching(cell(found, "gen"), same) is None
    assert cells.time_ratio(cell(found, "adamsls"), cell(found, ADAMW)) == pytest.approx(2.0)
    assert cells.time_ratio(cell(found, "growing-plasls"), cell(found, ADAMW)) == pytest.approx(1.0)


def test_the_page_of_the_rivals(found, tmp_path):
    text = page("rivals", found, tmp_path, notes="So it is.")
    ours = line(text, "adamsls")
    assert ours[1:6] == ["3", "0.810 ± 0.010", "0.810 ± 0.010", "0.830 ± 0.010", "0.3333 ± 0.0000"]
    assert ours[7:9] == ["2.00", "1.82×"]
    assert ours[-1] == "1.0e-03"
    assert line(text, "growing-plasls")[1] == "1/3"
    sst2, mrpc = (
        text[text.index("## sst2") : text.index("## mrpc")],
        text[text.index("## mrpc") : text.index("## qnli")],
    )
    assert "Not run (41 of 48 cells): " in sst2
    assert sst2.count("`gen`") == mrpc.count("`gen`") == 1
    assert "`adamsls`" not in sst2
    assert line(text, "dog")[1:3] == ["0", "failed"]
    assert "`dog` failed: RuntimeError: out of luck\n" in text
    diverged = line(text, "sgd:lr=1e-1,schedule=cosine")
    assert diverged[1:3] == ["3 (3 diverged)", "diverged"]
    ranks = text[text.index("## Ranks") :]
    assert line(ranks, "adamsls")[1:4] == ["1.0", "–", "+2.0 [+2.0, +2.0]"]
    assert line(ranks, ADAMW)[1:4] == ["2.0", "-2.0 [-2.0, -2.0]", "–"]
    # With one seed of three it is in no ranking.
    assert line(ranks, "growing-plasls")[1:3] == ["–", "-18.0"]
    wins = text[text.index("## Wins") :]
    assert line(wins, "adamsls")[1:5] == ["3", "1", "0", "none"]
    times = text[text.index("## Time to") :]
    assert line(times, "sst2", ADAMW, "adamsls")[3:] == ["3 of 3", "2.0", "13"]
    assert line(times, "sst2", ADAMW, ADAMW)[3:] == ["3 of 3", "3.0", "10"]
    assert line(times, "sst2", ADAMW, "growing-plasls")[3:] == ["0 of 1", "–", "–"]
    slow = "adamw:lr=2e-5,schedule=cosine,warmup=0.1"
    assert line(times, "sst2", slow, "adamsls")[3:] == ["3 of 3", "1.0", "7"]
    assert "So it is." in text
    assert "0123456789ab-dirty" in text
    # MRPC was not run at all, and the table says so.
    assert "Not run (48 of 48 cells): `sgdsls`, `adamsls`" in mrpc


def test_a_page_without_a_record(tmp_path):
    text = page("merging", collected("merging", []), tmp_path)
    assert "None of 54 runs was done." in text
    assert text.count("Not run (9 of 9 cells): `growing-plasls`, ") == 2


def test_published_numbers_stand_beside_ours(tmp_path):
    records = [
        made_up.record("paper-small", config, [0.6, 0.8], final=0.75, step_size=1e-3)
        for config in plan.runs(plan.Options("paper-small", tasks="qnli", select="paper-adamsls"))
    ]
    text = page("paper-small", collected("paper-small", records), tmp_path)
    beside = text[text.index("## Beside") :]
    assert line(beside, "qnli", "paper-adamsls")[2:] == ["0.754", "0.750 ± 0.000", "0.0086", "0.5000 ± 0.0000"]
    assert line(beside, "qnli", "adam")[2:4] == ["0.732", "not run"]


def test_peaks_and_drops(tmp_path):
    records = [
        made_up.record("annealing", config, [0.6, 0.8, 0.75], step_size=1e-3)
        for config in plan.runs(plan.Options("annealing", select="growing-adamsls"))
    ]
    text = page("annealing", collected("annealing", records), tmp_path)
    peaks = text[text.index("## After the peak") :]
    assert line(peaks, "mrpc", "growing-adamsls")[2:] == ["2.0 ± 0.0", "0.800 ± 0.000", "5.0 ± 0.0"]


def test_what_froze_and_why(tmp_path):
    searches = {
        "count": 80,
        "log10": [-1.0, 0.5, 2.0, 3.0],
        "below": 2,
        "ties": 4,
        "failed": {"order": 5, "rounding": 1, "range": 2, "nonfinite": 3, "nondeterministic": 0},
    }
    options = plan.Options("frozen", seeds=1, select="paper-plasls:baseline=moved")
    records = [
        made_up.record("frozen", config, [0.6, 0.7], step_size=1e-9, searches=searches) for config in plan.runs(options)
    ]
    found = collected("frozen", records)
    assert {one.name for one in found} >= {
        "growing-plasls",
        "growing-plasls  precision fp64",
        "growing-plasls  precision bf16",
    }
    text = page("frozen", found, tmp_path)
    decided = text[text.index("## How decidable") :]
    name = "paper-plasls:baseline=moved  precision fp64"
    assert line(decided, name)[2:8] == ["80", "-1.0", "0.5", "2.0", "3.0", "2"]
    assert line(decided, name)[8:] == ["4", "5", "1", "2", "3", "1.0e-09", "1"]


def test_costs_are_ratios_to_adam_with_the_same_rows_and_model(tmp_path):
    records = []
    for config in plan.runs(plan.Options("overhead")):
        seconds = 8.0 if config.optimizer == "adam" else 12.0
        step_size = None if config.optimizer == "adam" else 1e-3
        seconds *= 10 if config.model == "random:bert-base" else 1
        records.append(made_up.record("overhead", config, [0.5, 0.5], seconds=seconds, step_size=step_size))
        if config.optimizer != "adam":
            # The first epoch took 10 seconds of the 12, so the second took half as long as Adam's.
            records[-1]["epochs"][0]["seconds"]["training"] = seconds * 10 / 12
            steps = records[-1]["epochs"][0]["step"]
            records[-1]["forwards_a_step"] = [9] * steps + [2] * (len(records[-1]["forwards_a_step"]) - steps)
    found = collected("overhead", records)
    text = page("overhead", found, tmp_path)
    costs = text[text.index("## Time an epoch") :]
    name = next(one.name for one in found if one.optimizer == "growing-plasls" and "random:bert-base" in one.name)
    assert line(costs, name)[1:6] == ["60.00", "1.50×", "2.00", "0.50×", "2.00"]
    assert (tmp_path / "images" / "overhead-time.png").stat().st_size > 1000
    each = next(one.name for one in found if one.optimizer == "growing-plasls:schedule=each")
    assert line(costs, each)[2] == "1.50×"


def test_times_are_compared_on_one_machine_and_with_one_model(tmp_path):
    config, adam = (
        plan.runs(plan.Options("rivals", seeds=1, select=name, tasks="sst2"))[0] for name in ("adamsls", ADAMW)
    )
    records = [made_up.record("rivals", config, [0.5], seconds=30), made_up.record("rivals", adam, [0.5], seconds=10)]
    assert line(page("rivals", collected("rivals", records), tmp_path), "adamsls")[8] == "3.00×"
    records[0]["hardware"] = {"cpu": "another", "threads": 1}
    assert line(page("rivals", collected("rivals", records), tmp_path), "adamsls")[8] == "–"


def test_who_is_alone_at_a_task_is_not_first_there(tmp_path):
    begun = plan.runs(plan.Options("rivals", seeds=1, select=ADAMW, tasks="mnli"))[0]
    records = [*made_up.rivals(), made_up.record("rivals", begun, [0.4], final=0.4)]
    text = page("rivals", collected("rivals", records), tmp_path)
    ranks = text[text.index("## Ranks") :]
    assert line(ranks, "adamsls")[1] == "1.0"
    assert line(ranks, ADAMW)[1] == "2.0"
    assert "mnli: minus" not in ranks


def test_a_task_that_was_begun_does_not_empty_the_ranks(tmp_path):
    options = plan.Options("rivals", seeds=1, select=f"adamsls|{ADAMW}", tasks="mnli")
    begun = [made_up.record("rivals", config, [0.4], final=0.4) for config in plan.runs(options)]
    ranks = page("rivals", collected("rivals", [*made_up.rivals(), *begun]), tmp_path)
    ranks = ranks[ranks.index("## Ranks") :]
    assert line(ranks, "adamsls")[1] == "1.2"
    assert line(ranks, ADAMW)[1] == "1.8"
    assert line(ranks, "salsa")[1].endswith("(1 task)")


def test_records_know_their_precision():
    config = dataclasses.replace(plan.runs(plan.Options("frozen", select="growing-plasls"))[0], precision="bf16")
    assert plan.as_dict(config)["precision"] == "bf16"


def test_the_most_frequent_class_is_that_of_the_rows_judged(tmp_path):
    records = made_up.rivals()
    # One record of a task knows the share among all rows, those of before do not.
    assert all("final_majority" not in record for record in records)
    knowing = {**records[0], "final_majority": 0.625}
    found = collected("rivals", [knowing, *records[1:]])
    assert {quantities.majority(r) for c in found if c.task == knowing["task"]["name"] for r in c.ended.values()} == {
        0.625
    }
    assert "held out, the most frequent class 0.500 of them and 0.625 of all rows" in page("rivals", found, tmp_path)
    assert "the most frequent class 0.500)" in page("rivals", collected("rivals", records), tmp_path)
