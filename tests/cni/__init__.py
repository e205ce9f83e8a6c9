"""The launcher, its frames, the words of the specification and the spool under test."""
