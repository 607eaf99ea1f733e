"""docs/data.md: its example runs and prints what the page shows, and the options that it names exist."""

import re
import shlex
from pathlib import Path

from data_prep.sharding.config import ShardConfig
from pipelines import cli
from ufork.data.config import DataConfig
from ufork.data.shards.manifest import Manifest

TEXT = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_example_and_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ((index, example),) = [(number, code) for number, (language, code) in enumerate(BLOCKS) if language == "python"]
    exec(compile(example, "docs/data.md", "exec"), {})
    printed, manifest = capsys.readouterr().out, Manifest.load(Path("shards/pets/train"))
    assert printed == BLOCKS[index + 1][1] and len(manifest.shards) == 2
    shell = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    lines = [line for line in shell if "ufork shard" in line]
    commands = [shlex.split(line)[1:] for line in lines if "encode" not in line and "--task" not in line]
    assert [command[1] for command in commands] == ["images", "verify", "merge"]
    Path("shards").rename("from-python")
    for command in commands:
        assert cli.main([word.replace("num_workers=16", "num_workers=1") for word in command]) == 0
    assert Manifest.load(Path("shards/pets/train")).shards == manifest.shards


def test_every_option_named_on_the_page_exists():
    for option in re.findall(r"`data\.(\w+)`", TEXT):
        assert option in DataConfig.model_fields
    for option in re.findall(r"`samples\.(\w+)", TEXT):
        assert option in ShardConfig.model_fields["samples"].annotation.model_fields
    for option in ("shard_mb", "shard_samples", "shuffle", "num_workers", "split", "source", "licence"):
        assert option in TEXT and option in ShardConfig.model_fields
