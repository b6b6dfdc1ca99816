"""A gRPC server that does nothing but say that it is well (grpc.health.v1): what a gRPC probe asks.

python -m tproxy.world.health --port 9000
"""

from __future__ import annotations

import argparse
import signal
from concurrent import futures

import grpc

SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}


def serve(port: int) -> grpc.Server:
    """It listens when this returns."""
    check: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: SERVING)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),))
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    return server


def main() -> None:
    """Until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    server = serve(parser.parse_args().port)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
