"""The report's sections about an evaluation: pictures, answers, scores, confusion; evaluation.json in, HTML out."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ufork.report.charts import confusion_chart
from ufork.report.page import panel, picture, sign, track


def drawings(evaluation: Mapping[str, Any], folder: Path) -> str:
    """Drawings beside real pictures, by skill; nothing without any."""
    examples = evaluation.get("drawing_examples") or []
    if not examples:
        return ""
    intro = (
        "The first held-out prompts of each skill, not picked; no training picture shows these combinations. Left what "
        "the model drew, right a real picture of the prompt. A tick: the judge found what was asked for."
    )
    parts = [f"<p>{intro}</p>"]
    for skill, group in _by_skill(examples).items():
        score = evaluation["drawings"][skill]
        note = f"{score['satisfied']:.0%} of {score['num_prompts']} as asked, chance {score['chance']:.0%}"
        cards = "".join(_drawing_card(example, folder) for example in group)
        parts.append(f'<h3>{_title(skill)} <small>{note}</small></h3><div class="grid drawings">{cards}</div>')
    return "".join(parts)


def _drawing_card(example: Mapping[str, Any], folder: Path) -> str:
    prompt = example["prompt"]
    sides = "".join(
        f"<figure>{picture(folder / example[key], f'{caption}: {prompt}')}<figcaption>{caption}</figcaption></figure>"
        for key, caption in (("drawing", "drawn"), ("real", "real"))
    )
    found = f'<div class="found">found: {escape(example["found"])}</div>' if example["found"] else ""
    return (
        f'<div class="card drawing"><div class="prompt">{sign(example["right"])}{escape(prompt)}</div>'
        f'<div class="pair">{sides}</div>{found}</div>'
    )


def answers(evaluation: Mapping[str, Any], folder: Path) -> str:
    """Questions with the answers given, by skill; nothing without any."""
    examples = evaluation.get("answer_examples") or []
    if not examples:
        return ""
    parts = ["<p>The first held-out questions of each skill, not picked.</p>"]
    for skill, group in _by_skill(examples).items():
        score = evaluation["answers"][skill]
        note = f"{score['accuracy']:.0%} of {score['num_questions']} right, chance {score['chance']:.0%}"
        cards = "".join(_answer_card(example, folder) for example in group)
        parts.append(f'<h3>{_title(skill)} <small>{note}</small></h3><div class="grid answers">{cards}</div>')
    return "".join(parts)


def _answer_card(example: Mapping[str, Any], folder: Path) -> str:
    right, answer = example["right"], escape(example["answer"] or "(nothing)")
    truth = "" if right else f'<div class="muted">truth: {escape(example["truth"])}</div>'
    return (
        f'<div class="card answer">{picture(folder / example["image"], "the picture asked about")}<div>'
        f'<div class="question">{escape(example["question"])}</div>'
        f'<div class="said {"right" if right else "wrong"}">{sign(right)}{answer}</div>{truth}</div></div>'
    )


def scores(evaluation: Mapping[str, Any]) -> str:
    """Tables of the scores beside chance and ceiling; nothing without any."""
    parts = []
    if answers := evaluation.get("answers"):
        mean = evaluation["answers_mean"]
        rows = [_score_row(_title(skill), row["accuracy"], row, "--understanding") for skill, row in answers.items()]
        rows.append(_score_row("Mean over skills", mean["accuracy"], mean, "--understanding", mean=True))
        parts.append(_score_table("Answers", "right", rows, ceiling=False))
    if drawings := evaluation.get("drawings"):
        mean = evaluation["drawings_mean"]
        rows = [_score_row(_title(skill), row["satisfied"], row, "--generation") for skill, row in drawings.items()]
        rows.append(_score_row("Mean over skills", mean["satisfied"], mean, "--generation", mean=True))
        parts.append(_score_table("Drawings", "as asked", rows, ceiling=True))
    if not parts:
        return ""
    intro = (
        "Chance of answers is the best constant answer to each sort of question; of drawings, a real picture of "
        "another prompt of the skill. The ceiling is what the judge makes of real pictures of the prompts themselves. "
        "Normalised: 0 at chance, 1 at perfect or at the ceiling. ± is one standard error."
    )
    return f"<p>{intro}</p>{''.join(parts)}{_agreement(evaluation)}"


def _score_table(heading: str, measure: str, rows: Sequence[str], *, ceiling: bool) -> str:
    head = "".join(f'<th class="number">{name}</th>' for name in ("chance", *(["ceiling"] if ceiling else [])))
    key = ' <small><i class="key"></i>chance'
    key += ' &nbsp; <i class="key ceiling"></i>ceiling</small>' if ceiling else "</small>"
    return (
        f'<h3>{heading}{key}</h3><div class="card scroll"><table><tr><th>skill</th><th></th>'
        f'<th class="number">{measure}</th>{head}<th class="number">normalised</th></tr>{"".join(rows)}</table></div>'
    )


def _score_row(name: str, share: float, row: Mapping[str, Any], colour: str, *, mean: bool = False) -> str:
    ceiling = row.get("ceiling")
    error = f' <span class="muted">± {row["standard_error"]:.2f}</span>' if "standard_error" in row else ""
    others = "".join(f'<td class="number">{value:.2f}</td>' for value in (row["chance"], ceiling) if value is not None)
    return (
        f"<tr{' class=mean' if mean else ''}><td>{escape(name)}</td>"
        f'<td class="bar">{track(share, colour=colour, chance=row["chance"], ceiling=ceiling)}</td>'
        f'<td class="number">{share:.2f}{error}</td>{others}<td class="number">{row["normalised"]:.2f}</td></tr>'
    )


def _agreement(evaluation: Mapping[str, Any]) -> str:
    agreement = evaluation.get("detector_agreement")
    if not agreement:
        return ""
    mean = sum(agreement.values()) / len(agreement)
    return (
        '<p class="note" style="margin-top:.8rem">The judge is a detector fitted on real training pictures. '
        f"In {mean:.1%} of real held-out pictures it finds exactly what is there: every thing, its colour, its place, "
        "the background.</p>"
    )


def confusions(evaluation: Mapping[str, Any]) -> str:
    """A chart per skill of which answer was given for which truth; nothing without any."""
    charts = [
        panel(_title(skill), confusion_chart(row["confusion"], label=f"{_title(skill)}: answers by truth"))
        for skill, row in (evaluation.get("answers") or {}).items()
    ]
    if not charts:
        return ""
    intro = "Rows are truths, columns answers. Blue is right, red is wrong, a cell as strong as its share of the row."
    return f'<p>{intro}</p><div class="confusions">{"".join(charts)}</div>'


def emoji(emoji: Mapping[str, Any] | None, folder: Path) -> str:
    """Everything about emoji of unseen concepts; nothing where they were not evaluated."""
    if not emoji:
        return ""
    parts = ["<p>Emoji of concepts that training never showed; outside the means over the six skills.</p>"]
    if emoji["answers"]:
        rows = [
            _score_row(_title(name), row["accuracy"], row, "--understanding") for name, row in emoji["answers"].items()
        ]
        parts.append(_score_table("Questions", "right", rows, ceiling=False))
    if emoji["answer_examples"]:
        cards = "".join(_answer_card(example, folder) for example in emoji["answer_examples"])
        parts.append(f'<h3>Answers</h3><div class="grid answers">{cards}</div>')
    if emoji["drawing_examples"]:
        cards = "".join(_drawing_card(example, folder) for example in emoji["drawing_examples"])
        parts.append(f'<h3>Drawings <small>nothing judges these</small></h3><div class="grid drawings">{cards}</div>')
    return "".join(parts)


def _by_skill(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for example in examples:
        groups.setdefault(example["skill"], []).append(example)
    return groups


def _title(skill: str) -> str:
    return skill.replace("_", " ").capitalize()
