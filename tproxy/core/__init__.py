"""PURE: values, parsers and decisions. Standard library only; no sockets, files, clock, environment, logging, asyncio.

>>> from tproxy.core.identity import SpiffeId
>>> str(SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web"))
'spiffe://cluster.local/ns/shop/sa/web'
"""
