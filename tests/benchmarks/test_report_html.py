from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from isicrt.benchmarks.latency import Latency
from isicrt.benchmarks.report_html import to_html
from isicrt.benchmarks.result import Report
from tests.benchmarks.sample_report import sample_model, sample_report

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects them and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize(
    "report",
    [sample_report(), sample_report(sample_model(scored=False)), sample_report(sample_model(), sample_model("b"))],
)
def test_the_page_needs_nothing_else(report: Report) -> None:
    page = Page(to_html(report))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"}
    assert not {name for _, attributes in page.tags for name in attributes if name.startswith("on")}
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href"}
    assert "url(" not in to_html(report)
    assert "@import" not in to_html(report)


def test_the_page_says_what_was_measured_and_how() -> None:
    words = Page(to_html(sample_report(sample_model("first"), sample_model("second", slower=2)))).words
    for expected in (
        "first",
        "second",
        "images/s, files to masks",
        "mean IoU of 3 images",
        "Some CPU",
        "onnxruntime 1.20.0",
        "isicrt bench --model darkness.onnx",
        "SHA-256 " + "ab" * 32,
        "2 (at least 3, until the last 3 agree within 10%) of at least 20 calls and 1 s",
        "Accuracy against speed",
        "Timeline",
        "2.15times L, the limit of 46.5 ms an image",
    ):
        assert expected in words


def test_foreign_text_is_escaped() -> None:
    nasty = "<script>alert('x')</script> & \"y\""
    report = dataclasses.replace(sample_report(sample_model(nasty)), command=nasty)
    page = Page(to_html(report))
    assert "script" not in {tag for tag, _ in page.tags}
    assert nasty in page.words


def test_rendered_images_are_labelled_and_scores_are_absent_without_truth() -> None:
    assert (
        "Accuracy (rendered images: says nothing about patients)" in Page(to_html(sample_report(rendered=True))).words
    )
    assert "IoU" not in Page(to_html(sample_report(sample_model(scored=False)))).words


def test_warnings_come_first() -> None:
    noisy = dataclasses.replace(sample_model(), latencies=(Latency(1, ((1.0,), (2.0,))),))
    words = Page(to_html(sample_report(noisy))).words
    assert 0 < words.index("differ by 67%") < words.index("images/s, files to masks")
    assert "Read this first" not in Page(to_html(sample_report())).words


def test_long_names_wrap_and_never_widen_the_page() -> None:
    text = to_html(sample_report(sample_model("x" * 90)))
    style = text[text.index("<style>") : text.index("</style>")]
    rules = [(m[1], m[2]) for m in re.finditer(r"([^{}]+){([^{}]*)}", style)]

    def declared(selector: str, wanted: str) -> bool:
        return any(selector in [s.strip() for s in names.split(",")] and wanted in body for names, body in rules)

    # Inherited by all: warnings, headings, the line with the images' folder, the cells of a phone's table.
    assert declared("body", "overflow-wrap: anywhere")
    assert not [names for names, body in rules if "overflow-wrap" in body and names.strip() != "body"]
    # What must not wrap, the figures, scrolls inside its section; and there a name keeps a width to be read in.
    assert declared("th", "white-space: nowrap")
    assert declared(".scroll", "overflow-x: auto")
    assert declared(".word:first-child", "min-width: 9em")
    assert not re.search("grid-template-columns: max-content", style), "a name would take the whole line"
    assert text.count("<table>") == text.count('<div class="scroll"><table>') > 0
