"""Fixtures shared by all tests."""

pytest_plugins = ["tests.faults", "tests.recommending", "tests.services", "tests.serving", "tests.vllm_server"]
