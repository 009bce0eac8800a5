"""Hypothesis for all tests: no deadlines, and enough examples for seconds, not minutes. And which tests are slow."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("vmstack", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmstack")

SLOW = frozenset(
    {
        "tests.cli.test_doors",
        "tests.cli.test_life",
        "tests.cli.test_recording",
        "tests.cli.test_replay",
        "tests.cli.test_state",
        "tests.daemon.test_stream_hostile",
        "tests.daemon.test_stream_tls",
        "tests.fuzz.test_fuzz",
        "tests.fuzz.test_http_description",
        "tests.globald.test_cluster",
        "tests.globald.test_link",
        "tests.globald.test_usage",
        "tests.simulation.test_simulation",
        "tests.soak.test_soak",
        "tests.test_demo",
        "tests.test_example_trace",
        "tests.test_readme",
        "tests.test_sizing",
        "tests.test_tools",
        "tests.test_workloads",
        "tests.transports.test_dbus_name",
        "tests.vmstackctl.test_capacity_command",
        "tests.vmstackctl.test_check",
        "tests.vmstackctl.test_cluster",
        "tests.vmstackctl.test_commands",
        "tests.vmstackctl.test_completion",
        "tests.vmstackctl.test_following",
        "tests.vmstackctl.test_inventory_commands",
        "tests.vmstackctl.test_inventory_file",
        "tests.vmstackctl.test_output",
        "tests.vmstackctl.test_plan",
        "tests.vmstackctl.test_plan_page",
        "tests.vmstackctl.test_plan_parallel",
        "tests.vmstackctl.test_report",
        "tests.vmstackctl.test_report_page",
        "tests.vmstackctl.test_report_pictures",
        "tests.vmstackctl.test_report_series",
    }
)
"""Modules that start many programs, draw, or wait for time to pass."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow ones, in one place where all can be seen."""
    for item in items:
        if isinstance(item, pytest.Function) and item.module.__name__ in SLOW:
            item.add_marker("slow")
