"""Tests of the planner: pure functions, no namespaces, no lab."""
