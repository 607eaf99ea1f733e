"""Pages of reports, from jinja2 templates that escape every value.

    templates/NAME.html.j2 + values -> render -> Markup -> sections of page.html.j2 -> one self-contained document
    picture files inside a run's folder -> Pictures.url

Text from data, names and logs never reaches a page unescaped; only `render` makes Markup. Colours are custom properties
of style.css with a light and a dark value; understanding is blue and generation orange throughout.
"""

import base64
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ufork.files import read_bounded
from ufork.vision.image_header import image_format

TEMPLATES = Path(__file__).parent / "templates"

MAX_PICTURE_BYTES = 32 * 2**20
"""Largest picture that is embedded."""
MAX_PICTURES_BYTES = 128 * 2**20
"""Pictures of a page together; later ones are not shown."""


def page(
    title: str, subtitle: str, *, sections: Iterable[tuple[str, Markup | str]], head: Markup | str, footer: str
) -> str:
    """Returns the whole document.

    Args:
        title: heading of the page.
        subtitle: line below the title.
        sections: (heading, body) in order; those without a body are omitted. A body is what `render` returned.
        head: what `render` returned, shown above the first section.
        footer: text at the end; line breaks are kept.
    """
    shown = [
        {"heading": heading, "body": body, "anchor": re.sub("[^a-z0-9]+", "-", heading.lower())}
        for heading, body in sections
        if body
    ]
    document = render("page.html.j2", title=title, subtitle=subtitle, sections=shown, head=head, footer=footer)
    return with_any_text(document) + "\n"


def with_any_text(document: str) -> str:
    """Returns a document that UTF-8 can hold: bytes of file names that are no text are shown as escape sequences."""
    return document.encode(errors="backslashreplace").decode()


def render(template: str, *, folder: Path = TEMPLATES, **values: Any) -> Markup:
    """Renders a template with `values`, all of them escaped unless they are Markup.

    Args:
        template: name of a file in `folder`; it may import and include those in `TEMPLATES`.
        folder: folder of the template.
        values: variables of the template; using one that is not given is an error.
    """
    return Markup(_environment(folder).get_template(template).render(values))  # escaped by the environment


class Pictures:
    """Pictures of a folder, embedded into one page."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder, which no picture may lie outside of."""
        self._root, self._bytes_left = root.resolve(), MAX_PICTURES_BYTES

    def url(self, path: Path) -> str | None:
        """Returns a PNG file as a data URL; None if it is missing, no PNG, outside of the folder, or too large."""
        try:
            real = path.resolve(strict=True)
            if not real.is_relative_to(self._root):  # by a link
                return None
            data = read_bounded(real, min(MAX_PICTURE_BYTES, self._bytes_left))
        except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
            return None
        if image_format(data) != "png":
            return None
        self._bytes_left -= len(data)
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bar"] = lambda share: f"{min(max(share, 0), 1) * 100:.1f}%"
    environment.filters["fixed"] = lambda value: "–" if value is None else f"{value:.2f}"
    environment.filters["title_of"] = lambda name: name[:1].upper() + name[1:].replace("_", " ")
    return environment
