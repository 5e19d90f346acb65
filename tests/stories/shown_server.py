"""A server that stories run inside a sandbox: well-behaved pages, and every kind of bad answer.

Run as a program; prints `listening PORT`. Standard library only, whatever Python is inside.
"""

import asyncio
import base64
import hashlib
import json
import os

PAGE = b"<!doctype html><title>inside</title><p id=said>hello from inside</p>"
HOSTILE = {
    "splitting": b"HTTP/1.1 200 OK\r\nX-One: a\rSet-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\nok",
    "null": b"HTTP/1.1 200 OK\r\nX-One: a\0b\r\nContent-Length: 2\r\n\r\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX-One: a\r\n b: c\r\n",
    "zero-nine": b"<html>just words</html>\n" * 10,
    "version": b"HTTP/9.9 200 OK\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nok",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
    "status": b"HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok",
    "switched": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi",
    "flood": b"HTTP/1.1 200 OK\r\n" + b"X-Flood: yes\r\n" * 20_000 + b"\r\n",
    "long-header": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "informational": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
    "nothing": b"",
    "half": b"HTTP/1.1 200 OK\r\nContent-Le",
}
CUT_SHORT = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nonly this\r\n",
}
release = asyncio.Event()


async def serve(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = [line.split(": ", 1) for line in lines]
        await answer(method, target, headers, reader, writer)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        writer.close()


async def answer(method, target, headers, reader, writer):
    path, _, query = target.partition("?")
    name = path.rpartition("/")[2]
    told = {key.lower(): value for key, value in headers}
    if path == "/ws":
        return await websocket(told, reader, writer)
    if path == "/upload":
        return await upload(told, reader, writer)
    if path.startswith("/hostile/"):
        if name == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"X-More: and more\r\n")
                await writer.drain()
        return writer.write(HOSTILE[name])
    if path.startswith("/cut/"):
        return writer.write(CUT_SHORT[name])
    if path == "/die":
        os._exit(1)
    if path == "/stream":
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(b"4\r\none\n\r\n")
        await release.wait()
        return writer.write(b"4\r\ntwo\n\r\n0\r\n\r\n")
    if path == "/release":
        release.set()
    if path == "/big":
        size = int(query)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            writer.write(b"0123456789abcdef" * 4096)
            await writer.drain()
        return None
    more = []
    if path == "/say":
        more = [line.encode() for line in json.loads(bytes.fromhex(query))]
    body, kind, status = PAGE, b"text/html", b"200 OK"
    if path == "/told":
        body, kind = json.dumps([target, method, headers]).encode(), b"application/json"
    if path == "/redirect":
        status, more = b"302 Found", [b"Location: " + bytes.fromhex(query)]
    if os.path.isfile("shown" + path):
        body = open("shown" + path, "rb").read()
        kind = b"text/javascript" if path.endswith(".js") else kind
    lines = [b"HTTP/1.1 " + status, b"Content-Type: " + kind, b"Content-Length: %d" % len(body), *more]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if method == "HEAD" else body))


async def upload(told, reader, writer):
    digest, size = hashlib.sha256(), 0
    if "content-length" in told:
        left = int(told["content-length"])
        while left and (data := await reader.read(min(left, 65536))):
            digest.update(data)
            size, left = size + len(data), left - len(data)
    while "transfer-encoding" in told:
        length = int(await reader.readline(), 16)
        data = await reader.readexactly(length + 2)
        digest.update(data[:-2])
        size += length
        if not length:
            break
    body = json.dumps([size, digest.hexdigest()]).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def websocket(told, reader, writer):
    key = told["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    lines += [b"Sec-WebSocket-Accept: " + accept]
    if "sec-websocket-protocol" in told:
        lines += [b"Sec-WebSocket-Protocol: " + told["sec-websocket-protocol"].split(",")[0].encode()]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    origin = told.get("origin", "none").encode()
    writer.write(bytes([0x81, len(origin)]) + origin)
    while True:
        start, length = await reader.readexactly(2)
        size = length & 127
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        mask, data = await reader.readexactly(4), await reader.readexactly(size)
        plain = bytes(a ^ b for a, b in zip(data, mask * (size // 4 + 1)))
        writer.write(bytes([start]))
        if size < 126:
            writer.write(bytes([size]))
        elif size < 65536:
            writer.write(bytes([126]) + size.to_bytes(2, "big"))
        else:
            writer.write(bytes([127]) + size.to_bytes(8, "big"))
        writer.write(plain)
        await writer.drain()
        if start & 15 == 8:
            return


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
