"""Gateway API's conformance suite, replayed without a cluster: its manifests, what its tests are known to expect.

The manifests (v1.6.1) are read at test time from ``TPROXY_GATEWAY_API`` (by default ``../shared/gateway-api`` beside
the repository); without them every test is skipped, and says so. The suite itself is Go and needs a cluster; what is
here is written anew from what its tests do in public. ``python -m tests.conformance`` writes ``build/conformance.md``.
"""
