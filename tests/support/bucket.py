"""A bucket that speaks as much of S3 as is needed to list it and to read from it."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LIST = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>
<KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{rows}
</ListBucketResult>"""
ROW = (
    "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>0</ETag>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)


class _Bucket(ThreadingHTTPServer):
    def __init__(self, objects: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.objects = objects
        self.read: list[str] = []

    def listing(self, prefix: str) -> bytes:
        """The objects whose keys begin like this."""
        found = {key: data for key, data in self.objects.items() if key.startswith(prefix)}
        rows = [ROW.format(key=key, size=len(data)) for key, data in found.items()]
        return LIST.format(count=len(rows), rows="".join(rows)).encode()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Bucket

    def do_HEAD(self) -> None:
        self._send(*self._found())

    def do_GET(self) -> None:
        status, data = self._found()
        if status == 200:
            self.server.read.append(self._key)
        elif not self._key:
            prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
            status, data = 200, self.server.listing(prefix)
        asked = self.headers.get("Range")
        if asked and status == 200:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            status, data = 206, data[int(begin) : int(end or len(data)) + 1]
        self._send(status, data)
        self.wfile.write(data)

    @property
    def _key(self) -> str:
        """What follows the name of the bucket in the path."""
        return urlsplit(self.path).path.lstrip("/").partition("/")[2]

    def _found(self) -> tuple[int, bytes]:
        data = self.server.objects.get(self._key)
        return (404, b"") if data is None else (200, data)

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/xml")
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextlib.contextmanager
def bucket(objects: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve objects by their keys. Gives the URL, and the keys that were read, as they are."""
    with _Bucket(objects) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.read
        finally:
            server.shutdown()
            thread.join()
