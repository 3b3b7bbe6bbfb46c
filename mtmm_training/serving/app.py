"""The service: an ASGI application around a pipeline."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response, WebSocket
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from mtmm_training.data.files import facts_beside
from mtmm_training.serving.batches import Job, Lane, Refused
from mtmm_training.serving.bodies import BODY, read, recording_of
from mtmm_training.serving.limits import Asked, Cut, Limits
from mtmm_training.serving.numbers import Numbers
from mtmm_training.serving.streams import Streams
from pipeline_mtmm import MTMMPipeline

SLOW = {"window_s", "hop_s", "explain", "by", "channel"}  # options of requests that take longer
GONE, TOO_SLOW, UNUSABLE, BUSY, TIMED_OUT = 499, 408, 422, 503, 504
RESPONSES: Any = facts_beside(__file__, "responses.toml")


class Service:
    """A pipeline for many clients.

    Short recordings share batches in one lane. What takes longer has another, so that nobody waits
    for somebody else's hour: long recordings, windows, explanations, references of the recording.

    Args:
        pipe: The pipeline.
        limits: What it takes.
        always: Options of the pipeline's call for every request.
    """

    def __init__(self, pipe: MTMMPipeline, limits: Limits, always: Mapping[str, Any]) -> None:
        self.pipe, self.limits, self.always = pipe, limits, dict(always)
        if "transcriber" in self.always:  # one for all threads
            self.always["transcriber"] = _in_turn(self.always["transcriber"])
        self.numbers, size = Numbers(), limits.batch_size
        self.short = Lane(pipe, size, limits.wait_s, self.numbers.batches.observe)
        self.long = Lane(pipe, size, 0.0)
        self.streams = Streams(pipe, limits, self.numbers, self.always)
        self.places = asyncio.Semaphore(limits.queue)

    def close(self) -> None:
        """Answers what is waiting."""
        self.short.close()
        self.long.close()

    async def answer(self, request: Request, asked: Asked) -> dict[str, Any]:
        """The pipeline's answer to a request; HTTPException where there is none."""
        if self.places.locked():
            raise HTTPException(BUSY, "Too many requests are waiting.", {"Retry-After": "1"})
        ends = time.monotonic() + self.limits.timeout_s
        async with self.places:
            with self.numbers.taken.track_inprogress():
                try:
                    async with asyncio.timeout(self.limits.timeout_s):
                        audio, asked = await read(request, asked, self.limits)
                except TimeoutError as error:
                    raise HTTPException(TOO_SLOW, "The body did not come in time.") from error
                except ClientDisconnect as error:
                    raise HTTPException(GONE) from error
                job = await asyncio.to_thread(self._job, audio, asked)
                return await self._answered(request, job, ends - time.monotonic())

    def _job(self, audio: bytes, asked: Asked) -> Job:
        """The request in its lane."""
        given, lasts_s = recording_of(audio, asked, self.limits)
        self.numbers.seconds.inc(lasts_s)
        options = asked.options()
        made = options.get("reference") in ("domain", "speaker")
        job = Job({**given, **asked.said()}, self.always | options, alone=made)
        slow = made or asked.segments is not None or not SLOW.isdisjoint(options)
        is_long = slow or lasts_s > self.pipe.processor.longest_audio_s()
        (self.long if is_long else self.short).put(job)
        return job

    async def _answered(self, request: Request, job: Job, within_s: float) -> dict[str, Any]:
        """The answer, unless it takes too long, or nobody waits for it any more."""
        answer = asyncio.wrap_future(job.answer)
        left = asyncio.ensure_future(_left(request))
        either: set[asyncio.Future[Any]] = {answer, left}
        done, _ = await asyncio.wait(
            either, timeout=max(within_s, 0), return_when=asyncio.FIRST_COMPLETED
        )
        left.cancel()
        if answer not in done:
            answer.cancel()  # a job that has begun is finished for nobody
            if left in done:
                raise HTTPException(GONE)
            raise HTTPException(TIMED_OUT, f"No answer within {self.limits.timeout_s:g} s.")
        try:
            return answer.result()
        except Refused as error:
            raise HTTPException(UNUSABLE, str(error)) from error


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _in_turn(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, which one thread may call at a time."""
    lock = threading.Lock()

    def locked(given: Any) -> Any:
        with lock:
            return function(given)

    return locked


def make_app(
    pipe: MTMMPipeline, limits: Limits, name: str, always: Mapping[str, Any] = MappingProxyType({})
) -> FastAPI:
    """The application; its end waits for what is being answered.

    Args:
        pipe: The pipeline; its model and processor are used, not its own parameters.
        limits: What is taken.
        name: The model's, for people.
        always: Options of the pipeline's call for every request.
    """
    service = Service(pipe, limits, always)
    config = pipe.model.config

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title=f"MTMM: {name}", version="1", lifespan=lifespan)

    @app.middleware("http")
    async def measure(request: Request, call: Callable[[Request], Any]) -> Response:
        began = time.monotonic()
        response = await call(request)
        if request.url.path == "/predict":
            service.numbers.answered(response.status_code, time.monotonic() - began)
        return response

    @app.post("/predict", responses=RESPONSES, openapi_extra={"requestBody": BODY})
    async def predict(request: Request, asked: Annotated[Asked, Query()]) -> dict[str, Any]:
        """What the pipeline answers: of a recording, a transcript, or both."""
        return await service.answer(request, asked)

    @app.websocket("/stream")
    async def stream(socket: WebSocket, cut: Annotated[Cut, Query()]) -> None:
        await service.streams.run(socket, cut)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """That it runs, and which model."""
        trained = list(config.trained_outputs)
        return {"status": "ok", "model": name, "trained_outputs": trained}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.numbers.registry), media_type=CONTENT_TYPE_LATEST)

    return app
