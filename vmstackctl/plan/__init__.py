"""``vmstackctl plan``: how many servers a workload needs."""
