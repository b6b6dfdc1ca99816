"""tproxy: transparent mutual TLS for pods, by a sidecar that fails closed and explains itself.

Rooms: ``cli`` reads arguments and wires; ``proxy`` carries connections; ``identity``, ``control`` and ``admin``
stand beside it; ``kernel`` talks to Linux; ``core`` decides and touches nothing. Imports go that way only.
"""

from tproxy import native  # before anything that it finds

__version__ = "0.1.0"
__all__ = ["__version__", "native"]
