import bz2
import csv
import gzip
import json
import lzma
import random
from collections import Counter
from pathlib import Path

import pytest

from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, tables
from armijo_lab.tasks.tables import columns, read_texts

pytest.importorskip("datasets", reason="reading tables needs datasets")
pandas = pytest.importorskip("pandas")

ROWS = [("a good one", "yes"), ("a bad one", "no"), ("fine, really", "yes"), ('so "so"', "no")]


def load(train, evaluation=None, text="text", text_pair=None, label="label", **options):
    return tables.load(train, evaluation, text=text, text_pair=text_pair, label=label, **options)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_table(path: Path, columns: dict) -> Path:
    """The same table as any kind of file."""
    frame = pandas.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".jsonl":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def refused(*arguments, **options) -> str:
    with pytest.raises(BadInputError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def place(path: Path, row: int) -> str:
    """Where the file has its `row`-th row, from 1, which takes one line."""
    unit = "line" if path.suffix in (".csv", ".tsv", ".jsonl") else "row"
    return f"{unit} {row + (path.suffix in ('.csv', '.tsv', '.xlsx'))}"


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
class TestEveryKind:
    def test_rows_come_back_as_they_were_written(self, tmp_path, ending):
        texts, labels = zip(*ROWS, strict=True)
        columns = {"id": [1, 2, 3, 4], "text": list(texts), "second": [t[::-1] for t in texts], "label": labels}
        train = write_table(tmp_path / f"train{ending}", columns)
        data = load(train, train, text_pair="second")
        assert data.labels == ("no", "yes")
        assert data.train == data.evaluation
        assert data.train == Split(texts, tuple(t[::-1] for t in texts), (1, 0, 1, 0))
        assert data.metrics == ("accuracy",)
        assert data.num_labels == 2

    def test_whole_numbers_as_labels_are_ordered_as_numbers(self, tmp_path, ending):
        train = write_table(tmp_path / f"t{ending}", {"text": ["ten", "nine", "minus one"], "label": [10, 9, -1]})
        data = load(train, train)
        assert data.labels == ("-1", "9", "10")
        assert data.train.targets == (2, 1, 0)

    def test_booleans_as_labels(self, tmp_path, ending):
        train = write_table(tmp_path / f"t{ending}", {"text": ["wet", "dry"], "label": [True, False]})
        assert load(train, train).labels == ("False", "True")

    def test_texts_alone_are_read_for_prediction(self, tmp_path, ending):
        path = write_table(tmp_path / f"t{ending}", {"text": ["wet", "dry"], "other": ["a", "b"]})
        assert tables.read_texts(path, text="text", text_pair=None) == Split(("wet", "dry"), None, ())
        assert tables.read_texts(path, text="text", text_pair="other").pairs == ("a", "b")

    def test_a_missing_text_is_named(self, tmp_path, ending):
        path = write_table(tmp_path / f"t{ending}", {"text": ["wet", None, "dry"], "label": ["a", "b", "a"]})
        assert f"The text in {place(path, 2)} of" in refused(path)

    def test_a_missing_label_is_named(self, tmp_path, ending):
        path = write_table(tmp_path / f"t{ending}", {"text": ["wet", "dry", "hot"], "label": ["a", "b", None]})
        assert f"The label in {place(path, 3)} of" in refused(path)

    def test_a_missing_column_is_named_with_those_that_exist(self, tmp_path, ending):
        path = write_table(tmp_path / f"t{ending}", {"text": ["wet", "dry"], "label": ["a", "b"]})
        assert refused(path, text="sentence").endswith("has no column 'sentence'; its columns are text, label.")

    def test_one_class_only(self, tmp_path, ending):
        path = write_table(tmp_path / f"t{ending}", {"text": ["wet", "dry"], "label": ["a", "a"]})
        assert "have the label 'a'; at least two" in refused(path)

    def test_an_empty_file(self, tmp_path, ending):
        assert refused(write(tmp_path / f"t{ending}", "")).endswith("is empty.")

    def test_bytes_that_mean_nothing(self, tmp_path, ending):
        assert "cannot be read" in refused(write(tmp_path / f"t{ending}", b"\xff\xfe\x00\x9dtext,label\n\x80"))

    def test_rubbish_gives_a_result_or_one_sentence(self, tmp_path, ending):
        """Damaged files: cut, with bytes changed, doubled or put in between; and plain noise."""
        good = write_table(
            tmp_path / f"good{ending}", dict(zip(("text", "label"), zip(*ROWS, strict=True), strict=True))
        )
        content = good.read_bytes()
        generator = random.Random(ending)
        outcomes = Counter()
        for number in range(40):
            damaged = bytearray(content)
            for _ in range(generator.randint(1, 4)):
                place = generator.randrange(len(damaged) or 1)
                match generator.randrange(5):
                    case 0:
                        del damaged[place:]
                    case 1:
                        damaged[place : place + 1] = generator.randbytes(1)
                    case 2:
                        damaged[place:place] = damaged[place : place + 9]
                    case 3:
                        damaged[place:place] = generator.choice([b'"', b"\n", b",", b"\t", b"\0", b"\r", b"{", b"[]"])
                    case 4 if number % 5 == 0:
                        damaged[:] = generator.randbytes(30)
            path = write(tmp_path / f"damaged{ending}", bytes(damaged))
            try:
                data = load(path)
            except BadInputError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert all(isinstance(text, str) and text for text in data.train.texts + data.evaluation.texts)
        assert outcomes["refused"] > 0


class TestCellsAreNotGuessed:
    def test_texts_of_digits_and_words_for_nothing_stay_as_they_are(self, tmp_path):
        path = write(tmp_path / "t.csv", "text,label\n123,1\nNA,01\nnull,1\n1e5,01\n2020-01-01,1\n")
        data = load(path, path)
        assert data.train.texts == ("123", "NA", "null", "1e5", "2020-01-01")
        assert set(data.labels) == {"1", "01"}

    def test_strings_of_json_stay_as_they_are(self, tmp_path):
        lines = '{"text": "2020-01-01", "label": "01"}\n\n{"text": "2020-01-02", "label": 1}\n'
        path = write(tmp_path / "t.jsonl", lines)
        assert load(path, path).train == Split(("2020-01-01", "2020-01-02"), None, (0, 1))
        assert load(path, path).labels == ("01", "1")

    def test_categories_of_parquet_are_strings(self, tmp_path):
        columns = {"text": ["a", "b"], "label": pandas.Categorical(["x", "y"])}
        path = write_table(tmp_path / "t.parquet", columns)
        assert load(path, path).labels == ("x", "y")

    def test_whole_numbers_held_as_floats_are_whole_again(self, tmp_path):
        path = write_table(tmp_path / "t.parquet", {"text": ["a", "b"], "label": [1.0, 0.0]})
        assert load(path, path).labels == ("0", "1")

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"])
    @pytest.mark.parametrize("labels", [[1.0, 0.5], [3.25, 4.0], ["1.0", "2.5"]])
    def test_scores_are_no_classes_in_any_kind_of_file(self, tmp_path, ending, labels):
        path = write_table(tmp_path / f"t{ending}", {"text": ["a", "b"], "label": labels})
        message = refused(path)
        row = 1 + [float(each) % 1 > 0 for each in labels].index(True)
        assert f"The label in {place(path, row)} of" in message
        assert "Regression is not offered; round the numbers" in message

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"])
    def test_whole_numbers_are_the_same_classes_in_any_kind_of_file(self, tmp_path, ending):
        path = write_table(tmp_path / f"t{ending}", {"text": ["a", "b", "c"], "label": [10.0, 2.0, 2.0]})
        assert load(path, path).labels == ("2", "10")

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"])
    @pytest.mark.parametrize(
        ("labels", "first", "word"),
        [(["0.5", "NA", "0.75"], 1, 2), (["1", "2.5", "3", "unknown"], 2, 4), (["x", "3,5", "75.5%", "$5.50"], 2, 1)],
    )
    def test_scores_beside_a_word_are_no_classes_either(self, tmp_path, ending, labels, first, word):
        path = write_table(tmp_path / f"t{ending}", {"text": ["t"] * len(labels), "label": labels})
        message = refused(path)
        assert f"The label in {place(path, first)} of {path} is {labels[first - 1]}" in message
        assert f"(the label in {place(path, word)} of {path} is {labels[word - 1]!r})" in message

    @pytest.mark.parametrize("label", ["3,5", "-0,25", "75.5%", "75,5 %", "$5.50", "-€ 5,5", "5.5£", "1,234.5"])
    def test_scores_with_signs_around_them(self, tmp_path, label):
        path = write_table(tmp_path / "t.csv", {"text": ["a", "b"], "label": [label, "2"]})
        assert "Regression is not offered" in refused(path)

    def test_whole_numbers_with_signs_around_them_are_classes(self, tmp_path):
        path = write_table(tmp_path / "t.csv", {"text": ["a", "b", "c"], "label": ["1,000", "$5", "50%"]})
        assert load(path, path).labels == ("$5", "1,000", "50%")

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"])
    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            (["00501", "1.0", "02139"], ("1.0", "00501", "02139")),
            (["9007199254740993", "9007199254740992.0"], ("9007199254740992", "9007199254740993")),
            (["1", "1.0", "2.00"], ("1", "2")),
            (["1.0", "x"], ("1.0", "x")),
        ],
    )
    def test_labels_lose_a_zero_behind_the_point_and_nothing_else(self, tmp_path, ending, labels, classes):
        path = write_table(tmp_path / f"t{ending}", {"text": ["t"] * len(labels), "label": labels})
        assert set(load(path, path).labels) == set(classes)

    def test_words_beside_numbers_are_classes(self, tmp_path):
        path = write(tmp_path / "t.csv", "text,label\nx,v1.5\ny,2.5\nz,none\n")
        assert load(path, path).labels == ("2.5", "none", "v1.5")

    def test_white_space_around_a_label_is_none_of_it(self, tmp_path):
        path = write(tmp_path / "t.csv", "text,label\nx,a\ny, b\nz,b \n")
        assert load(path, path).labels == ("a", "b")

    @pytest.mark.parametrize("value", ["7", "[1]", '{"a": 1}', "true", "1.5"])
    def test_a_text_that_is_none_is_named(self, tmp_path, value):
        lines = f'{{"text": "x", "label": "a"}}\n{{"text": {value}, "label": "b"}}\n'
        assert "The text in line 2" in refused(write(tmp_path / "t.jsonl", lines))

    def test_a_column_of_numbers_is_no_text(self, tmp_path):
        message = refused(write_table(tmp_path / "t.parquet", {"text": [5, 6], "label": ["a", "b"]}))
        assert "The text in row 1" in message
        assert "no text but 5" in message

    def test_white_space_is_no_text(self, tmp_path):
        message = refused(write(tmp_path / "t.csv", 'text,label\nx,a\n"  ",b\n'))
        assert "The text in line 3" in message
        assert "is empty" in message

    def test_the_second_text_is_judged_alike(self, tmp_path):
        path = write(tmp_path / "t.csv", "text,other,label\nx,y,a\ny,,b\n")
        assert "The other in line 3" in refused(path, text_pair="other")

    def test_a_byte_order_mark_is_no_part_of_a_name(self, tmp_path):
        content = "\ufefftext,label\nx,a\ny,b\n"
        data = load(write(tmp_path / "t.csv", content), write(tmp_path / "t.tsv", content.replace(",", "\t")))
        assert data.train == data.evaluation
        lines = '\ufeff{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n'
        assert load(write(tmp_path / "t.jsonl", lines), tmp_path / "t.csv").train == data.train

    def test_columns_nobody_asked_for_may_hold_anything(self, tmp_path):
        lines = '{"text": "x", "label": "a", "m": {"k": 1}}\n{"text": "y", "label": "b", "m": [2]}\n'
        assert load(write(tmp_path / "t.jsonl", lines), tmp_path / "t.jsonl").train.texts == ("x", "y")

    def test_quoted_fields_may_hold_separators_and_line_breaks(self, tmp_path):
        path = write(tmp_path / "t.csv", 'text,label\n"a, ""b""\nc",x\nd\u2028e,y\n')
        assert load(path, path).train.texts == ('a, "b"\nc', "d\u2028e")


class TestBadFiles:
    def test_no_such_file(self, tmp_path):
        assert refused(tmp_path / "none.csv") == f"There is no file {tmp_path / 'none.csv'}."

    def test_a_folder(self, tmp_path):
        assert "is a folder" in refused(tmp_path)

    def test_an_unknown_ending(self, tmp_path):
        message = refused(write(tmp_path / "t.ods", "x"))
        assert "known are .csv, .tsv, .jsonl, .json, .parquet, .xlsx" in message

    @pytest.mark.parametrize("content", ["text,label", "text,label\n", "text,label\n\n"])
    def test_a_header_alone(self, tmp_path, content):
        assert refused(write(tmp_path / "t.csv", content)).endswith("has no rows.")

    def test_parquet_without_rows(self, tmp_path):
        path = write_table(tmp_path / "t.parquet", {"text": [], "label": []})
        assert "rows" in refused(path)

    def test_columns_without_a_name_or_with_one_twice_do_not_matter_where_nobody_wants_them(self, tmp_path):
        path = write(tmp_path / "t.csv", "text,label,,,\nx,a,,,\ny,b,,,\n")
        assert load(path, path).train.texts == ("x", "y")
        path = write(tmp_path / "u.csv", "text,label,note,note\nx,a,1,2\ny,b,3,4\n")
        assert load(path, path).train.texts == ("x", "y")
        assert "its columns are v1, v2." in refused(write(tmp_path / "v.csv", "v1,v2,,,\nx,a,,,\n"))

    def test_blanks_at_the_end_of_a_name_are_seen(self, tmp_path):
        message = refused(write(tmp_path / "t.csv", "text,label \nx,a\ny,b\n"))
        assert message.endswith("no column 'label'; its columns are text, 'label '.")

    def test_repeated_columns(self, tmp_path):
        message = refused(write(tmp_path / "t.csv", "text,label,text\nx,a,y\ny,b,z\n"))
        assert "more than one column 'text'" in message

    @pytest.mark.parametrize("body", ["x,a,1\ny,b,2\n", "x,a\ny,b,2\n"])
    def test_rows_longer_than_the_header(self, tmp_path, body):
        message = refused(write(tmp_path / "t.csv", "text,label\n" + body))
        line = 2 if body.startswith("x,a,1") else 3
        assert f"the row in line {line} has 3 columns and the header 2; put texts that contain commas in" in message

    def test_rows_shorter_than_the_header(self, tmp_path):
        message = refused(write(tmp_path / "t.csv", "text,label\nx,a\ny\n"))
        assert "the row in line 3 has 1 column and the header 2; write empty cells too" in message
        # An unquoted line break cuts a row in two.
        path = write(tmp_path / "u.csv", "id,text,label\n1,a,pos\n2,hello\nworld,neg\n3,c,pos\n")
        with pytest.raises(BadInputError, match="the row in line 3 has 2 columns and the header 3"):
            read_texts(path, text="text", text_pair=None)

    def test_rows_may_lack_columns_without_a_name(self, tmp_path):
        path = write(tmp_path / "t.csv", 'text,label,,,\nx,a\n"y\nz",b,\nu,a,,,\n')
        assert load(path, path).train.texts == ("x", "y\nz", "u")
        path = write(tmp_path / "t.tsv", 'text\tlabel\t\n"x\ta\ny"\tb\t\n')
        assert load(path, path).train.texts == ('"x', 'y"')

    def test_a_quote_that_is_never_closed(self, tmp_path):
        message = refused(write(tmp_path / "t.csv", 'text,label\n"x\ny",a\n"y,b\nz,a\n'))
        assert "cannot be read as csv: the row that begins in line 4 has a double quote that is never closed" in message

    TEXTS = ("good film", '"awful, just awful', "nice one", "bad", '"lovely', "hate it", "fine")

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_a_tsv_whose_sentences_begin_with_a_quote_keeps_every_row(self, tmp_path, end):
        rows = [f"{text}\t{'pos' if i % 2 == 0 else 'neg'}" for i, text in enumerate(self.TEXTS)]
        path = write(tmp_path / "t.tsv", end.join(["text\tlabel", *rows, ""]))
        assert load(path, path).train.texts == self.TEXTS
        assert read_texts(path, text="text", text_pair=None).texts == self.TEXTS

    def test_a_quote_opened_in_one_row_of_a_tsv_and_closed_in_another_joins_nothing(self, tmp_path):
        path = write(tmp_path / "t.tsv", 'text\tlabel\n"so it began\ta\nmiddle\tb\nand ended"\ta\n')
        assert load(path, path).train.texts == ('"so it began', "middle", 'and ended"')

    def test_a_csv_whose_sentences_begin_with_a_quote(self, tmp_path):
        path = write(tmp_path / "t.csv", 'text,label\ngood,a\n"lovely,b\nbad,a\n"quoted, as it should be",b\n')
        message = refused(path)
        assert "the row that begins in line 3 has a double quote that is closed in the middle of the text" in message
        path = write(tmp_path / "u.csv", 'text,label\ngood,a\n"lovely,b\nbad,a\n"whole",b\n')
        assert load(path, path).train.texts == ("good", '"lovely', "bad", "whole")

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_what_a_writer_quotes_comes_back(self, tmp_path, ending):
        texts = ("plain", 'with "quotes"', "with\ttab", "with, comma", "two\nlines", '"', "a,b\nc,d", "a\tb\nc\td")
        path = tmp_path / f"t{ending}"
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="," if ending == ".csv" else "\t")
            writer.writerows([("text", "label"), *((text, "ab"[i % 2]) for i, text in enumerate(texts))])
        assert load(path, path).train.texts == texts

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_a_single_column_keeps_texts_of_several_lines(self, tmp_path, ending):
        texts = ["one\ntwo", "three", 'with "quotes"\nand more', "four\r\nfive"]
        path = tmp_path / f"t{ending}"
        pandas.DataFrame({"text": texts}).to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
        assert read_texts(path, text="text", text_pair=None).texts == tuple(texts)
        path = write(tmp_path / f"lone{ending}", 'text\ngood\n"lovely\nbad\n"whole"\n')
        assert read_texts(path, text="text", text_pair=None).texts == ("good", '"lovely', "bad", "whole")
        path = write(tmp_path / f"both{ending}", 'text\n"one\ntwo"\n"lovely\n')
        with pytest.raises(BadInputError, match="begins in line 4 has a double quote that is never closed"):
            read_texts(path, text="text", text_pair=None)

    @pytest.mark.parametrize(("ending", "mark"), [(".tsv", "\t"), (".csv", ","), (".csv", ";"), (".csv", "|")])
    def test_a_quote_over_several_rows_is_not_silent(self, tmp_path, ending, mark):
        short = 'id,text,note\n1,"I came.,x\n2,I saw.\n3,I left.",z\n'
        message = refused(write(tmp_path / f"t{ending}", short.replace(",", mark)), label="note")
        assert "a double quote that opens in line 2 and closes in line 4 makes one row of lines that look" in message
        path = write(tmp_path / f"u{ending}", short.replace("saw.", "saw.,y").replace(",", mark))
        if ending == ".tsv":
            assert load(path, path, label="note").train.texts == ('"I came.', "I saw.", 'I left."')
        else:
            assert "closes in line 4" in refused(path, label="note")

    def test_texts_with_commas_and_line_breaks_in_a_quoted_file_are_read_and_told_of(self, tmp_path, caplog):
        path = write(tmp_path / "t.csv", 'text,label\n"Great, really.\nLoved it.",pos\n"a, b, c",neg\n')
        assert load(path, path).train.texts == ("Great, really.\nLoved it.", "a, b, c")
        assert "opens in line 2 and closes in line 3 makes one row of lines that might be rows" in caplog.text

    def test_lines_are_unquoted_where_their_quotes_add_up_and_else_stay(self, tmp_path):
        lines = ('"Great" film', '"He said \\"no\\""', '"never closed', '"whole ""so"""', 'a "b" c')
        path = write(
            tmp_path / "t.tsv", "text\tlabel\n" + "".join(f"{line}\t{i % 2}\n" for i, line in enumerate(lines))
        )
        assert load(path, path).train.texts == (*lines[:3], 'whole "so"', lines[4])

    def test_blanks_before_a_quoted_cell(self, tmp_path):
        path = write(
            tmp_path / "t.csv", 'text, label\nx, "a"\n'.replace("text, label", '"text", "label"') + 'y,  "b, c"\n'
        )
        assert load(path, path).labels == ("a", "b, c")
        path = write(tmp_path / "u.csv", 'text,label\n "so" said he,a\ny,b\n')
        assert load(path, path).train.texts == (' "so" said he', "y")

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx"])
    def test_a_header_among_the_rows(self, tmp_path, ending):
        columns = {"text": ["x", "y", "text", "z"], "label": ["a", "b", "label", "a"]}
        message = refused(write_table(tmp_path / f"t{ending}", columns))
        assert "has its header once more in " + ("row 4" if ending == ".xlsx" else "line 4") in message
        path = write(tmp_path / "u.csv", "\ufefftext,label\nx,a\n\ufefftext,label\ny,b\n")
        assert "once more in line 3" in refused(path)

    def test_a_quote_in_the_middle_is_no_reason_to_refuse(self, tmp_path):
        path = write(tmp_path / "t.csv", 'text,label\n5" long,a\n"so" said,b\n')
        assert load(path, path).train.texts == ('5" long', '"so" said')

    def test_json_in_another_encoding(self, tmp_path):
        message = refused(write(tmp_path / "t.jsonl", "é".encode("latin-1")))
        assert "is not text in UTF-8" in message
        assert message.endswith("save it as UTF-8.")

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    @pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig", "utf-8"])
    def test_other_encodings_are_read_and_a_guessed_one_is_said(self, tmp_path, caplog, ending, encoding):
        separator = "," if ending == ".csv" else "\t"
        content = f"text{separator}label\ncafé – “so”{separator}a\nx{separator}b\n"
        path = write(tmp_path / f"t{ending}", content.encode(encoding))
        assert load(path, path).train.texts == ("café – “so”", "x")
        assert ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")

    @pytest.mark.parametrize("ending", [".csv", ".jsonl"])
    def test_one_bad_byte_among_letters_in_utf8_is_named_by_its_line(self, tmp_path, ending):
        content = "text,label\ncafé,a\nthé,b\n" if ending == ".csv" else '{"text": "é", "label": 1}\n\n{"text": "thé"}'
        path = write(tmp_path / f"t{ending}", content.encode().replace("thé".encode(), b"th\xe9"))
        message = refused(path)
        assert "is not text in UTF-8" in message
        assert "in line 3" in message

    def test_names_that_hide_what_a_file_is(self, tmp_path):
        plain = write_table(tmp_path / "t.csv", {"text": ["x", "y"], "label": ["a", "b"]})
        for name, pack in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)):
            for ending in (".csv", ".jsonl"):
                assert f"it is packed by {name}" in refused(write(tmp_path / f"p{ending}", pack(plain.read_bytes())))
        workbook = write_table(tmp_path / "t.xlsx", {"text": ["x", "y"], "label": ["a", "b"]})
        assert "a zip archive or an Excel workbook" in refused(write(tmp_path / "w.csv", workbook.read_bytes()))
        table = write_table(tmp_path / "t.parquet", {"text": ["x", "y"], "label": ["a", "b"]})
        assert "a Parquet file" in refused(write(tmp_path / "q.tsv", table.read_bytes()))

    def test_characters_that_no_table_has(self, tmp_path):
        assert "line 3 has a NUL character; remove" in refused(
            write(tmp_path / "t.csv", "text,label\nx,a\ny\0,b\n" + "z,b\n" * 9)
        )
        message = refused(write(tmp_path / "u.csv", "text,label\nx,a\n".encode("utf-16-le")))
        assert "it looks like UTF-16 without its mark" in message
        assert "header in line 2 has a double quote that is not" in refused(
            write(tmp_path / "v.csv", '\ntext,"label\nx,a\n')
        )
        assert "its columns are '\\u200btext', label" in refused(write(tmp_path / "w.csv", "\u200btext,label\nx,a\n"))

    def test_a_text_of_endless_length(self, tmp_path, monkeypatch):
        monkeypatch.setattr("armijo_lab.tasks.separated._LONGEST_FIELD", 50)
        message = refused(write(tmp_path / "t.csv", f'text,label\nx,a\n"y, {"y" * 60}",b\n'))
        assert "the row that begins in line 3 has a text of more than 50 characters" in message

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    @pytest.mark.parametrize("separator", [";", "\t", "|", ","])
    def test_another_separator(self, tmp_path, ending, separator):
        other = "," if separator != "," else ";"
        content = f'text{separator}label\nx{separator}a\n"y{other} z"{separator}b\n'
        path = write(tmp_path / f"t{ending}", content)
        assert load(path, path).train.texts == ("x", f"y{other} z")

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
    @pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
    def test_packed_files(self, tmp_path, ending, packed):
        plain = write_table(tmp_path / f"t{ending}", {"text": ["x", "y"], "label": ["a", "b"]})
        path = tmp_path / f"t{ending}{packed}"
        with {".gz": gzip, ".bz2": bz2, ".xz": lzma}[packed].open(path, "wb") as stream:
            stream.write(plain.read_bytes())
        assert load(path, path).train.texts == ("x", "y")
        assert columns(path) == "text, label"
        assert "cannot be read" in refused(write(tmp_path / f"cut{ending}{packed}", path.read_bytes()[:-9]))

    def test_excel_gives_its_first_sheet_as_it_is_written(self, tmp_path):
        path = tmp_path / "t.xlsx"
        with pandas.ExcelWriter(path) as workbook:
            frame = pandas.DataFrame({"text": ["NA", "y"], "label": ["01", "b"], "other": [1, None]})
            frame.to_excel(workbook, index=False)
            pandas.DataFrame({"text": ["of another sheet"]}).to_excel(workbook, sheet_name="second", index=False)
        data = load(path, path)
        assert (data.train.texts, data.labels) == (("NA", "y"), ("01", "b"))
        assert columns(path) == "text, label, other"
        assert "has no column 'sentence'" in refused(path, text="sentence")
        assert "cannot be read as xlsx" in refused(write(tmp_path / "u.xlsx", "x"))

    def test_what_excel_alone_has(self, tmp_path):
        openpyxl = pytest.importorskip("openpyxl")

        def book(*sheets: list) -> Path:
            workbook = openpyxl.Workbook()
            workbook.remove(workbook.active)
            for number, rows in enumerate(sheets):
                sheet = workbook.create_sheet(f"sheet {number}")
                for row in rows:
                    sheet.append(row)
            path = tmp_path / "t.xlsx"
            workbook.save(path)
            return path

        header, rows = ["text", "label"], [["x", "a"], ["y", "b"]]
        path = book([header, rows[0], [], [None, None], rows[1]])
        assert load(path, path).train.texts == ("x", "y")
        assert "The text in row 4 of" in refused(book([header, rows[0], [], [None, "b"]]))
        assert "in row 3 of" in (message := refused(book([header, rows[0], ["#N/A", "b"]])))
        assert "is the error #N/A of Excel" in message
        assert "The text in row 3" in (message := refused(book([header, rows[0], ["=A2", "b"]])))
        assert "is a formula without a value" in message
        assert "has its columns in row 3, below other rows" in refused(book([["Report"], ["of May"], header, *rows]))
        assert "in the sheet 'sheet 1', and the first sheet, 'sheet 0', is read" in refused(
            book([["?"]], [header, *rows])
        )

    def test_a_json_list(self, tmp_path):
        message = refused(write(tmp_path / "t.json", '\n[\n  {"text": "x", "label": 1}\n]\n'))
        assert "it begins with a JSON list (line 2); write one object a line" in message

    def test_the_columns_at_a_glance(self, tmp_path):
        for ending in (".csv", ".tsv", ".jsonl", ".parquet"):
            path = write_table(tmp_path / f"t{ending}", {"text": ["x"], "label": ["a"]})
            assert tables.columns(path) == "text, label"
        assert tables.columns(tmp_path / "none.csv") is None
        assert tables.columns(write(tmp_path / "t.parquet", "x")) is None

    def test_a_missing_column_for_prediction_names_the_option(self, tmp_path):
        path = write(tmp_path / "t.csv", "review\nx\n")
        with pytest.raises(BadInputError, match="its columns are review; name it with --text-column"):
            tables.read_texts(path, text="text", text_pair=None, options=("--text-column", "--text-pair-column"))

    @pytest.mark.parametrize(
        "line",
        [
            '{"te',
            "null",
            "1",
            '[{"text": "x"}]',
            '{"text": "\\ud800", "label": 1}',
            '{"text": "x", "text": "y"}',
            "[" * 9999,
        ],
    )
    def test_a_broken_line_of_json(self, tmp_path, line):
        message = refused(write(tmp_path / "t.jsonl", '{"text": "x", "label": 1}\n' + line))
        assert "cannot be read" in message

    def test_parquet_cut_short(self, tmp_path):
        path = write_table(tmp_path / "t.parquet", {"text": ["x", "y"], "label": ["a", "b"]})
        write(path, path.read_bytes()[:-20])
        assert "cannot be read as parquet" in refused(path)

    def test_a_held_out_label_that_training_does_not_know(self, tmp_path):
        train = write(tmp_path / "t.csv", "text,label\nx,a\ny,b\n")
        message = refused(train, write(tmp_path / "e.csv", "text,label\nx,a\ny,c\n"))
        assert "has the label 'c' (line 3)" in message
        assert "its labels are a, b." in message

    @pytest.mark.parametrize("name", ["a[1]*?.csv", ".hidden.csv", "ünï cödé.csv"])
    def test_names_that_look_like_patterns(self, tmp_path, name):
        path = write(tmp_path / name, "text,label\nx,a\ny,b\n")
        assert load(path, path).labels == ("a", "b")

    def test_relative_paths(self, tmp_path, monkeypatch):
        write(tmp_path / "t.csv", "text,label\nx,a\ny,b\n")
        monkeypatch.chdir(tmp_path)
        assert load(Path("t.csv"), Path("t.csv")).labels == ("a", "b")


class TestHoldingOut:
    @pytest.fixture
    def path(self, tmp_path):
        labels = ["a"] * 50 + ["b"] * 20 + ["c"] * 2 + ["d"]
        return write_table(tmp_path / "t.csv", {"text": [f"text {i}" for i in range(73)], "label": labels})

    def test_every_row_lies_on_one_side_in_the_files_order(self, path):
        data = load(path)
        assert sorted(data.train.texts + data.evaluation.texts) == sorted(f"text {i}" for i in range(73))
        for split in (data.train, data.evaluation):
            assert list(split.texts) == sorted(split.texts, key=lambda text: int(text.split()[1]))

    def test_every_class_gives_its_share(self, path):
        data = load(path, holdout=0.2)
        assert Counter(data.evaluation.targets) == {0: 10, 1: 4, 2: 1}
        assert Counter(data.train.targets) == {0: 40, 1: 16, 2: 1, 3: 1}
        assert load(path, holdout=0.99).train.targets.count(0) == 1

    def test_the_seed_decides(self, path):
        assert load(path, seed=1) == load(path, seed=1)
        assert load(path, seed=1).evaluation != load(path, seed=2).evaluation

    def test_nothing_to_hold_out(self, tmp_path):
        assert "give --eval" in refused(write(tmp_path / "t.csv", "text,label\nx,a\ny,b\n"))

    @pytest.mark.parametrize("holdout", [0, 1, -0.1, float("nan")])
    def test_a_fraction_that_is_none(self, path, holdout):
        assert "between 0 and 1" in refused(path, holdout=holdout)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    import datasets

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = write(tmp_path / "t.csv", "text,label\nx,a\ny,b\n")
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    load(path, path)
    refused(write(tmp_path / "bad.csv", b"text,label\n\xff,a"))
    assert list(scratch.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv", "scratch", "t.csv"]
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == (level, bars)


def test_limited_takes_the_first_rows(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\nx,a\ny,b\nz,a\n")
    data = load(path, path).limited(2, None)
    assert (data.train.texts, data.train.targets) == (("x", "y"), (0, 1))
    assert len(data.evaluation) == 3
