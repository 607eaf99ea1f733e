"""Any text in a request is refused, or arrives unchanged in the script, in its #SBATCH lines and in jobs.jsonl."""

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.cluster.slurm_job import SBATCH_OPTIONS, TEMPLATE, JobRequest, render
from pipelines.recipe import Recipe
from ufork.errors import ConfigError

PATHS = ("run", "recipe", "code")
TEXTS = ("python", "container", "mounts")
FIELDS = [*PATHS, *TEXTS, "phase", "time", *(name for name in SBATCH_OPTIONS if name != "time")]
HOSTILE = [
    "a\n#SBATCH --uid=0",
    "x\ntouch owned",
    "$(touch owned)",
    "`touch owned`",
    "'; touch owned; '",
    '"; touch owned; "',
    "a b --wrap=true",
    "back\\slash",
    "100%j",
    "a,b:c",
    "\r",
    "\x1b[2J",
    "-rf",
    "é ü",
    "# no",
    "a\u2028b",
    "\udc80",
]
PRINTS = """printf '%s\\0' "$UFORK_RUN" "$UFORK_PYTHON" "$UFORK_PHASE" "${UFORK_CONTAINER:-}" "${UFORK_MOUNTS:-}" \
"$PYTHONPATH" "$@"; exit
"""


def request_with(field, text):
    values = {
        "run": Path("/runs/demo"),
        "recipe": Path("/runs/demo/submissions/001/recipe.yaml"),
        "code": Path("/code"),
        "python": "python3",
        "nodes": 1,
        "ranks_per_node": 1,
        "has_gpus": False,
        "time": "1:00:00",
        "restarts": 1,
        "container": "image",
    }
    if field in PATHS:
        values[field] = Path("/folder") / text
    elif field == "mounts":
        values["mounts"] = (text,)
    elif field in ("phase", "time", *TEXTS):
        values[field] = text
    else:
        values["options"] = {field: text}
    return JobRequest(**values)


def sbatch_options(script):
    """The options as sbatch reads them: up to the first command, split at white space outside quotes."""
    options = []
    for line in re.split(r"[\n]", script)[1:]:
        if line.strip() and not line.startswith("#"):
            return options
        if line.startswith("#SBATCH"):
            options += shlex.split(line.removeprefix("#SBATCH"), comments=True)
    raise AssertionError("no command")


def values_of(request):
    mounts = ",".join([f"{request.run}:{request.run}", *request.mounts]) if request.container else ""
    phase = ["--phase", request.phase] if request.phase is not None else []
    assigned = [str(request.run), request.python, request.phase or "", request.container or "", mounts]
    return [*assigned, str(request.code), str(request.recipe), *phase]


@pytest.mark.parametrize("field", FIELDS)
@given(text=st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=30)))
@example(text="a b")
def test_any_text_is_refused_or_arrives_unchanged(field, text):
    try:
        request = request_with(field, text)
    except ConfigError as error:
        assert field in str(error) or repr(text)[1:-1] in str(error)
        return
    except ValueError:
        assert "\0" in text and field in PATHS
        return
    script = render(request, TEMPLATE.read_text())
    options = sbatch_options(script)
    plain = sbatch_options(render(request_with("time", "1:00:00"), TEMPLATE.read_text()))
    assert len(options) == len(plain) + len(request.options), "one option each, and no others"
    assert f"--output={request.run}/slurm/logs/%j.log".replace("%", "%%").replace("%%j.log", "%j.log") in options
    assert all(f"--{name}={value}" in options for name, value in {"time": request.time, **request.options}.items())
    beginning, _, body = script.partition('cd "$SLURM_SUBMIT_DIR"\n')
    assert f'cd "$SLURM_SUBMIT_DIR"\n{body}' in TEMPLATE.read_text()
    done = subprocess.run(["bash", "-c", beginning + PRINTS], capture_output=True, text=True, check=True, env={})
    assert done.stdout.split("\0")[:-1] == values_of(request) and done.stderr == ""


def test_a_script_with_every_odd_value_is_valid_bash():
    odd = Path("/a b/c'd$(e)")
    values = {"run": odd / "run", "recipe": odd, "code": odd, "python": "p 'q\"", "container": "i m\"g'\\"}
    fixed = {"nodes": 1, "ranks_per_node": 1, "has_gpus": True, "time": "1-0", "restarts": 0, "phase": "a.b-c"}
    script = render(JobRequest(**values, **fixed), TEMPLATE.read_text())
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def functions_of_the_script():
    body = TEMPLATE.read_text()
    return body[body.index("say() {") : body.index("ufork() {")]


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
)
@example('quotes " and \\ and \n', "phase")
@example("\x01\x1f\x7f\u0085", "a'b")
def test_events_are_valid_json_for_any_text(reason, phase):
    program = f'{functions_of_the_script()}\nrestart=3\nrun=$FOLDER\nreport ended 1 "$REASON"'
    values = {"REASON": reason, "phase": phase, "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": 'n[1-2] "\\'}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "slurm").mkdir()
        environment = {**values, "FOLDER": folder, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        subprocess.run(["bash", "-euo", "pipefail", "-c", program], env=environment, capture_output=True, check=True)
        text = (Path(folder) / "slurm" / "jobs.jsonl").read_bytes().decode()
    assert text.endswith("}\n") and text.count("\n") == 1
    event = json.loads(text)
    assert (event["reason"], event["phase"], event["restart"]) == (reason, phase, 3)
    assert (event["nodes"], event["exit_code"]) == (values["SLURM_JOB_NODELIST"], 1)


@pytest.mark.parametrize("name", ["a\nb", "../up", "/abs", "a b", "", "x" * 101, "a/b", "-x", "a'b"])
def test_names_of_phases_and_runs_are_refused_by_the_recipe(name):
    with pytest.raises(ConfigError, match="phases"):
        Recipe.from_mapping({"run": {"name": "demo"}, "phases": {name: {}}}, origin="recipe")
    with pytest.raises(ConfigError, match="run.name"):
        Recipe.from_mapping({"run": {"name": name}}, origin="recipe")
