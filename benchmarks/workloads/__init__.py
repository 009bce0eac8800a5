"""Workloads for sizing clusters: weeks as CloudFactory draws them, and variants of any. All follow from seeds."""
