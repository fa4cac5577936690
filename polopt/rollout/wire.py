"""JSON over HTTP in bounded time: every exchange has one deadline, whatever the other end does.

Only the standard library. Proxies of the environment are never used: a server that samples is
spoken to directly.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import io
import json
import queue
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from polopt.errors import PoloptError

BUSY = (429, 503)  # answers that mean: later
PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds between attempts: the first, and the most
QUOTED = 300  # characters of an error's body that are shown
_BLOCK = 1 << 16
_Ask = TypeVar("_Ask")
_Answer = TypeVar("_Answer")


class ServerError(PoloptError):
    """A server did not give what it was asked for; the message names address, request and fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server listens, and how long it may take.

    Args:
      url: as in http://127.0.0.1:8000; an OpenAI base URL that ends in /v1 means the same server.
      api_key: sent as a bearer token.
      connect_timeout: seconds to open a connection.
      timeout: seconds for one exchange, with all its attempts and the pauses between them.
      attempts: how often an exchange is tried when the server is busy (429, 503) or the connection
        fails; at least 1.
      max_reply: bytes of the largest reply that is read.

    >>> Server(url="http://127.0.0.1:8000/v1").url
    'http://127.0.0.1:8000'

    Raises:
      PoloptError: a URL that is not of that form, or a limit that is not above 0.
    """

    url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    connect_timeout: float = 10.0
    timeout: float = 600.0
    attempts: int = 4
    max_reply: int = 64 << 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/").removesuffix("/v1"))
        parts = self._parts
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise PoloptError(f"server URL {self.url!r}: give http://host:port or https://host")
        if parts.username or parts.query or parts.fragment:
            raise PoloptError(
                "server URL: give no password, query or fragment (a key goes into api_key)"
            )
        for name in ("connect_timeout", "timeout", "attempts", "max_reply"):
            if not getattr(self, name) > 0:
                raise PoloptError(f"Server.{name} is {getattr(self, name)!r}: give more than 0")

    @functools.cached_property
    def _parts(self) -> urllib.parse.SplitResult | None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            return parts if parts.port != 0 else None
        except ValueError:  # a port that is no number, brackets that do not close
            return None

    def get(self, path: str) -> Any:
        """What the server says at a path: decoded JSON, None if it says nothing."""
        with Line(self) as line:
            return line.exchange("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """What the server answers to a body: decoded JSON, None if it answers nothing."""
        with Line(self) as line:
            return line.exchange("POST", path, body)

    def connect(self, deadline: float) -> http.client.HTTPConnection:
        """A new connection on which everything ends at the deadline."""
        assert self._parts is not None
        host, secure = self._parts.hostname or "", self._parts.scheme == "https"
        port = self._parts.port or (443 if secure else 80)
        limit = min(self.connect_timeout, _left(deadline))
        sock = socket.create_connection((host, port), limit)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = _Timed(sock, deadline)  # type: ignore[assignment]
        connection.auto_open = 0  # only here are connections opened
        return connection

    def target(self, path: str) -> str:
        """What a request line names."""
        assert self._parts is not None
        return self._parts.path + path

    @property
    def headers(self) -> dict[str, str]:
        """Sent with every request."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"Content-Type": "application/json", "Accept": "application/json", **key}


def all_at_once(
    server: Server,
    asks: Sequence[tuple[str, _Ask]],
    answer: Callable[[Line, str, _Ask], _Answer],
    concurrency: int,
) -> list[_Answer]:
    """The answers to all, in order; or the first fault, and then nobody is waited for.

    Args:
      server: whose time limits hold.
      asks: each with a name for error messages.
      answer: of one ask, over one connection; called in threads.
      concurrency: most calls of it under way at once.

    Raises:
      ServerError: an exchange failed; the message tells how much had arrived.
    """
    waiting: queue.SimpleQueue[tuple[int, str, _Ask]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for n, (who, ask) in enumerate(asks):
        waiting.put((n, who, ask))

    def work(line: Line) -> None:
        with line:
            while True:
                try:
                    n, who, ask = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((n, answer(line, who, ask)))
                except Exception as error:
                    done.put((n, error))
                    return

    lines = [Line(server) for _ in range(min(concurrency, len(asks)))]
    for line in lines:
        threading.Thread(target=work, args=(line,), daemon=True).start()
    try:
        return _gathered(server, len(asks), done)
    finally:
        for line in lines:
            line.hang_up()


def _gathered(server: Server, wanted: int, done: queue.SimpleQueue[tuple[int, Any]]) -> list[Any]:
    # An exchange keeps its own time. This limit is for what cannot: looking up a host's name.
    limit = server.timeout + server.connect_timeout
    found: dict[int, Any] = {}
    while len(found) < wanted:
        arrived = f"{len(found)} of {wanted} answers had arrived"
        try:
            n, answer = done.get(timeout=limit)
        except queue.Empty:
            raise ServerError(f"{server.url}: no answer within {limit:g} s; {arrived}") from None
        if isinstance(answer, ServerError):
            raise ServerError(f"{answer}; {arrived}") from answer
        if isinstance(answer, Exception):
            raise answer
        found[n] = answer
    return [found[n] for n in range(wanted)]


class _LargeError(Exception):
    """A reply that is not read to its end."""


class Line:
    """One connection, kept alive, for one thread; any other thread may `hang_up`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection: http.client.HTTPConnection | None = None
        self._over = threading.Event()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def exchange(self, method: str, path: str, body: Any = None, who: str = "") -> Any:
        """Ask and wait for the whole answer, at most `server.timeout` seconds.

        Args:
          method, path: of the request.
          body: sent as JSON; nothing if None.
          who: what the request is for, as error messages name it.

        Raises:
          ServerError: no good answer in time or after so many attempts.
        """
        server = self._server
        where = f"{server.url}{path}" + (f", {who}" if who else "")
        deadline = time.monotonic() + server.timeout
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        for attempt in range(1, server.attempts + 1):
            pause = min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
            try:
                status, after, text = self._attempt(method, path, data, deadline)
            except _LargeError as error:
                raise ServerError(f"{where}: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                late = time.monotonic() >= deadline
                fault = f"no whole reply within {server.timeout:g} s" if late else _told(error)
            else:
                if 200 <= status < 300:
                    return _decoded(text, where)
                fault = f"HTTP {status}: {quoted(text)}"
                if status not in BUSY:
                    raise ServerError(f"{where}: {fault}")
                pause = max(pause, after)
            if attempt == server.attempts or time.monotonic() + pause >= deadline:
                break
            if self._over.wait(pause):
                break
        raise ServerError(f"{where}: {fault} (attempt {attempt} of {server.attempts})")

    def hang_up(self) -> None:
        """Whoever waits for an answer gives up at once; the other end sees the line go dead."""
        self._over.set()
        sock = self._connection and self._connection.sock
        if sock:
            sock.shutdown()  # type: ignore[call-arg]

    def _attempt(
        self, method: str, path: str, data: bytes | None, deadline: float
    ) -> tuple[int, float, bytes]:
        """Status, seconds to wait if it is busy, and body."""
        if self._connection is None or self._connection.sock is None:
            self._connection = self._server.connect(deadline)
        connection = self._connection
        connection.sock.deadline = deadline  # type: ignore[union-attr]
        if self._over.is_set():
            raise ConnectionAbortedError("hung up")
        connection.request(method, self._server.target(path), data, self._server.headers)
        with connection.getresponse() as response:
            text = _body(response, self._server.max_reply)
            after = response.headers.get("Retry-After", "")
        return response.status, float(after) if after.isdecimal() else 0.0, text

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Timed:
    """A socket, as `http.client` uses one, whose every wait ends at one deadline.

    A timeout of the socket alone begins anew with every byte that drips in.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self.deadline = sock, deadline

    def arm(self) -> None:
        self._sock.settimeout(_left(self.deadline))

    def sendall(self, data: bytes) -> None:
        self.arm()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self, self._sock.makefile("rb", buffering=0)))

    def shutdown(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # not connected any more
            return

    def close(self) -> None:
        self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, timed: _Timed, raw: io.RawIOBase) -> None:
        self._timed, self._raw = timed, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._timed.arm()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def _body(response: http.client.HTTPResponse, most: int) -> bytes:
    """All of a body, unless it is larger than allowed or ends early."""
    parts, size = [], 0
    while part := response.read1(_BLOCK):
        parts.append(part)
        size += len(part)
        if size > most:
            raise _LargeError(f"the reply is larger than max_reply={most} bytes")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _decoded(text: bytes, where: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"{where}: the reply is not JSON: {quoted(text)}") from error


def quoted(text: bytes) -> str:
    """The beginning of a body, in one line.

    >>> quoted(b"too\\n  long")
    'too long'
    """
    line = " ".join(text.decode("utf-8", "replace").split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return (line if len(line) <= QUOTED else line[:QUOTED] + "...") or "(no body)"


def _told(error: Exception) -> str:
    """What went wrong on the way, in one line."""
    if isinstance(error, http.client.IncompleteRead):
        return f"the reply ended {error.expected or 'some'} bytes early"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return quoted(str(error).encode()) if str(error) else type(error).__name__
