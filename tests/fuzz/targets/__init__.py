"""What is fuzzed: by kind, how a valid input is written, which of its files are mutated, and how it is read.

    Target.write(folder) -> valid files -> one of them mutated -> Target.read(folder) -> a result, or a UforkError

A reader may skip entries if it counts them, and refuse a file with a UforkError. Whatever else it raises is a fault,
also the assertions below. Where a checksum or another file says what the content was, a result must be the same as
unmutated.
"""

from tests.fuzz.targets.checkpoints import CHECKPOINTS
from tests.fuzz.targets.inputs import INPUTS
from tests.fuzz.targets.models import MODELS
from tests.fuzz.targets.requests import REQUESTS
from tests.fuzz.targets.runs import RUNS
from tests.fuzz.targets.shards import SHARDS
from tests.fuzz.targets.target import Target

TARGETS: dict[str, Target] = {**SHARDS, **CHECKPOINTS, **MODELS, **RUNS, **REQUESTS, **INPUTS}
