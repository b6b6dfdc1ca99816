"""Where SVIDs come from. Each source yields core.identity.Snapshot values; nothing else knows the source."""
