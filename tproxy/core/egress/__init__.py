"""Egress by rule: the section ``egressRoutes``, the choice of a router, and why."""
