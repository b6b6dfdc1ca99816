"""PURE: values, parsers and decisions. Only the standard library; no sockets, files, clock, environment, logging, asyncio.

>>> from tproxy.core.identity import SpiffeId
>>> str(SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web"))
'spiffe://cluster.local/ns/shop/sa/web'
"""
