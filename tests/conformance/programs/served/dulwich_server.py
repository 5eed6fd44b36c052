"""Dulwich's git server, from a pool; its own client fetches a branch.

`TCPGitServer.serve` is the standard library's `serve_forever` under another name, and serves without a pool.
"""

from pathlib import Path
from typing import Any

from dulwich.client import TCPGitClient
from dulwich.repo import MemoryRepo, Repo
from dulwich.server import DictBackend, TCPGitServer

from prefork import PreForkingMixIn


class Server(PreForkingMixIn, TCPGitServer):
    pass


def server(address: tuple[str, int]) -> Any:
    return Server(DictBackend({b"/": _repository()}), *address)


def _repository() -> Any:
    if Path("repository").exists():  # made by the image before
        return Repo("repository")
    made = Repo.init("repository", mkdir=True)
    made.get_worktree().commit(b"first", b"A <a@example>", b"A <a@example>", ref=b"refs/heads/main")
    return made


def ask(host: str, port: int) -> None:
    here = MemoryRepo.init_bare([], {})
    fetched = TCPGitClient(host, port).fetch(b"/", here)
    assert here[fetched.refs[b"refs/heads/main"]].message == b"first"
