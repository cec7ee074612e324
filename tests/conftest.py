"""Fixtures shared by all tests."""

import os

# With -n, tests run in one process for each core. Threads of OpenMP that wait by spinning would take the cores from each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import HealthCheck, settings

# A busy machine is no failure, and what is examined is the same each time: a landing does not meet what no run before it did.
settings.register_profile("evoke", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evoke")

pytest_plugins = [
    "tests.helpers.faults",
    "tests.helpers.recommending",
    "tests.helpers.services",
    "tests.helpers.serving",
    "tests.helpers.vllm_server",
]
