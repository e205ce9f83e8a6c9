"""The providers: thin hands with observe() and apply(); none knows another, and none knows the ledger."""
