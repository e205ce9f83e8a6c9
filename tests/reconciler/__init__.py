"""The reconciler under test: server, verbs, loop, recovery, daemon."""
