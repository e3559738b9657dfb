"""The pages of `fleetune data check`, on the terminal and as HTML."""

from __future__ import annotations

import datetime
import re
import unicodedata
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from cluster.text import compact, many, percent
from jobs.data.quality import report as values
from jobs.data.quality.report import DataReport, Example, Finding, Histogram, LongSample, Packing, SourceReport
from orchestrator.pages import data as datapage
from orchestrator.pages import svg, tables
from orchestrator.pages.data import format_share, page
from orchestrator.pages.data_html import html

NOW = datetime.datetime(2026, 11, 24, 12, 5, tzinfo=datetime.UTC)
SVG = "{http://www.w3.org/2000/svg}"
LONG_NAME = "s3://bucket/" + "very-long-folder/" * 12 + "part-00017.jsonl"
NASTY = "<script>alert('x')</script> \"q\" \x1b[31mred\x07 \x9b2J \u202eback \ud800 \uffff\nnext\r\nlast\tend"


def source(where: str = "data.train", **more: Any) -> SourceReport:
    facts: dict[str, Any] = {
        "where": where, "path": "/data/train.jsonl", "format": "chat", "files": 1, "bytes": 1_234_567, "records": 1000,
        "bad": 0, "samples": 1000, "tokens": 250_000, "targets": 100_000, "cut_samples": 0, "cut_tokens": 0,
    }  # fmt: skip
    return SourceReport(**{**facts, **more})


def report(**more: Any) -> DataReport:
    """One that has nothing to complain about."""
    lengths = {
        "train": Histogram(edges=(0, 128, 256, 384, 512, 640), counts=(100, 500, 298, 2, 0)),
        "eval": Histogram(edges=(0, 128, 256, 384, 512, 640), counts=(0, 60, 40, 0, 0)),
    }
    facts: dict[str, Any] = {
        "name": "demo", "created_at": NOW, "fingerprint": "abc123", "verdict": "ok", "blocked": None,
        "sources": (source(),), "records": 1000, "samples": 1000, "train_samples": 900, "eval_samples": 100,
        "tokens": 250_000, "targets": 100_000, "seq_len": 512, "max_bad_fraction": 0.01, "lengths": lengths,
        "length_quantiles": {"train": {"mean": 211.4, "p50": 200.0, "max": 509.0}},
        "longest": (LongSample(file="/data/train.jsonl", line=77, tokens=509, text="a long one"),),
        "packing": Packing(packed=True, rows=3478, seq_len=1024, density=0.984), "near_duplicates_looked_at": 1000,
        "findings": (), "bad_rows_file": None,
    }  # fmt: skip
    return DataReport(**{**facts, **more})


def finding(severity: str, title: str, count: int = 3, of: int = 1000, **more: Any) -> Finding:
    facts: dict[str, Any] = {"kind": "x", "severity": severity, "title": title, "count": count, "of": of}
    return Finding(**{**facts, "advice": f"about {title}", **more})


def examples(count: int, text: str = "text") -> tuple[Example, ...]:
    return tuple(Example(file="/data/train.jsonl", line=10 + at, text=f"{text} {at}") for at in range(count))


def bad_report() -> DataReport:
    duplicates = tuple(
        Example(file="/data/a/train.jsonl", line=at, text=f"twin {at}", other_file="/data/b/train.jsonl", other_line=1)
        for at in (5, 6)
    )
    return report(
        verdict="errors",
        blocked="more than 1 % of the records are bad",
        sources=(
            source("data.train[0]", bad=20, cut_samples=7, cut_tokens=1234, weight=2.5),
            source("data.train[1]", path=LONG_NAME, tokens=5_000_000, format="my_package.formats:a_function_of_mine"),
            source("data.eval", path="/data/eval.jsonl", tokens=1),
        ),
        findings=(
            finding("note", "odd scripts", 1, 1, examples=examples(1, "note")),
            finding("warning", "exact duplicates", 1204, 80_000, kind="exact-duplicates", examples=duplicates),
            finding("error", "bad rows", 1, 1_000_000, examples=examples(5, "bad")),
            finding("warning", "near ones", kind="near-duplicates", examples=duplicates[:1]),
        ),
        labels=(values.LabelCount(label="yes", train=899, eval=50), values.LabelCount(label="no", train=1, eval=50)),
        bad_rows_file="/reports/bad_rows.jsonl",
    )


def nasty_report() -> DataReport:
    example = Example(file=NASTY, line=3, text=NASTY * 50, other_file="/other" + NASTY, other_line=4)
    return report(
        name=NASTY,
        verdict="errors",
        blocked=NASTY,
        sources=(source("data.train[0]", path=NASTY, format=NASTY), source("data.train[1]", path=NASTY)),
        findings=(finding("error", NASTY, advice=NASTY, examples=(example,)),),
        labels=(
            values.LabelCount(label=NASTY, train=5, eval=5),
            values.LabelCount(label="日本語のとても長いラベルです、本当に" * 3, train=1, eval=0),
        ),
        longest=(LongSample(file=NASTY, line=1, tokens=5, text="漢字かな👩‍👩‍👧 e\u0301" * 99 + NASTY),),
        bad_rows_file="/tmp/\x1b[2Jx",
    )


def empty_report() -> DataReport:
    nothing: dict[str, Any] = dict.fromkeys(
        ("records", "samples", "train_samples", "eval_samples", "tokens", "targets"), 0
    )
    nothing |= {"sources": (), "longest": (), "packing": None, "length_quantiles": {}, "near_duplicates_looked_at": 0}
    lengths = {"train": Histogram(edges=(), counts=())}
    return report(verdict="errors", blocked="there are no samples", lengths=lengths, **nothing)


def many_labels(count: int = 40) -> DataReport:
    return report(labels=tuple(values.LabelCount(label=f"class {at}", train=1000 - at, eval=at) for at in range(count)))


def huge_report() -> DataReport:
    big = 10**15
    counts = dict.fromkeys(("bytes", "records", "samples", "bad", "tokens", "cut_samples"), big)
    return report(
        sources=tuple(source(f"data.train[{at}]", weight=0.1, **counts) for at in range(30)),
        **dict.fromkeys(("records", "samples", "train_samples", "tokens", "targets"), big),
        lengths={"train": Histogram(edges=tuple(range(0, 10**9 + 1, 10**7)), counts=(big,) * 99 + (1,))},
        findings=(finding("warning", "w" * 500, big, big),),
        labels=(values.LabelCount(label="a", train=big, eval=1),),
    )


REPORTS = {"ok": report, "bad": bad_report, "nasty": nasty_report, "empty": empty_report}
REPORTS |= {"labels": many_labels, "huge": huge_report}
every_report = pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS.keys())


# --- the terminal


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@every_report
def test_no_line_is_wider_than_asked(make: Any, width: int) -> None:
    shown = page(make().model_copy(update={"bad_rows_file": None}), width)
    assert [line for line in shown.splitlines() if max(cell_len(line), tables.cells(line)) > width] == []


@every_report
def test_no_control_character_reaches_the_terminal(make: Any) -> None:
    shown = page(make(), 100, html="/reports/\x07page.html")
    wrong = {one for one in shown if unicodedata.category(one) in ("Cc", "Cf", "Cs") and one not in "\n\u200d"}
    assert wrong == set()
    assert shown.encode()  # no lone surrogate


def test_an_ok_report_says_so_first_and_has_no_empty_sections() -> None:
    shown = page(report())
    assert shown.startswith("ok: no problem was found\n")
    assert "packed: 3,478 rows of 1,024, 98.4 % full" in shown
    assert "1,000 of 1,000 records: 900 train, 100 eval" in shown
    assert "100,000 (40.0 % of the tokens)" in shown
    for absent in ("error", "warning", "label", "bad records", "compared", "\n\n\n", "weight"):
        assert absent not in shown


@pytest.mark.parametrize(
    ("verdict", "severities", "blocked", "first"),
    [
        ("warnings", ("warning", "note"), None, "1 warning, 1 note"),
        ("warnings", ("warning", "warning"), None, "2 warnings"),
        ("ok", ("note",), None, "ok: no problem was found (1 note)"),
        ("errors", ("error",), "no rows", "errors: the data cannot be prepared: no rows"),
        ("errors", ("error",), None, "1 error; preparation would leave out the bad records"),
    ],
)
def test_the_verdict_is_the_first_line(verdict: Any, severities: Any, blocked: str | None, first: str) -> None:
    made = report(verdict=verdict, blocked=blocked, findings=tuple(finding(name, "t") for name in severities))
    assert page(made).splitlines()[0] == first
    assert f">{first}</p>" in html(made)


def test_findings_come_by_severity_with_advice_and_at_most_three_examples() -> None:
    shown = page(bad_report())
    titles = ["error    bad rows", "warning  exact duplicates", "warning  near ones", "note     odd scripts"]
    places = [shown.index("\n" + title) for title in titles]
    assert places == sorted(places)
    assert "bad rows: 1 of 1,000,000 records (< 0.1 %)" in shown
    assert "exact duplicates: 1,204 of 80,000 records (1.5 %)" in shown
    assert "odd scripts: 1 of 1 record (100 %)" in shown
    assert format_share(finding("note", "absent", 1, 2, unit="class")) == "1 of 2 classes (50.0 %)"
    for title in ("bad rows", "exact duplicates", "near ones", "odd scripts"):
        assert f"         about {title}\n" in shown
    for line in ("train.jsonl:10  bad 0", "train.jsonl:11  bad 1", "train.jsonl:12  bad 2", "train.jsonl:10  note 0"):
        assert line in shown
    assert "bad 3" not in shown


def test_duplicates_name_both_places_and_files_only_as_far_as_needed() -> None:
    shown = page(bad_report())
    assert "           a/train.jsonl:5 = b/train.jsonl:1  twin 5\n" in shown
    assert "           a/train.jsonl:6 = b/train.jsonl:1  twin 6\n" in shown
    assert "           a/train.jsonl:5 ≈ b/train.jsonl:1  twin 5\n" in shown


def test_a_file_whose_whole_name_ends_another_keeps_its_name() -> None:
    files = ("x.jsonl", "a/x.jsonl", "b/a/x.jsonl", "y.jsonl", "/d/z.jsonl")
    found = tuple(Example(file=file, line=0, text="t") for file in files)
    names = datapage.short_names(report(longest=(), findings=(finding("note", "n", examples=found),)))
    assert names == {**{file: file for file in files}, "/d/z.jsonl": "z.jsonl"}


def test_sources_are_a_table_with_a_weight_where_there_is_one() -> None:
    lines = page(bad_report(), 130).splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("source "))
    assert lines[head].split() == list(datapage.SOURCE_HEAD)
    first = "train[0] /data/train.jsonl chat 1 1.2 MB 1,000 20 1,000 250,000 7 2.5"
    assert " ".join(lines[head + 1].split()) == first
    assert lines[head + 2].startswith("train[1]  s3://") and "part-00017.jsonl " in lines[head + 2]
    assert lines[head + 3].split()[:3] == ["eval", "/data/eval.jsonl", "chat"]


def test_of_many_sources_the_first_are_shown_and_the_rest_counted() -> None:
    shown = page(huge_report(), 100)
    assert "train[11]" in shown and "train[12]" not in shown
    assert "… and 18 more sources" in shown
    assert "1000T" in shown  # tokens, as there is no room for all digits


def test_the_histogram_marks_seq_len_between_the_bins_that_it_parts() -> None:
    lines = page(report(seq_len=256, lengths={"train": report().lengths["train"]})).splitlines()
    at = lines.index("tokens per sample, train")
    assert [line.split()[0] for line in lines[at + 1 : at + 6]] == ["0–127", "128–255", "╌╌╌", "256–383", "384–511"]
    assert lines[at + 2] == "128–255  " + "█" * 32 + "  500"
    assert lines[at + 3] == "╌╌╌ seq_len 256 ╌╌╌"
    assert lines[at + 5] == "384–511  ▏  2"  # seen, however few
    assert lines[at + 6] == ""  # the empty bin is not shown


def test_a_seq_len_within_a_bin_says_so_and_one_beyond_comes_last() -> None:
    train = {"train": report().lengths["train"]}
    within = page(report(seq_len=300, lengths=train)).splitlines()
    mark = within.index("╌╌╌ seq_len 300 (within the row above) ╌╌╌")
    assert within[mark - 1].startswith("256–383")
    beyond = page(report(seq_len=4096, lengths=train)).splitlines()
    assert beyond[beyond.index("╌╌╌ seq_len 4,096 ╌╌╌") - 1].startswith("384–511")


def test_joining_bins_keeps_every_count_and_the_edge() -> None:
    bins = Histogram(edges=tuple(float(10 * at) for at in range(101)), counts=tuple(range(100)))
    merged = datapage.merged(bins, 14, 370.0)
    assert sum(merged.counts) == sum(bins.counts)
    assert 370.0 in merged.edges
    assert len(merged.counts) <= 15
    assert len(merged.edges) == len(merged.counts) + 1


def test_train_and_eval_lengths_stand_beside_each_other_where_there_is_room() -> None:
    assert re.search(r"^tokens per sample, train +tokens per sample, eval$", page(report(), 100), re.MULTILINE)
    assert re.search(r"^tokens per sample, eval$", page(report(), 70), re.MULTILINE)
    assert re.search(r"^train +211 +200 +509$", page(report()), re.MULTILINE)


def test_labels_show_count_and_share_of_both_splits() -> None:
    shown = page(bad_report())
    assert re.search(r"^yes +899 +99\.9 % +█+ +50 +50\.0 % +█+", shown, re.MULTILINE)
    assert re.search(r"^no +1 +0\.1 % +▏ +50 +50\.0 % +█+", shown, re.MULTILINE)


def test_of_many_labels_the_most_frequent_and_the_rarest_are_shown() -> None:
    shown = page(many_labels())
    found = [int(name) for name in re.findall(r"^class (\d+) ", shown, re.MULTILINE)]
    assert found == [*range(8), *range(36, 40)]
    assert "… 28 labels between these …" in shown


def test_an_empty_report_is_short() -> None:
    assert page(empty_report()).splitlines() == [
        "errors: the data cannot be prepared: there are no samples",
        "",
        "data     demo, checked 2026-11-24 12:05 UTC, fingerprint abc123",
        "samples  0 of 0 records: 0 train, 0 eval",
    ]


def test_paths_to_copy_come_last_and_whole() -> None:
    shown = page(report(bad_rows_file=LONG_NAME), 60, html="/reports/page.html")
    assert shown.splitlines()[-2:] == [f"bad records  {LONG_NAME}", "page         /reports/page.html"]


def test_newlines_are_visible_and_escapes_spelled_out() -> None:
    assert tables.shown("a\nb\r\nc\td\x1b[0m\u202e\ud800") == "a↵b↵c d\\x1b[0m\\u202e\\ud800"
    assert tables.shown("é 漢字 👩‍👧 \u0915\u094d\u200d") == "é 漢字 👩‍👧 \u0915\u094d\u200d"


def test_what_is_shortened_has_an_ellipsis_and_fits() -> None:
    assert tables.shortened("abcdef", 6) == "abcdef"
    assert tables.shortened("abcdefg", 6) == "abcde…"
    assert tables.shortened("漢字漢字", 6) == "漢字…"
    assert tables.shortened_within("/data/some/where/train.jsonl:17", 20) == "/data/s…ain.jsonl:17"


def test_long_words_are_broken_and_a_percent_sign_stays_with_its_number() -> None:
    assert tables.wrapped("aa bbbbbbbb c", 6, "> ", "  ") == ["> aa", "  bbbb", "  bbbb", "  c"]
    assert tables.wrapped("only 5 %", 7) == ["only", "5 %"]


def test_percentages_say_all_and_none_only_where_true() -> None:
    pairs = ((0, 5), (5, 5), (1, 10_000), (3, 1000), (1, 3), (99_999, 100_000), (0, 0))
    words = ["0 %", "100 %", "< 0.1 %", "0.3 %", "33.3 %", "> 99.9 %", "0 %"]
    assert [percent(part, whole) for part, whole in pairs] == words


def test_one_is_singular() -> None:
    assert [many(count, "row") for count in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]
    packing = datapage.packing_lines(report(packing=Packing(packed=False, rows=1, seq_len=8, density=1.0)))
    assert packing == ["not packed: 1 row of at most 8, padded to the longest of their batch: 100 % full"]


# --- HTML


def parsed(made: DataReport) -> ElementTree.Element:
    return ElementTree.fromstring(html(made).removeprefix("<!DOCTYPE html>\n"))


def bars(root: ElementTree.Element, title: str) -> list[ElementTree.Element]:
    plots = [plot for plot in root.iter(f"{SVG}svg") if plot.get("aria-label") == title]
    assert len(plots) == 1
    return [rect for rect in plots[0].iter(f"{SVG}rect") if str(rect.get("class")).startswith("bar ")]


@every_report
def test_html_is_well_formed_and_has_nothing_that_runs_or_loads(make: Any) -> None:
    made = make()
    # An HTML parser takes `<td/>` for one that is left open.
    assert set(re.findall(r"<(\w+)[^>]*/>", html(made))) <= {"meta", "rect", "line"}
    for node in parsed(made).iter():
        assert node.tag.removeprefix(SVG) not in ("script", "link", "img", "iframe", "object", "use")
        assert [name for name in node.keys() if name.startswith("on") or name in ("src", "href")] == []  # noqa: SIM118
    text = html(made).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text


def test_html_escapes_what_comes_from_the_data() -> None:
    text = html(nasty_report())
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &quot;q&quot; \\x1b[31mred" in text
    assert {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs")} <= {"\n", "\u200d"}
    titles = [node.text or "" for node in parsed(nasty_report()).iter(f"{SVG}title")]
    assert any("<script>" in title for title in titles)  # as text


def test_html_has_every_example_folded_away() -> None:
    details = [" ".join(node.itertext()) for node in parsed(bad_report()).iter("details")]
    assert len(details) == 4
    assert "5 examples" in details[0]
    assert all(f"train.jsonl:{10 + at}" in details[0] and f"bad {at}" in details[0] for at in range(5))
    assert "a/train.jsonl:5 = b/train.jsonl:1" in details[1]
    assert "1 example" in details[3] and "1 examples" not in details[3]


def test_html_plots_have_a_bar_for_each_value() -> None:
    root = parsed(bad_report())
    assert len(bars(root, "Tokens per sample, train")) == 4
    assert len(bars(root, "Tokens per sample, eval")) == 2
    assert len(bars(root, "Tokens by source")) == 3
    assert len(bars(root, "Label balance")) == 4
    tall = [float(str(bar.get("height"))) for bar in bars(root, "Tokens per sample, train")]
    assert tall[1] == pytest.approx(5 * tall[0], rel=1e-3)
    marks = [node.text for node in root.iter(f"{SVG}text") if node.get("class") == "mark-label"]
    assert marks == ["seq_len 512", "seq_len 512 →"]  # eval: past the last bin that has samples


def test_html_of_very_many_labels_plots_the_most_frequent_and_lists_all() -> None:
    root = parsed(many_labels(100))
    assert len(bars(root, "Label balance")) == 80
    text = " ".join(root.itertext())
    assert "the 40 most frequent of 100" in text and "class 99" in text
    assert len(bars(parsed(many_labels(40)), "Label balance")) == 80


def test_html_of_an_empty_report_has_no_plots() -> None:
    root = parsed(empty_report())
    assert list(root.iter(f"{SVG}svg")) == []
    assert [node.text for node in root.iter("h2")] == []


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert svg.nice_ticks(0, 2560, 6) == [0, 500, 1000, 1500, 2000, 2500]
    assert svg.nice_ticks(0, 0.3, 3) == [0, 0.1, 0.2, 0.3]
    assert svg.nice_ticks(0, 2, 5, whole=True) == [0, 1, 2]
    assert [compact(value) for value in (0, 0.25, 950, 1234, 999_950, 35e6)] == [
        "0",
        "0.25",
        "950",
        "1.23k",
        "1M",
        "35M",
    ]


def test_bins_of_unlike_spans_are_equally_wide() -> None:
    place = svg.even_bins((0, 1, 10, 100), 0, 300)
    assert [place(value) for value in (-1, 0.5, 1, 55, 100, 999)] == [0, 50, 100, 250, 300, 300]
