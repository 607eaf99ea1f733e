"""What every test gets: the environment of a machine without CUDA, and one thread a process."""

import os

from hypothesis import settings

from pipelines.launch.ranks import prepare_environment

prepare_environment(os.environ, num_local_ranks=os.cpu_count() or 1)
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# An example may wait for others' work. A run of the suite judges the commit, not the luck of its examples: new ones are
# looked for by `pytest --hypothesis-profile=search`.
settings.register_profile("search", deadline=None)
settings.register_profile("same examples", deadline=None, derandomize=True)
settings.load_profile("same examples")
