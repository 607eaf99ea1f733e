"""Text becomes Markdown that renders as the text itself."""

import html
import re

import markdown_it
from hypothesis import given
from hypothesis import strategies as st

from ufork.markdown import as_code, as_fenced, as_text

RENDERER = markdown_it.MarkdownIt("commonmark").enable("table")
TEXTS = st.text(st.sampled_from("ab1 <>/!?&;#*_-+=~|`[]()\\.:\"'{}^$%@\t\n"), max_size=30)


def shown(markdown: str, tag: str) -> str:
    """The text of a page that is a single element."""
    found = re.fullmatch(rf"(?s)<{tag}[^>]*>(.*)</{tag}>\n", RENDERER.render(markdown))
    assert found and not re.search(r"<(?!/?code)", found[1]), RENDERER.render(markdown)
    return html.unescape(re.sub(r"</?code[^>]*>", "", found[1]))


@given(TEXTS)
def test_any_text_is_shown_as_it_is(text):
    one_line = " ".join(text.split())
    assert shown(f"x {as_text(text)}", "p") == html.unescape(f"x {one_line}".strip())
    code = text.strip() or "y"
    assert shown(f"x {as_code(code)}", "p").split() == f"x {code}".split()
    assert shown(str(as_fenced(text, "yaml")), "pre").strip() == text.strip()


@given(TEXTS, TEXTS)
def test_any_text_is_one_cell(one, two):
    page = RENDERER.render(f"| a | b |\n|---|---|\n| {as_text(one)} | {as_text(two)} |\n")
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*)</td>", page)]
    assert cells == [html.unescape(" ".join(text.split())) for text in (one, two)]


def test_no_line_begins_a_heading_or_a_list():
    for text in ("# a", "## a", "- a", "+ a", "===", "> a", "~~~", "* a"):
        assert "<h" not in RENDERER.render(as_text(text)) and "<ul" not in RENDERER.render(as_text(text))
    assert as_text("left_of < 3, p 0.5 -") == "left_of < 3, p 0.5 -"
