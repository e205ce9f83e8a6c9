"""The house itself under test: its floors, its documents, its build."""
