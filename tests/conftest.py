"""Hypothesis for all tests: no deadlines, and enough examples for seconds, not minutes."""

from hypothesis import HealthCheck, settings

settings.register_profile("vmstack", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmstack")
