"""Registries of tiny packages on this machine: wheels in a folder, and npm over HTTP on loopback."""

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

GREETS = "def greet():\n    print('hello from python')\n"


def use_wheels_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on pip knows no registry but this folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def make_wheel(folder: Path, name: str, version: str, module: str = GREETS) -> None:
    """A package of one module with its own name, and a program that greets."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-greet = {name}:greet\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


class NpmRegistry:
    """Packages as npm asks for them; counts what was fetched, and holds it back while `gate` is closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fetched: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.broken = False
        self._packages: dict[str, dict[str, Any]] = {}
        self._tarballs: dict[str, bytes] = {}

    def add(self, name: str, version: str, **package: Any) -> None:
        """A package whose program greets; `package` is more of its package.json."""
        files = {
            "package.json": json.dumps(
                {"name": name, "version": version, "bin": {f"{name}-greet": "cli.js"}, **package}
            ),
            "index.js": "module.exports = 'hello from node';\n",
            "cli.js": "#!/usr/bin/env node\nconsole.log(require('./index.js'));\n",
        }
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for path, text in files.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        path = f"/{name}/-/{name}-{version}.tgz"
        self._tarballs[path] = packed.getvalue()
        digest = base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
        entry = {
            **json.loads(files["package.json"]),
            "dist": {"tarball": f"{self.url}{path}", "integrity": f"sha512-{digest}"},
        }
        known = self._packages.setdefault(name, {"name": name, "versions": {}})
        known["versions"][version] = entry
        known["dist-tags"] = {"latest": version}

    def answer(self, path: str) -> tuple[int, bytes]:
        """What a GET is answered."""
        self.asked.set()
        self.gate.wait(30)
        if self.broken:
            return 500, b"broken"
        if path in self._tarballs:
            self.fetched.append(path)
            return 200, self._tarballs[path]
        found = self._packages.get(path.strip("/"))
        return (200, json.dumps(found).encode()) if found is not None else (404, b"{}")


@contextmanager
def npm_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[NpmRegistry]:
    """A registry on loopback, the only one that npm knows from here on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = registry.answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry = NpmRegistry(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("npm_config_registry", registry.url)
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        monkeypatch.setenv("npm_config_noproxy", "127.0.0.1")
        try:
            yield registry
        finally:
            registry.gate.set()
            server.shutdown()
            thread.join()
