"""docs/filters.md: its example runs and prints the counts on the page."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs/filters.md"


def test_the_example_prints_the_counts_on_the_page():
    example, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL).groups()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(example, str(PAGE), "exec"), {})
    expected, found = ([line.strip() for line in text.strip().splitlines()] for text in (printed, output.getvalue()))
    assert found[0].partition(";")[0] == expected[0].partition(";")[0]
    assert found[1 : len(expected)] == expected[1:]
