"""PLUMBING: every call into Linux, each wrapper as thin as its man page. Imports core only; no asyncio, no ssl."""
