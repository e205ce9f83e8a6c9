"""The reconciler: observe, plan, apply, record. The ledger's SQL and the CNI wire do not belong here."""
