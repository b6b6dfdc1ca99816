"""Asking the Kubernetes API server: one connection's questions, and collections that are followed for ever.

What the objects mean is for others to say; nothing here keeps them.

    watch = Watch(where, "/api/v1/pods", put)
    await watch.run()
"""
