"""Streams over WebSocket: raw samples in, windows out while they come."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from mtmm_training.serving.batches import twin
from mtmm_training.serving.limits import Cut, Limits
from mtmm_training.serving.numbers import Numbers
from pipeline_mtmm import MTMMPipeline

logger = logging.getLogger("mtmm.serve")
GOOD, UNUSABLE, TOO_SLOW, FAULT, BUSY = 1000, 1007, 1008, 1011, 1013  # WebSocket's close codes


class Streams:
    """All streams of a service.

    Args:
        pipe, limits, numbers, always: The service's.
    """

    def __init__(
        self, pipe: MTMMPipeline, limits: Limits, numbers: Numbers, always: dict[str, Any]
    ) -> None:
        self.pipe, self.limits, self.numbers = twin(pipe), limits, numbers
        self.always = always
        self.places = asyncio.Semaphore(limits.streams)

    async def run(self, socket: WebSocket, cut: Cut) -> None:
        """One stream: messages of 16-bit little-endian mono samples, an empty one at the end."""
        await socket.accept()
        if self.places.locked():
            await socket.close(BUSY, "too many streams are open")
            return
        async with self.places:
            # starlette's errors, of a socket that was closed
            with (
                self.numbers.streams.track_inprogress(),
                suppress(WebSocketDisconnect, RuntimeError),
            ):
                code, reason = await self._windows(socket, cut)
                await socket.close(code, reason[:120])

    async def _windows(self, socket: WebSocket, cut: Cut) -> tuple[int, str]:
        """Sends every window; how the stream ended."""
        if cut.sampling_rate is None:
            return UNUSABLE, "give sampling_rate, Hz"
        samples = self._samples(socket, asyncio.get_running_loop())
        try:
            windows = self.pipe.stream(samples, cut.sampling_rate, **self.always | cut.options())
            while (window := await asyncio.to_thread(next, windows, None)) is not None:
                await socket.send_json(window)
            return GOOD, ""
        except TimeoutError:
            return TOO_SLOW, f"nothing came for {self.limits.timeout_s:g} s"
        except (ValueError, TypeError) as error:
            return UNUSABLE, str(error)
        except (WebSocketDisconnect, RuntimeError):
            raise
        except Exception:
            logger.exception("a stream failed")
            return FAULT, "the service failed"

    def _samples(self, socket: WebSocket, loop: asyncio.AbstractEventLoop) -> Iterator[np.ndarray]:
        """What the model's thread hears: it asks for a message when it has used the last."""
        while True:
            asked = asyncio.run_coroutine_threadsafe(self._message(socket), loop)
            if not (message := asked.result()):
                return
            yield np.frombuffer(message, "<i2")  # refuses half a sample

    async def _message(self, socket: WebSocket) -> bytes:
        async with asyncio.timeout(self.limits.timeout_s):
            try:
                return await socket.receive_bytes()
            except KeyError as error:
                said = "send binary messages of samples, an empty one at the end"
                raise ValueError(said) from error
