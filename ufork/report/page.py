"""The report's page: its style, and the blocks that sections are built of. Text in, HTML out; nothing from outside.

Colours are custom properties with a light and a dark value; understanding is blue and generation orange throughout.
"""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#18212c;--muted:#5b6774;--line:#e2e6eb;--track:#e9edf1;
--understanding:#2f66d0;--generation:#c9621a;--good:#1b7f49;--bad:#c0392b;--mark:#18212c}
@media(prefers-color-scheme:dark){:root{--bg:#0f141a;--card:#171e26;--ink:#e6ebf0;--muted:#93a0ad;--line:#28323d;
--track:#232d37;--understanding:#6b9bff;--generation:#f0954f;--good:#4fc384;--bad:#f0776a;--mark:#e6ebf0}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:4rem}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main,header>div,nav>div,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding:30px 0 20px}
header>div{display:flex;align-items:center;gap:16px}
h1{font-size:1.7rem;line-height:1.2;margin:0;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.6rem 0 .3rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:1.6rem 0 .6rem;display:flex;align-items:baseline;gap:.6rem;flex-wrap:wrap}
h3 small,.muted,figcaption,.note{color:var(--muted);font-weight:400;font-size:.875rem}
p{margin:.2rem 0 .8rem;max-width:75ch}
nav{position:sticky;top:0;z-index:2;background:var(--bg);border-bottom:1px solid var(--line)}
nav>div{display:flex;gap:22px;overflow-x:auto;scrollbar-width:none}
nav a{color:var(--muted);text-decoration:none;padding:.7rem 0;font-size:.92rem;white-space:nowrap}
nav a:hover,nav a:focus-visible{color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:14px;margin:1.4rem 0 0}
.card,.tile{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:16px 18px}
.tile .label{color:var(--muted);font-size:.875rem}
.tile .figure{font-size:2rem;line-height:1.25;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.grid{display:grid;gap:12px}
.drawings{grid-template-columns:repeat(auto-fill,minmax(178px,1fr))}
.answers{grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
.charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.losses{grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));margin-bottom:12px}
.confusions{columns:2 440px;column-gap:12px}
.confusions .panel{break-inside:avoid;margin-bottom:12px}
.drawing{padding:10px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:6px}
figure{margin:0}
.drawing img,.film img{width:100%;display:block}
img{image-rendering:pixelated;border-radius:6px;background:var(--track);box-shadow:0 0 0 1px var(--line)}
.pair figcaption{font-size:.75rem;text-align:center}
.drawing .prompt{font-weight:600;line-height:1.3;margin:.1rem 0 .5rem;font-size:.95rem}
.found{font-size:.8rem;color:var(--muted);line-height:1.35;margin-top:.35rem}
.answer{padding:10px;display:grid;grid-template-columns:84px 1fr;gap:12px;align-items:start}
.answer img{width:84px;height:84px;object-fit:contain}
.answer .question{line-height:1.35}
.answer .said{font-weight:650}
.right{color:var(--good)}.wrong{color:var(--bad)}
.sign{font-weight:700;margin-right:.3em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th{color:var(--muted);font-weight:500;text-align:left;font-size:.83rem}
th,td{padding:.5rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}
tr.mean td{font-weight:650}
td.number,th.number{text-align:right}
td.bar{width:44%;min-width:170px}
.track{position:relative;height:12px;background:var(--track);border-radius:6px}
.tile .track{margin:.35rem 0 .6rem}
.fill{position:absolute;inset:0 auto 0 0;border-radius:6px;min-width:2px}
.tick{position:absolute;top:-4px;bottom:-4px;width:2px;margin-left:-1px;background:var(--mark);border-radius:1px}
.tick.ceiling{background:none;border-left:2px dotted var(--mark)}
.key{display:inline-block;position:relative;width:2px;height:14px;margin:0 .35em -2px .1em;background:var(--mark)}
.key.ceiling{background:none;border-left:2px dotted var(--mark)}
.panel{padding:14px 16px}
.panel h4{margin:0 0 .5rem;font-size:.95rem;font-weight:600;display:flex;justify-content:space-between;gap:1rem}
.panel h4 span{color:var(--muted);font-weight:400;font-size:.875rem;text-align:right}
svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:var(--muted);font-family:inherit}
svg .grid{stroke:var(--line);stroke-width:1}
svg .boundary{stroke:var(--muted);stroke-width:1;stroke-dasharray:3 4}
svg .stage{fill:var(--ink);font-size:12px}
svg .curve{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}
svg .hit{fill:transparent}svg .hit:hover{fill:currentColor}
svg rect.right{fill:var(--understanding)}svg rect.wrong{fill:var(--bad)}
svg .count{fill:var(--ink)}svg .count.strong{fill:var(--card);font-weight:650}
.film{display:flex;gap:12px;overflow-x:auto;padding:2px 0 10px}
.film figure{flex:0 0 min(260px,70vw)}
details{padding:12px 16px}
summary{cursor:pointer;font-weight:600}
pre{margin:.8rem 0 0;overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{margin-top:3rem;padding-top:1.2rem;padding-bottom:2.5rem;color:var(--muted);font-size:.83rem;
border-top:1px solid var(--line);white-space:pre-line;overflow-wrap:anywhere}
@media(max-width:560px){header{padding:20px 0 12px}main,header>div,nav>div,footer{padding-left:14px;padding-right:14px}
.drawings{grid-template-columns:1fr 1fr}.drawing{padding:8px}h1{font-size:1.35rem}td.bar{min-width:130px}
th,td{padding:.45rem .45rem}}
@media print{nav{display:none}.card,.tile{break-inside:avoid}}
"""

LOGO = """<svg viewBox="0 0 40 40" style="width:44px;flex:none" aria-hidden="true" fill="none" stroke-width="5"
stroke-linecap="round"><path d="M20 36V23" stroke="var(--ink)"/><path d="M20 23C20 15 9 16 9 5"
stroke="var(--understanding)"/><path d="M20 23C20 15 31 16 31 5" stroke="var(--generation)"/></svg>"""


def page(title: str, subtitle: str, *, sections: Iterable[tuple[str, str]], head: str, footer: str) -> str:
    """The whole document.

    Args:
        title: of the page, plain text.
        subtitle: below it, plain text.
        sections: (heading, HTML) in order; those without HTML are left out.
        head: HTML between the title and the first section.
        footer: plain text.
    """
    shown = [(heading, body, heading.lower().replace(" ", "-")) for heading, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for heading, _, anchor in shown)
    bodies = "".join(f'<section id="{anchor}"><h2>{escape(name)}</h2>{body}</section>' for name, body, anchor in shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><div>{LOGO}<div><h1>{escape(title)}</h1><div class="muted">{escape(subtitle)}</div></div></div>'
        f"</header><nav><div>{links}</div></nav><main>{head}{bodies}</main>"
        f"<footer>{escape(footer)}</footer></body></html>\n"
    )


def picture(path: Path, alt: str) -> str:
    """An image with the file's bytes inside; says so where the file is missing."""
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return f'<span class="muted">{escape(path.name)} is missing</span>'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def tile(label: str, figure: str, note: str, *, colour: str = "--ink", share: float | None = None) -> str:
    """A headline figure, with a bar where it is a share."""
    bar = track(share, colour=colour) if share is not None else ""
    return (
        f'<div class="tile"><div class="label">{escape(label)}</div>'
        f'<div class="figure" style="color:var({colour})">{escape(figure)}</div>{bar}'
        f'<div class="note">{escape(note)}</div></div>'
    )


def track(share: float, *, colour: str, chance: float | None = None, ceiling: float | None = None) -> str:
    """A bar from 0 to 1 with marks at chance and ceiling."""
    marks = "".join(
        f'<i class="tick {name}" style="left:{_percent(value)}"></i>'
        for name, value in (("chance", chance), ("ceiling", ceiling))
        if value is not None
    )
    return (
        f'<div class="track"><i class="fill" style="width:{_percent(share)};background:var({colour})"></i>{marks}</div>'
    )


def sign(right: bool | None) -> str:
    """A tick or a cross, readable without its colour; nothing where nobody judged."""
    if right is None:
        return ""
    return (
        '<span class="sign right" title="right">✓</span>'
        if right
        else '<span class="sign wrong" title="wrong">✗</span>'
    )


def panel(heading: str, body: str, *, note: str = "") -> str:
    """A card with a small heading and a note at its right."""
    return f'<div class="card panel"><h4>{escape(heading)}<span>{escape(note)}</span></h4>{body}</div>'


def _percent(share: float) -> str:
    return f"{min(max(share, 0), 1) * 100:.1f}%"
