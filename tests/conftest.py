"""Hypothesis profiles: `desk` is quick, `ci` repeats itself exactly; chosen by the CI variable."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

# The first call of a model builds it and imports half of torch: no deadline can hold for it.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("desk", deadline=None, max_examples=25, suppress_health_check=SLOW)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=60,
    derandomize=True,
    print_blob=True,
    suppress_health_check=SLOW,
)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# Tiny models: threads cost more than they bring.
torch.set_num_threads(1)

# Several folders have a conftest.py, which looking for doctests would import under one name.
collect_ignore_glob = ["**/conftest.py"]
