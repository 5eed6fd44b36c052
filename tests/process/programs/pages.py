"""A pool over the standard library's HTTP server, whose one page is the release that it is."""

import http.server
from pathlib import Path
from typing import Any

from prefork import PreForkingMixIn
from tests.support.programs.served import Told

release: dict[str, Any] = {}
exec(Path("release.py").read_text(), release)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(release["RELEASE"].encode())


class Site(Told, PreForkingMixIn, http.server.ThreadingHTTPServer):
    max_children = 2


if __name__ == "__main__":
    with Site(("127.0.0.1", 0), Page) as server:
        server.serve_forever()
