"""Pods without a cluster: network namespaces on a bridge, with real applications and real sidecars in them.

The tests, the demo and the benchmark share this room, so that what is measured is what is tested.
"""
