"""What every test gets: the environment of a machine without CUDA, and one thread a process."""

import os

from hypothesis import settings

from pipelines.launch import prepare_environment

prepare_environment(os.environ, num_local_ranks=os.cpu_count() or 1)
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("shared machine", deadline=None)  # an example may wait for others' work
settings.load_profile("shared machine")
