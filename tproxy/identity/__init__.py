"""Where SVIDs come from. Each source yields immutable snapshots (core.identity.Snapshot); nothing else knows the source."""
