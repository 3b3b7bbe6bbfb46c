"""Streams over WebSocket: raw samples in, windows out while they come."""

import asyncio
import logging
import queue
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from mtmm_training.serving.batches import twin
from mtmm_training.serving.limits import Cut, Limits
from mtmm_training.serving.numbers import Numbers
from pipeline_mtmm import MTMMPipeline

logger = logging.getLogger("mtmm.serve")
GOOD, UNUSABLE, TOO_SLOW, FAULT, BUSY = 1000, 1007, 1008, 1011, 1013  # WebSocket's close codes
WAITING = 32  # messages that are read ahead of the model; then the client is not read


class Streams:
    """All streams of a service.

    Args:
        pipe, limits, numbers, always: The service's.
    """

    def __init__(
        self, pipe: MTMMPipeline, limits: Limits, numbers: Numbers, always: Mapping[str, Any]
    ) -> None:
        self.pipe, self.limits, self.numbers = twin(pipe), limits, numbers
        self.always = always
        self.open = 0

    async def run(self, socket: WebSocket, cut: Cut) -> None:
        """One stream: messages of 16-bit little-endian mono samples, an empty one at the end."""
        await socket.accept()
        if self.open >= self.limits.streams:
            await socket.close(BUSY, "too many streams are open")
            return
        self.open += 1
        self.numbers.streams.set(self.open)
        try:
            code, reason = await self._windows(socket, cut)
            await socket.close(code, reason[:120])
        except (WebSocketDisconnect, RuntimeError):  # starlette's, of a socket that was closed
            pass
        finally:
            self.open -= 1
            self.numbers.streams.set(self.open)

    async def _windows(self, socket: WebSocket, cut: Cut) -> tuple[int, str]:
        """Sends every window; how the stream ended."""
        if cut.sampling_rate is None:
            return UNUSABLE, "give sampling_rate, Hz"
        chunks: queue.Queue[np.ndarray | None] = queue.Queue(WAITING)
        heard = asyncio.ensure_future(self._hear(socket, chunks))
        samples: Iterator[np.ndarray] = iter(chunks.get, None)
        try:
            windows = self.pipe.stream(samples, cut.sampling_rate, **self.always | cut.options())
            while (window := await asyncio.to_thread(next, windows, None)) is not None:
                await socket.send_json(window)
            return await heard
        except (ValueError, TypeError) as error:
            return UNUSABLE, str(error)
        except WebSocketDisconnect:
            raise
        except Exception:
            logger.exception("a stream failed")
            return FAULT, "the service failed"
        finally:
            heard.cancel()

    async def _hear(self, socket: WebSocket, chunks: Any) -> tuple[int, str]:
        """Puts what comes where the model reads it; None behind the last."""
        try:
            while True:
                async with asyncio.timeout(self.limits.timeout_s):
                    message = await socket.receive_bytes()
                if not message:
                    return GOOD, ""
                await asyncio.to_thread(chunks.put, np.frombuffer(message, "<i2"))
        except TimeoutError:
            return TOO_SLOW, f"nothing came for {self.limits.timeout_s:g} s"
        except (KeyError, ValueError):  # text, or half a sample
            return UNUSABLE, "send binary messages of 16-bit samples, an empty one at the end"
        finally:
            await asyncio.to_thread(chunks.put, None)
