"""What a label or a file's name holds is shown and not obeyed, wherever it is printed."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from armijo_lab.cli import main
from armijo_lab.commands.predict import Format, Prediction, Predictor, predict_command
from armijo_lab.commands.progress import Terminal
from armijo_lab.names import visible

EVIL = "a\x1b[31m\x07\u202eb\x9b1m"
SHOWN = r"a\x1b[31m\x07\u202eb\x9b1m"


def test_what_is_hidden_is_escaped_and_letters_stay() -> None:
    assert visible(EVIL) == SHOWN
    assert visible("é\u0301 \u200d \t\n 👩\u200d👧 کتاب\u200cها") == "é\u0301 \u200d \t\n 👩\u200d👧 کتاب\u200cها"


def test_a_terminal_keeps_the_codes_of_rich_alone() -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, color_system="standard", width=80)
    table = Table()
    table.add_column(EVIL)
    table.add_row(Text(EVIL.replace("\x07", ""), style="bold"))
    terminal.print(table)
    terminal.print(EVIL.replace("\x07", ""), markup=False, highlight=False)
    out = file.getvalue()
    assert "\x1b[1m" in out, "bold"
    assert SHOWN.replace(r"\x07", "") in out
    assert "\x1b[31m" not in out
    assert "\u202e" not in out


def test_a_sentence_of_the_command_shows_what_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", EVIL, "--text", "a"])
    said = capsys.readouterr().err
    assert r"\x1b[31m" in said
    assert not {"\x1b", "\u202e", "\x9b"} & set(said)


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("terminal", [True, False])
def test_predictions_are_obeyed_by_no_terminal_and_arrive_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: Format, terminal: bool
) -> None:
    from armijo_lab.commands import predict

    answer = Prediction(f"x{EVIL}", (0.75, 0.25), None)
    predictor = Predictor(None, None, (f"x{EVIL}", "y"), None, None)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(predict, "load_predictor", lambda folder: predictor)
    monkeypatch.setattr(predict, "predict", lambda *arguments: [answer])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    predict_command(folder=predict.Path("run"), text=[EVIL], form=form)
    said = capsys.readouterr().out
    assert ("\u202e" in said) == (not terminal and form is not Format.TABLE)
    if terminal or form is Format.TABLE:
        assert not {"\x07", "\x9b"} & set(said)
        assert "\x1b[31m" not in said, "rich's own codes aside"
        assert "u202e" in said
