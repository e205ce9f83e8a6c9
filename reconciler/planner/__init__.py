"""The planner: pure functions from (desired, observed, settings, now) to a plan. No I/O, clock or randomness."""
