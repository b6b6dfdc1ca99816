"""RUNTIME: asyncio; in the order of the sentence accept -> original destination -> decide -> TLS -> relay -> record."""
