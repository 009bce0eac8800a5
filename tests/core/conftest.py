"""Hypothesis for tests of core: no deadlines, and enough examples for seconds, not minutes."""

from hypothesis import HealthCheck, settings

settings.register_profile("core", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("core")
