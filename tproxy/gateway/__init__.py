"""North-south traffic: Kubernetes objects in, a core.routes.Table out, connections carried by it.

Readers (``istio``, ``gatewayapi``) are pure: objects to a table and findings. ``directory`` reads files, ``gate`` and
``carry`` hold sockets. Nothing here decides where a connection goes: core.routes does.

    loaded = compile_table(*Directory(Path("conf")).read(), labels={})
    gate.take(loaded.table, loaded.material)
"""
