"""The README.md of an exported model: what it is, how it was trained and how it scores, and how to use it.

    config of the export, files of the run (recipe, data, metrics, scores, versions) -> templates/model_card.md.j2

Weights outside a run have a card without training facts. The licence is the publisher's to choose. Names, scores and
attributions come from files that somebody else may have written: every value of the template is escaped, so that it is
shown as text and never read as Markdown or HTML.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ufork import __version__
from ufork.convert.planned_file import Plan
from ufork.markdown import as_code, as_fenced, as_text
from ufork.report.page import with_any_text
from ufork.report.run_record import RunRecord, read_run
from ufork.run_folder import RunFolder
from ufork.vocabulary import Task

TEMPLATES = Path(__file__).parent / "templates"


def model_card(weights: Path, *, config: dict[str, Any], task: Task | None, plan: Plan) -> str:
    """Returns the text of the card, in Markdown with the metadata that the Hugging Face Hub reads.

    Args:
        weights: the exported weights, RUN/phases/NAME/weights if they are a run's.
        config: `config.json` of the export.
        task: the only branch that was exported, if not all.
        plan: its tensors.
    """
    run = run_of(weights)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else as_text(str(value)),
    )
    environment.filters |= {"code": as_code, "fenced": as_fenced, "sections": _as_sections}
    card = environment.get_template("model_card.md.j2").render(
        version=__version__,
        config=config,
        task=task,
        num_parameters=sum(tensor.size.num_values for tensor in plan.values()),
        run=run,
        phase=weights.parent.name,
    )
    return with_any_text(card)


def _as_sections(markdown: str) -> Markup:
    """Returns an ATTRIBUTION.md without its title, its headings one level lower and all else as text."""
    lines = markdown.partition("\n")[2].strip().splitlines()
    return Markup(
        "\n".join(f"### {as_text(line[3:])}" if line.startswith("## ") else str(as_text(line)) for line in lines)
    )


def run_of(weights: Path) -> RunRecord | None:
    """Returns the record of the run that holds the weights; None if they lie elsewhere."""
    run = RunFolder.of_weights(weights)
    return read_run(run.path) if run.config.is_file() else None
