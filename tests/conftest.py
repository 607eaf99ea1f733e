"""Sets up every test: the environment of a machine without CUDA, and one thread per process."""

import os

from hypothesis import settings

from pipelines.launch.ranks import prepare_environment

prepare_environment(os.environ, num_local_ranks=os.cpu_count() or 1)
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No deadline: other processes may slow an example down. The examples are the same in every run, so that a failure is
# due to the commit; `pytest --hypothesis-profile=search` tries new ones.
settings.register_profile("search", deadline=None)
settings.register_profile("same examples", deadline=None, derandomize=True)
settings.load_profile("same examples")
