"""A web server of a folder, in a process of its own, that knows ranges and can be made to fail.

`python -m tests.preprocessing.web FOLDER` prints its port. Below /hang/ it never answers, below /busy/ it answers 503,
below /cut/ it stops in the middle of a body; every request for a path adds a line to FOLDER/requests.log.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipeline.config import ROOT

HANG_S = 60


class Handler(BaseHTTPRequestHandler):
    """Serves files whole or by one range."""

    folder = Path()
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        _, fault, *rest = self.path.split("/")
        with (self.folder / "requests.log").open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range', '')}\n")
        if fault == "hang":
            time.sleep(HANG_S)
        if fault == "busy":
            self.send_error(503)
            return
        name = "/".join(rest) if fault == "cut" else self.path[1:]
        path = self.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        self.send_part(path.read_bytes(), with_body, cut=fault == "cut")

    def send_part(self, data: bytes, with_body: bool, cut: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, len(data) - 1
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if with_body:
            body = data[first : last + 1]
            self.wfile.write(body[: len(body) // 2] if cut and first else body)
        if cut and first:
            self.close_connection = True

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder; yields http://127.0.0.1:PORT and ends the server."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.preprocessing.web", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.wait()


def main(folder: Path) -> None:
    """Serve until killed."""
    Handler.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
