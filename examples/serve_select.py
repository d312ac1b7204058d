"""A proxy that chooses frames: before any server of OpenAI's kind, to which a chat request with a
video goes on as one with the frames that were chosen of it.

    pip install '.[serve]'
    python examples/serve_select.py --upstream http://127.0.0.1:8000        # such as vllm serve
    curl http://127.0.0.1:8080/health

Everything else goes through as it comes, streamed answers too. Its own errors have OpenAI's form.
Videos come as data: addresses; from a folder, or from hosts, that are named here, where any are.
It has no passwords and no TLS of its own: leave it on this machine, or behind what has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import uvicorn
from chosen_for_requests import Choosing, Refused, origin_of, videos_of, with_frames
from places import Places
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from bvllm_adapters.checks import check_count, check_number
from bvllm_adapters.cli.options import add_placement
from bvllm_adapters.cli.placement import placement
from bvllm_adapters.cli.selecting import add_selector, asked_selector

LOG = logging.getLogger("uvicorn.error")
T = TypeVar("T")
CHAT = "/chat/completions"
# Of one connection, or of its body as it came: a body is sent anew.
OWN = {
    b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-authenticate",
    b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
    b"upgrade",
}  # fmt: skip
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Limits:
    """What one proxy takes on.

    Args:
        body: bytes of a chat request. bodies: of all that are held at a time.
        places: videos that are chosen from at a time. queue: requests that wait for a place.
        upload, select, upstream: seconds; for a request to come, for its frames to be chosen
            (waiting included), for the server behind to say something.
    """

    body: int = 2**27
    bodies: int = 2**29
    places: int = 2
    queue: int = 8
    upload: float = 60.0
    select: float = 120.0
    upstream: float = 600.0

    def __post_init__(self) -> None:
        for name in ("body", "bodies", "places"):
            check_count(name, getattr(self, name))
        check_count("queue", self.queue, least=0)
        for name in ("upload", "select", "upstream"):
            check_number(name, getattr(self, name), above=0)


class Passed(StreamingResponse):
    """An answer of the server behind as it comes. Where it breaks off, this one does: an answer
    that is cut must not look whole."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(answer.aiter_raw(), answer.status_code)
        self.answer = answer
        self.raw_headers = kept(answer.headers.raw, also=OWN - {b"content-length"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.answer.aclose()

    async def stream_response(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        try:
            async for chunk in self.body_iterator:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx2.HTTPError as error:
            if is_stream(self.answer) and "content-encoding" not in self.answer.headers:
                event = f"\n\ndata: {json.dumps(failed(error).body)}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": True})
            return  # without an end, so that the connection is cut
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Proxy:
    """What answers everything but /health."""

    def __init__(self, upstream: str, how: Choosing, limits: Limits) -> None:
        self.upstream, self.how, self.limits = httpx2.URL(upstream), how, limits
        self.places = Places(limits.places, limits.queue, limits.select)
        self.held = 0  # bytes of bodies
        self.client = httpx2.AsyncClient(
            trust_env=False,  # it goes where it was told, and nowhere else
            follow_redirects=False,
            timeout=httpx2.Timeout(limits.upstream, connect=min(10.0, limits.upstream), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )
        self.client.headers.clear()
        # Nor does it give one client's cookies to the next.
        self.client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            is_chat = request.method == "POST" and scope["path"].endswith(CHAT)
            response = await (self.chat if is_chat else self.other)(request)
        except Refused as error:
            response = refusal(error)
        except ClientDisconnect:
            return
        except Exception as error:
            LOG.exception("%s %s", scope["method"], scope["path"])
            message = f"{type(error).__name__} in the proxy, see its log"
            response = refusal(Refused(500, "unexpected", message))
        await response(scope, receive, send)

    async def chat(self, request: Request) -> Response:
        async with self.body(request) as body:
            asked, videos = self.asked(request, body)
            if videos:
                chosen = self.places.run(lambda stop: with_frames(asked, videos, self.how, stop))
                body = json.dumps(await unless_gone(request, chosen)).encode()
            answer = await unless_gone(request, self.send(request, body))
            if is_stream(answer):
                return Passed(answer)
            try:  # whole, so that what breaks off becomes an error
                whole = unless_gone(request, self.whole(answer))
                response = Response(await whole, answer.status_code)
            except httpx2.HTTPError as error:
                raise failed(error) from error
            response.raw_headers = kept(answer.headers.raw, also=OWN - {b"content-length"})
            if "content-length" not in answer.headers:
                response.raw_headers.append((b"content-length", b"%d" % len(response.body)))
            return response

    async def other(self, request: Request) -> Response:
        sent = asyncio.Event()

        async def content() -> AsyncIterator[bytes]:
            async for chunk in request.stream():
                yield chunk
            sent.set()

        if {"content-length", "transfer-encoding"} & set(request.headers):
            return Passed(await unless_gone(request, self.send(request, content()), sent))
        return Passed(await unless_gone(request, self.send(request, None)))

    def asked(self, request: Request, body: bytes) -> tuple[Any, list[Any]]:
        """What a chat request says, and how to read its videos."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        packed = request.headers.get("content-encoding", "identity").lower()
        if kind != "application/json" or packed != "identity":
            message = f"body: got {kind or 'no type'!r}, {packed}; wanted application/json as it is"
            raise Refused(415, "no_json", message)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            message = f"body: it is no JSON ({str(error)[:200]})"
            raise Refused(400, "no_json", message) from error
        return asked, videos_of(asked, self.how)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Of a request, held within the limits."""
        found = bytearray()
        try:
            try:
                await asyncio.wait_for(self._read(request, found), self.limits.upload)
            except asyncio.TimeoutError as error:
                message = f"body: it took more than {self.limits.upload:g} s to come"
                raise Refused(408, "upload_timeout", message) from error
            yield bytes(found)
        finally:
            self.held -= len(found)

    async def _read(self, request: Request, found: bytearray) -> None:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > 2 * self.limits.body:
                break
            if size > self.limits.body:
                continue  # who is cut off does not hear why
            if self.held + len(chunk) > self.limits.bodies:
                raise Refused(429, "busy", "got too many large requests at a time, try again later")
            found += chunk
            self.held += len(chunk)
        if size > self.limits.body:
            message = f"body: got more than {self.limits.body} bytes"
            raise Refused(413, "body_too_large", message)

    async def send(self, request: Request, content: Any) -> httpx2.Response:
        """The beginning of the answer of the server behind."""
        path, query = request.scope["raw_path"], request.scope["query_string"]
        prefix = self.upstream.raw_path.rstrip(b"/")
        headers = kept(request.scope["headers"], also=OWN)
        if not isinstance(content, bytes) and "content-length" in request.headers:
            headers.append((b"content-length", request.headers["content-length"].encode()))
        try:
            url = self.upstream.copy_with(raw_path=prefix + path + (query and b"?" + query))
        except httpx2.InvalidURL as error:  # such as one that does not begin with /
            raise Refused(400, "wrong_path", f"path: {error}") from error
        sent = self.client.build_request(request.method, url, headers=headers, content=content)
        try:
            return await self.client.send(sent, stream=True)
        except httpx2.HTTPError as error:
            raise failed(error) from error

    async def whole(self, answer: httpx2.Response) -> bytes:
        try:
            return b"".join([chunk async for chunk in answer.aiter_raw()])
        finally:
            await answer.aclose()

    async def health(self, request: Request) -> Response:
        selecting = min(self.places.taken, self.places.places)
        waiting = self.places.taken - selecting
        return JSONResponse({"status": "ok", "selecting": selecting, "waiting": waiting})

    async def close(self) -> None:
        self.places.close()
        await self.client.aclose()


async def unless_gone(request: Request, work: Awaitable[T], read: asyncio.Event | None = None) -> T:
    """Its result; it is cancelled when the client goes.

    Args:
        read: set once all of the request has been; None: it has.

    Raises:
        ClientDisconnect: it has gone.
    """

    async def gone() -> None:
        if read is not None:
            await read.wait()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = working, asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def kept(headers: Headers, *, also: set[bytes]) -> Headers:
    """Those that go on to the other side: all but `also`, and what their Connection names."""
    named = b",".join(value for name, value in headers if name.lower() == b"connection")
    left = also | {name.strip().lower() for name in named.split(b",")}
    return [(name.lower(), value) for name, value in headers if name.lower() not in left]


def is_stream(answer: httpx2.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("text/event-stream")


def failed(error: httpx2.HTTPError) -> Refused:
    """The server behind did not answer, or not to the end."""
    why = str(error) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        return Refused(504, "upstream_timeout", f"the server behind this proxy is slow ({why})")
    return Refused(502, "upstream_failed", f"the server behind this proxy fails ({why})")


def refusal(error: Refused) -> Response:
    again = {"retry-after": "1"} if error.status == 429 else None
    return JSONResponse(error.body, error.status, headers=again)


def make_app(upstream: str, how: Choosing | None = None, limits: Limits | None = None) -> ASGIApp:
    """The proxy as an ASGI application.

    Args:
        upstream: address of the server behind, without the path that clients ask for.
    """
    proxy = Proxy(upstream, how or Choosing(), limits or Limits())

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await proxy.close()

    return Router([Route("/health", proxy.health)], default=proxy, lifespan=lifespan)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="choose frames before any server of OpenAI's kind")
    parser.add_argument("--upstream", required=True, help="its address, without /v1")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="(8080)")
    parser.add_argument("--frames", type=int, default=32, help="of each video (32)")
    parser.add_argument("--fps", type=float, default=1.0, help="frames looked at per second (1)")
    parser.add_argument("--size", type=int, default=512, help="longest edge in pixels (512)")
    add_selector(parser)
    add_placement(parser)
    parser.add_argument("--files", type=Path, help="folder of videos that file: addresses may name")
    parser.add_argument(
        "--fetch-from", action="append", default=[], metavar="https://HOST",
        help="fetch videos from there; may be given more than once",
    )  # fmt: skip
    limit = parser.add_argument_group("limits")
    limit.add_argument("--max-seconds", type=float, default=3600.0, help="of a video (3600)")
    limit.add_argument("--max-videos", type=int, default=4, help="of a request (4)")
    limit.add_argument("--max-body", type=int, default=2**27, help="bytes of a request (2^27)")
    limit.add_argument("--max-bodies", type=int, default=2**29, help="of all together (2^29)")
    limit.add_argument("--places", type=int, default=2, help="chosen from at a time (2)")
    limit.add_argument("--queue", type=int, default=8, help="that wait for a place (8)")
    limit.add_argument("--upload-seconds", type=float, default=60.0, help="(60)")
    limit.add_argument("--select-seconds", type=float, default=120.0, help="with waiting (120)")
    limit.add_argument("--upstream-seconds", type=float, default=600.0, help="(600)")
    limit.add_argument("--end-seconds", type=int, default=30, help="to end what is begun in (30)")
    return parser


def main() -> None:
    options = arguments().parse_args()
    upstream, allowed = origin_of(options.upstream), [origin_of(one) for one in options.fetch_from]
    if upstream is None or None in allowed:
        raise SystemExit("--upstream, --fetch-from: wanted http://HOST:PORT or https://HOST")
    if options.files is not None and not options.files.is_dir():
        raise SystemExit(f"--files: got {options.files}, wanted a folder")
    selector = asked_selector(options.selector, options.scout, *placement(options))
    how = Choosing(
        selector=selector,
        frames=options.frames, fps=options.fps, size=options.size,
        max_seconds=options.max_seconds, max_videos=options.max_videos, max_bytes=options.max_body,
        files=options.files, fetch_from=[one for one in allowed if one is not None],
    )  # fmt: skip
    limits = Limits(
        options.max_body, options.max_bodies, options.places, options.queue,
        options.upload_seconds, options.select_seconds, options.upstream_seconds,
    )  # fmt: skip
    uvicorn.run(
        make_app(options.upstream, how, limits), host=options.host, port=options.port, ws="none",
        server_header=False, date_header=False, timeout_graceful_shutdown=options.end_seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
