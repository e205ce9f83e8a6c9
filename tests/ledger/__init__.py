"""Tests of the ledger: real SQLite files, no stand-ins."""
