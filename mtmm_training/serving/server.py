"""The application on a port, until a signal ends it."""

import logging
import socket
from collections.abc import Mapping
from typing import Any

import uvicorn

from mtmm_training.serving.app import make_app
from mtmm_training.serving.limits import Limits
from mtmm_training.training.ending import tell
from pipeline_mtmm import MTMMPipeline

MESSAGE_BYTES = 2**20  # of a stream: more than a minute at 8 kHz


class Server(uvicorn.Server):
    """Says where it listens, when it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            tell(f"listening on http://{host}:{port}, see /docs")


def serve(
    pipe: MTMMPipeline, limits: Limits, name: str, host: str, port: int, always: Mapping[str, Any]
) -> None:
    """Serves until SIGTERM or SIGINT; then what was asked is answered, and this returns.

    Args:
        pipe, limits, name, always: As of `make_app`.
        host, port: Where to listen; port 0 is any that is free.
    """
    config = uvicorn.Config(
        make_app(pipe, limits, name, always), host, port, log_level="warning", access_log=False,
        ws="websockets-sansio", ws_max_size=MESSAGE_BYTES,
        timeout_graceful_shutdown=round(2 * limits.timeout_s) + 1,
    )  # fmt: skip
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every bad form
    server = Server(config)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=config.backlog)
    except OSError as error:
        raise OSError(f"{host}, port {port}, cannot be used ({error.strerror}).") from error
    try:
        server.run([listener])
    except (SystemExit, KeyboardInterrupt):  # of the signal, which uvicorn sends again at its end
        if not server.started:
            raise
