"""What every test runs under: one thread a process, no network, no time limit on a single example."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: spinning threads of several ranks
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from hypothesis import settings

settings.register_profile("cambium", deadline=None)
settings.load_profile("cambium")
