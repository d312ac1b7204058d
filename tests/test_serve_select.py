"""examples/serve_select.py before a stub of a server of OpenAI's kind."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from media import numbers, picture, write_video
from PIL import Image

httpx2 = pytest.importorskip("httpx2", reason="the extra 'serve' is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

import bvllm_adapters as bvllm  # noqa: E402
from bvllm_adapters.selectors.coverage import CoverageSelector  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
CHAT = "/v1/chat/completions"
QUESTION = "What happens?"
PATIENCE = 20  # seconds that a test waits before it fails; none takes long


@pytest.fixture(autouse=True)
def serve_select(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import serve_select

    return serve_select


@contextlib.contextmanager
def running(app, **settings):
    """An application in a thread; gives its address."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", ws="none", **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


class Upstream:
    """A server behind; what it does is the model that is asked for."""

    def __init__(self):
        self.got, self.gone = [], threading.Event()
        self.gate = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for answer in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{answer}.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.got.append({"path": scope["raw_path"], "query": scope["query_string"], "body": body,
                         "method": scope["method"], "headers": scope["headers"]})  # fmt: skip
        asked = json.loads(body) if scope["path"] == CHAT else {}
        kind = asked.get("model", scope["path"].rpartition("/")[2])
        await getattr(self, kind, self.echo)(body, receive, send)

    async def start(self, send, status=200, **headers):
        pairs = [(name.replace("_", "-").encode(), str(value).encode())
                 for name, value in headers.items()]  # fmt: skip
        await send({"type": "http.response.start", "status": status, "headers": pairs})

    async def say(self, send, body, more=True):
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def echo(self, body, receive, send):
        await self.start(send, content_type="application/json", content_length=len(body), x_own=1)
        await self.say(send, body, more=False)

    async def lost(self, body, receive, send):
        await self.start(send, 418, content_type="text/plain", x_own="yes")
        await self.say(send, b"a teapot", more=False)

    async def packed(self, body, receive, send):
        await self.start(send, content_encoding="gzip", content_type="text/plain")
        await self.say(send, gzip.compress(b"words"), more=False)

    async def baked(self, body, receive, send):
        await self.start(send, set_cookie="mine=1; Path=/")
        await self.say(send, b"", more=False)

    async def moved(self, body, receive, send):
        await self.start(send, 302, location="/clip.mp4")
        await self.say(send, b"", more=False)

    async def stream(self, body, receive, send):
        await self.start(send, content_type="text/event-stream; charset=utf-8")
        await self.say(send, b'data: {"n": 1}\n\n')
        import asyncio

        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        await self.say(send, b'data: {"n": 2}\n\ndata: [DONE]\n\n', more=False)

    async def torn(self, body, receive, send):
        await self.start(send, content_type="application/json", content_length=100)
        await self.say(send, b'{"half":')

    async def torn_stream(self, body, receive, send):
        await self.start(send, content_type="text/event-stream")
        await self.say(send, b'data: {"n": 1}\n\n')

    async def endless(self, body, receive, send):
        await self.start(send, content_type="text/event-stream")
        await self.say(send, b'data: {"n": 1}\n\n')
        await self.silent(body, receive, send)

    async def silent(self, body, receive, send):
        await receive()  # until whoever asked has gone
        self.gone.set()


@pytest.fixture(scope="module")
def behind():
    stub = Upstream()
    with running(stub, log_level="critical") as address:
        yield stub, address


@pytest.fixture
def upstream(behind):
    stub, stub.address = behind
    stub.got.clear()
    stub.gate.clear()
    stub.gone.clear()
    return stub


@pytest.fixture
def proxied(serve_select, upstream):
    """Starts proxies: proxied(**choosing, limits={...}) is a client of one."""
    with contextlib.ExitStack() as open_ones:

        def start(address=upstream.address, limits=None, **how):
            how = serve_select.Choosing(**{"frames": 2, "selector": "uniform", **how})
            app = serve_select.make_app(address, how, serve_select.Limits(**(limits or {})))
            base = open_ones.enter_context(running(app, log_level="critical"))
            client = httpx2.Client(base_url=base, timeout=PATIENCE, trust_env=False)
            return open_ones.enter_context(client)

        yield start


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")  # 4 seconds of 10 frames


def data(video):
    return f"data:video/mp4;base64,{base64.b64encode(video).decode()}"


def asking(url, model="echo", **more):
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def error_of(answer):
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, error["code"]


# What has no video goes through as it comes.


def test_what_has_no_video_goes_through_untouched(upstream, proxied):
    client = proxied()
    body = b'{"model":"echo",  "messages":[ {"role":"user","content":"h\\u00e9"}], "n": 1e0}'
    headers = {"content-type": "application/json; charset=utf-8", "authorization": "Bearer k",
               "connection": "x-hop", "x-hop": "1", "x-mine": "a, b"}  # fmt: skip
    answer = client.post(CHAT, content=body, headers=headers)
    assert (answer.status_code, answer.content, answer.headers["x-own"]) == (200, body, "1")
    (got,) = upstream.got
    names = [name for name, _ in got["headers"]]
    told = dict(got["headers"])
    assert told[b"authorization"] == b"Bearer k" and told[b"x-mine"] == b"a, b"
    assert b"x-hop" not in told and len(names) == len(told)
    assert told[b"host"] == upstream.address.removeprefix("http://").encode()
    assert got["body"] == body and told[b"content-length"] == str(len(body)).encode()


def test_other_paths_methods_and_answers_go_through(upstream, proxied):
    client = proxied()
    assert client.get("/v1/a%2Fb?x=1%202&x=%C3%A9").status_code == 200
    assert (
        upstream.got[-1]["path"] == b"/v1/a%2Fb"
        and upstream.got[-1]["query"] == b"x=1%202&x=%C3%A9"
    )
    pieces = (b"piece" * 1000 for _ in range(100))
    answer = client.put("/v1/files", content=pieces, headers={"x-mine": "1"})
    assert answer.content == upstream.got[-1]["body"] == b"piece" * 100_000
    assert upstream.got[-1]["method"] == "PUT"
    lost = client.delete("/v1/lost")
    assert (lost.status_code, lost.text, lost.headers["x-own"]) == (418, "a teapot", "yes")
    assert client.head("/v1/x").status_code == 200
    packed = client.get("/v1/packed")
    assert packed.text == "words" and packed.headers["content-encoding"] == "gzip"
    moved = client.get("/v1/moved")
    assert moved.status_code == 302 and moved.headers["location"] == "/clip.mp4"
    assert client.post("/", content=b"{}").content == b"{}"
    assert client.get("/health").json() == {"status": "ok", "selecting": 0, "waiting": 0}


def test_what_one_client_is_given_goes_to_no_other(upstream, proxied):
    client = proxied()
    assert client.get("/v1/baked").headers["set-cookie"] == "mine=1; Path=/"
    client.cookies.clear()
    client.get("/v1/models")
    assert b"cookie" not in dict(upstream.got[-1]["headers"])


def test_streams_go_through_as_they_come(upstream, proxied):
    client = proxied()
    request = {"model": "stream", "messages": [], "stream": True}
    with client.stream("POST", CHAT, json=request) as answer:
        lines = answer.iter_lines()
        assert next(lines) == 'data: {"n": 1}'  # the second is not written before this is read
        upstream.gate.set()
        assert [line for line in lines if line] == ['data: {"n": 2}', "data: [DONE]"]


def test_nothing_but_the_server_behind_can_be_asked(upstream, proxied):
    """By a line of a request that no client would write."""
    client = proxied()
    host = client.base_url.host, client.base_url.port
    for target in ("@127.0.0.1:1/x", "http://127.0.0.1:1/x"):
        with socket.create_connection(host) as raw:
            raw.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert raw.makefile("rb").readline().split()[1] == b"400"
    assert not upstream.got


# What has one.


def shown(content):
    """(texts of times, numbers that the pictures show) of what stands for a video."""
    times, images = content[::2], content[1::2]
    files = [one["image_url"]["url"].removeprefix("data:image/jpeg;base64,") for one in images]
    opened = [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]
    return [time["text"] for time in times], numbers(np.stack(opened))


@pytest.mark.parametrize("frames", [1, 2, 3, 100])
def test_a_video_becomes_the_frames_that_are_chosen(clip, upstream, proxied, frames):
    request = asking(data(clip.read_bytes()), temperature=0.5)
    answer = proxied(frames=frames).post(CHAT, json=request)
    assert answer.status_code == 200
    got = json.loads(upstream.got[0]["body"])
    assert got == answer.json() and {**got, "messages": None} == {**request, "messages": None}
    first, *found, last = got["messages"][0]["content"]
    assert [first, last] == [request["messages"][0]["content"][i] for i in (0, 2)]
    chosen = bvllm.select_frames(clip, num_frames=frames, selector="uniform")
    assert shown(found) == (
        [f"{second:.1f} seconds:" for second in chosen.seconds], numbers(chosen.frames)
    )  # fmt: skip


def test_videos_of_every_kind_in_every_message(clip, upstream, proxied, tmp_path):
    write_video(tmp_path / "a b.mp4", frames=20)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link.mp4").symlink_to(tmp_path / "a b.mp4")
    client = proxied(files=tmp_path, fetch_from=[upstream.address])
    moving = io.BytesIO()
    pictures = [Image.fromarray(picture(i)) for i in (3, 9)]
    pictures[0].save(moving, "GIF", save_all=True, append_images=pictures[1:], duration=1000)
    urls = [f"file://{tmp_path}/a%20b.mp4", "file:inner/link.mp4",
            f"data:image/gif;base64,{base64.b64encode(moving.getvalue()).decode()}"]  # fmt: skip
    request = asking(urls[0])
    request["messages"] += [{"role": "assistant", "content": "Yes."}, *asking(urls[1])["messages"],
                            *asking(urls[2])["messages"]]  # fmt: skip
    assert client.post(CHAT, json=request).status_code == 200
    turns = json.loads(upstream.got[-1]["body"])["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "user"]
    for turn, second in ((turns[0], [0, 10]), (turns[2], [0, 10]), (turns[3], [3, 9])):
        assert shown(turn["content"][1:-1]) == (["0.0 seconds:", "1.0 seconds:"], second)


def test_a_video_is_fetched_from_where_it_may_be(clip, upstream, proxied, monkeypatch):
    async def film(self, body, receive, send):
        await self.start(send, content_type="video/mp4")
        await self.say(send, clip.read_bytes(), more=False)

    monkeypatch.setattr(Upstream, "film", film, raising=False)
    client = proxied(fetch_from=[upstream.address], max_bytes=clip.stat().st_size)
    assert client.post(CHAT, json=asking(f"{upstream.address}/film")).status_code == 200
    assert [got["path"] for got in upstream.got] == [b"/film", CHAT.encode()]
    assert shown(json.loads(upstream.got[1]["body"])["messages"][0]["content"][1:-1])[1] == [10, 30]
    upstream.got.clear()
    for path, code in (("/v1/moved", "video_not_fetched"), ("/v1/lost", "video_not_fetched")):
        answer = client.post(CHAT, json=asking(upstream.address + path))
        assert error_of(answer) == (422, code)
    assert len(upstream.got) == 2  # no redirect was followed
    small = proxied(fetch_from=[upstream.address], max_bytes=1000)
    answer = small.post(CHAT, json=asking(f"{upstream.address}/film"))
    assert error_of(answer) == (413, "video_too_large")


def test_the_question_is_the_users_last(serve_select):
    from chosen_for_requests import question_of

    assert question_of(asking("data:")) == f"Look:\n{QUESTION}"
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}, 3]
    assert question_of({"messages": turns}) == "One?"
    assert question_of({"messages": turns[1:]}) == ""
    assert question_of({"messages": [{"role": "user", "content": None}]}) == ""


# What is refused.


def refused_requests(clip):
    good = data(clip)
    part = {"type": "video_url"}
    return {
        "no JSON": (b"{", 400, "no_json"),
        "no Unicode": (b'{"a": "\xff"}', 400, "no_json"),
        "too deep": (b"[" * 100_000, 400, "no_json"),
        "no object": (b"[]", 400, "not_a_chat"),
        "no messages": (b'{"messages": {}}', 400, "not_a_chat"),
        "no url": ({"messages": [{"content": [part]}]}, 400, "wrong_type"),
        "a list": ({"messages": [{"content": [{**part, "video_url": []}]}]}, 400, "wrong_type"),
        "a number": (asking(5), 400, "wrong_type"),
        "no base64": (asking("data:video/mp4;base64,a-b"), 400, "wrong_data"),
        "half of it": (asking(good[:-3]), 400, "wrong_data"),
        "as text": (asking("data:video/mp4,abc"), 400, "wrong_data"),
        "frames": (asking("data:video/jpeg;base64,abc,def"), 415, "no_video"),
        "a picture": (asking("data:image/png;base64,abcd"), 415, "no_video"),
        "nothing": (asking("data:video/mp4;base64,"), 422, "video_unreadable"),
        "noise": (asking(data(b"noise" * 99)), 422, "video_unreadable"),
        "broken": (asking(data(clip[:300])), 422, "video_unreadable"),
        "a file": (asking("file:///etc/hostname"), 400, "video_not_allowed"),
        "a host": (asking("http://127.0.0.1:1/a.mp4"), 400, "video_not_allowed"),
        "a path": (asking("/etc/hostname"), 400, "video_not_allowed"),
        "another way": (asking("rtsp://127.0.0.1/"), 400, "video_not_allowed"),
    }


def test_bad_requests_are_answered_and_not_passed_on(clip, upstream, proxied):
    client = proxied()
    for name, (body, status, code) in refused_requests(clip.read_bytes()).items():
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert error_of(answer) == (status, code), name
    assert not upstream.got


def test_limits_of_a_request(clip, upstream, proxied):
    film = clip.read_bytes()
    client = proxied(max_seconds=3.9, max_videos=2, limits={"body": 100_000})
    assert error_of(client.post(CHAT, json=asking(data(film)))) == (422, "video_too_long")
    assert error_of(client.post(CHAT, content=b"{}")) == (415, "no_json")
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post(CHAT, content=gzip.compress(b"{}"), headers=packed)
    assert error_of(answer) == (415, "no_json")
    many = asking("data:video/mp4;base64,")
    many["messages"] *= 3
    assert error_of(client.post(CHAT, json=many)) == (400, "too_many_videos")
    large = asking(data(bytes(120_000)))
    assert error_of(client.post(CHAT, json=large)) == (413, "body_too_large")
    pieces = (b"x" * 10_000 for _ in range(15))
    assert error_of(client.post(CHAT, content=pieces)) == (413, "body_too_large")
    assert not upstream.got
    assert client.get("/health").json()["selecting"] == 0
    tight = proxied(limits={"bodies": 1000})
    assert error_of(tight.post(CHAT, json=asking(data(film)))) == (429, "busy")
    for _ in range(3):  # what was held is given back
        body = {"model": "echo", "messages": [], "more": "x" * 900}
        assert tight.post(CHAT, json=body).status_code == 200


def test_files_are_those_of_the_folder_alone(clip, upstream, proxied, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (tmp_path / "secret.mp4").write_bytes(clip.read_bytes())
    (folder / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "up").symlink_to(tmp_path)
    (folder / "ring").symlink_to(folder / "ring")
    (folder / "bad.mp4").write_bytes(b"noise")
    client = proxied(files=folder)
    names = [f"//{tmp_path}/secret.mp4", "../secret.mp4", "out.mp4", "up/secret.mp4", "ring", "",
             "%2e%2e/secret.mp4", "nowhere.mp4", "a%00b", f"//host{folder}/out.mp4", "x" * 5000,
             f"//{tmp_path}/nowhere.mp4", "up", f"//{folder}"]  # fmt: skip
    told = set()
    for name in names:
        answer = client.post(CHAT, json=asking(f"file:{name}"))
        assert error_of(answer) == (400, "video_not_allowed"), name
        told.add(answer.json()["error"]["message"].partition(", wanted")[2])
    assert len(told) == 1  # not what is there and what is not
    answer = client.post(CHAT, json=asking("file:bad.mp4"))
    assert error_of(answer) == (422, "video_unreadable") and str(tmp_path) not in answer.text
    assert not upstream.got


def test_hosts_are_those_that_were_named(upstream, proxied):
    host = upstream.address.removeprefix("http://")
    port = host.partition(":")[2]
    client = proxied(fetch_from=[upstream.address])
    urls = [f"http://u:p@{host}/film", f"http://localhost:{port}/film", f"https://{host}/film",
            f"http://127.0.0.1:{int(port) - 1}/film", f"http://{host}@other/film", "http://",
            f"http://127.1:{port}/film", f"http://{host}\\@other/film", "http://["]  # fmt: skip
    for url in urls:
        answer = client.post(CHAT, json=asking(url))
        assert error_of(answer) == (400, "video_not_allowed"), url
    assert not upstream.got


def test_a_playlist_within_a_video_opens_nothing(clip, upstream, proxied, tmp_path):
    client = proxied(files=tmp_path)
    for there in (f"{upstream.address}/film", f"file://{clip}", str(clip)):
        lists = (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{there}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{there}'\n",
        )
        for text in lists:
            (tmp_path / "list.m3u8").write_text(text)
            for url in (data(text.encode()), "file:list.m3u8"):
                assert error_of(client.post(CHAT, json=asking(url))) == (422, "video_unreadable")
    assert not upstream.got


# Load, and who goes away.


class Gated(CoverageSelector):
    """Looks at nothing before it may."""

    def __init__(self):
        super().__init__()
        self.gate, self.looks = threading.Event(), 0
        self.together = self.most = 0
        self.lock = threading.Lock()

    def see(self, pixels):
        with self.lock:
            self.looks += 1
            self.together += 1
            self.most = max(self.most, self.together)
        assert self.gate.wait(PATIENCE)
        with self.lock:
            self.together -= 1
        return super().see(pixels)


def test_places_and_queue_are_all_that_is_taken_on(clip, upstream, proxied):
    gated = Gated()
    client = proxied(selector=gated, limits={"places": 2, "queue": 8})
    request = asking(data(clip.read_bytes()))
    with ThreadPoolExecutor(40) as clients:
        asked = [clients.submit(client.post, CHAT, json=request) for _ in range(40)]
        until(lambda: sum(one.done() for one in asked) == 30)
        assert client.get("/health").json() == {"status": "ok", "selecting": 2, "waiting": 8}
        plain = client.post(CHAT, json={"model": "echo", "messages": []})
        assert plain.status_code == 200  # what has no video needs no place
        gated.gate.set()
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {error_of(answer) for answer in refused} == {(429, "busy")} and len(refused) == 30
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert gated.most == 2 and gated.looks == 10
    assert client.get("/health").json() == {"status": "ok", "selecting": 0, "waiting": 0}
    assert client.post(CHAT, json=request).status_code == 200


def drop(client, request, path=CHAT, method="POST"):
    """A connection on which a request has been sent, to be closed."""
    body = json.dumps(request).encode() if method == "POST" else b""
    raw = socket.create_connection((client.base_url.host, client.base_url.port))
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n" if body else ""
    raw.sendall(f"{head}\r\n".encode() + body)
    return raw


def test_who_goes_frees_the_place(upstream, proxied, tmp_path):
    """While frames are looked at, and while waiting; the looking ends early."""
    write_video(tmp_path / "long.mp4", frames=1600)  # looked at in many goes
    gated = Gated()
    client = proxied(selector=gated, fps=10, files=tmp_path, limits={"places": 1, "queue": 1})
    request = asking("file:long.mp4")
    with drop(client, request) as looking:
        until(lambda: gated.looks == 1)
        with drop(client, request):
            until(lambda: client.get("/health").json()["waiting"] == 1)
            assert error_of(client.post(CHAT, json=request)) == (429, "busy")
        until(lambda: client.get("/health").json()["waiting"] == 0)
        looking.close()
    gated.gate.set()
    until(lambda: client.get("/health").json()["selecting"] == 0)
    assert gated.looks < 10 and not upstream.got
    assert client.post(CHAT, json=request).status_code == 200
    assert gated.looks >= 50


@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("POST", "/v1/silent"), ("GET", "/v1/silent")]
)
def test_who_goes_is_not_waited_for_by_the_server_behind(method, path, upstream, proxied):
    with drop(proxied(), {"model": "silent", "messages": []}, path, method):
        until(lambda: upstream.got)
    assert upstream.gone.wait(PATIENCE)


def test_who_goes_in_the_middle_of_an_answer(upstream, proxied):
    request = {"model": "endless", "messages": []}
    with proxied().stream("POST", CHAT, json=request) as answer:
        assert next(answer.iter_lines()) == 'data: {"n": 1}'
    assert upstream.gone.wait(PATIENCE)


def test_who_goes_in_the_middle_of_sending(upstream, proxied):
    client = proxied(limits={"bodies": 10_000})
    for path in (CHAT, "/v1/files"):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n".encode())
            raw.sendall(b"x" * 8000)
    body = {"model": "echo", "messages": [], "more": "x" * 9000}
    until(lambda: client.post(CHAT, json=body).status_code == 200)  # 8,000 bytes are held no more


def test_frames_that_take_too_long(clip, upstream, proxied):
    gated = Gated()
    client = proxied(selector=gated, limits={"select": 0.1})
    answer = client.post(CHAT, json=asking(data(clip.read_bytes())))
    assert error_of(answer) == (504, "select_timeout")
    gated.gate.set()
    until(lambda: client.get("/health").json()["selecting"] == 0)


def test_a_server_behind_that_takes_too_long(upstream, proxied):
    client = proxied(limits={"upstream": 0.1})
    answer = client.post(CHAT, json={"model": "silent", "messages": []})
    assert error_of(answer) == (504, "upstream_timeout")
    assert error_of(client.get("/v1/silent")) == (504, "upstream_timeout")


def test_a_request_that_takes_too_long_to_come(upstream, proxied):
    client = proxied(limits={"upload": 0.1})
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12".encode())
        assert raw.makefile("rb").readline().split()[1] == b"408"
    assert not upstream.got


def test_a_server_behind_that_is_not_there_or_breaks_off(upstream, proxied):
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        away = proxied(f"http://127.0.0.1:{taken.getsockname()[1]}")
        for answer in (away.post(CHAT, json={"messages": []}), away.get("/v1/models")):
            assert error_of(answer) == (502, "upstream_failed")
        assert away.get("/health").status_code == 200
    client = proxied()
    answer = client.post(CHAT, json={"model": "torn", "messages": []})
    assert error_of(answer) == (502, "upstream_failed")
    with pytest.raises(httpx2.RemoteProtocolError):
        client.get("/v1/torn")
    told = []
    with pytest.raises(httpx2.RemoteProtocolError):
        with client.stream("POST", CHAT, json={"model": "torn_stream", "messages": []}) as answer:
            for line in answer.iter_lines():
                told.append(line)
    events = [json.loads(line.removeprefix("data: ")) for line in told if line]
    assert events[0] == {"n": 1} and events[1]["error"]["code"] == "upstream_failed"
    assert len(events) == 2


def test_what_nobody_foresaw_is_told_too(clip, upstream, proxied):
    class Failing(CoverageSelector):
        def see(self, pixels):
            raise RuntimeError("no memory")

    client = proxied(selector=Failing())
    answer = client.post(CHAT, json=asking(data(clip.read_bytes())))
    assert error_of(answer) == (500, "unexpected") and "no memory" not in answer.text
    assert client.get("/health").json()["selecting"] == 0


def test_settings_are_checked_before_anything_is_served(serve_select):
    for wrong in ({"frames": 0}, {"size": 8}, {"fps": 0}, {"max_seconds": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            serve_select.Choosing(**wrong)
    for wrong in ({"places": 0}, {"queue": -1}, {"select": 0}, {"body": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            serve_select.Limits(**wrong)


def test_it_ends_when_what_is_begun_has_ended(upstream, tmp_path):
    """The command itself, told to end in the middle of an answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, EXAMPLES / "serve_select.py", "--upstream", upstream.address,
               "--port", str(port), "--files", tmp_path, "--selector", "uniform"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {
        "OMP_NUM_THREADS": "1"})  # fmt: skip
    with process, httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        def there():
            with contextlib.suppress(httpx2.ConnectError):
                return client.get("/health").status_code == 200

        try:
            until(there)
            request = {"model": "stream", "messages": []}
            with client.stream("POST", CHAT, json=request) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                until(lambda: not accepts(port))
                upstream.gate.set()
                assert [line for line in lines if line][-1] == "data: [DONE]"
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM), process.stderr.read()
        finally:
            process.kill()


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
