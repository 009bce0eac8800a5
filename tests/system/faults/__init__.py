"""Real VMs on real hosts of a real cluster, while all that they stand on fails: ``make faults``."""
