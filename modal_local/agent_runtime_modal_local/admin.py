"""The way in for tests and operators: one JSON object per line, one answer each, over a loopback port.

Each line carries the server's own admin token. `handle.LocalModal` speaks this; so can anybody.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from grpclib import GRPCError

from agent_runtime_modal_local.clock import Clock
from agent_runtime_modal_local.faults import Fault, Faults
from agent_runtime_modal_local.images import Images
from agent_runtime_modal_local.router import AtDeath, Router
from agent_runtime_modal_local.sandbox import ended
from agent_runtime_modal_local.sandboxes import Sandboxes
from agent_runtime_modal_local.tokens import Tokens

LINE_BYTES: Final = 1024 * 1024
Asked = dict[str, Any]


class Admin:
    """Answers admin lines.

    Args:
        power: takes the data path away, or brings it back.
    """

    def __init__(
        self,
        *,
        faults: Faults,
        tokens: Tokens,
        clock: Clock,
        images: Images,
        sandboxes: Sandboxes,
        router: Router,
        power: Callable[[bool], Awaitable[None]],
    ) -> None:
        self.token = secrets.token_hex(16)
        self._faults = faults
        self._tokens = tokens
        self._clock = clock
        self._images = images
        self._sandboxes = sandboxes
        self._router = router
        self._power = power

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it ends."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # gone, or a line that is too long
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Asked:
        try:
            asked = json.loads(line)
            if not hmac.compare_digest(str(asked.get("token", "")).encode(), self.token.encode()):
                return {"error": "a wrong admin token"}
            return {"ok": await self._carry_out(asked)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        except GRPCError as error:
            return {"error": str(error.message)}

    async def _carry_out(self, asked: Asked) -> Any:  # noqa: C901 - one line each
        match asked["do"]:
            case "set_fault":
                self._faults.set(Fault.from_json(asked["fault"]))
            case "clear_faults":
                self._faults.clear()
                self._images.build_failure = None
            case "calls":
                return self._faults.calls
            case "fail_builds":
                self._images.build_failure = str(asked["why"])
            case "sandboxes":
                return [sandbox.report() for sandbox in self._sandboxes.all()]
            case "images":
                return [
                    {"imageId": image.image_id, "commands": image.commands} for image in self._images.known()
                ]
            case "end":
                sandbox = self._sandboxes.get(asked["sandboxId"])
                await self._sandboxes.end(sandbox, ended(asked["how"], asked.get("exitCode")))
            case "advance":
                self._clock.advance(float(asked["seconds"]))
            case "expire_tokens":
                self._tokens.expire()
            case "at_death":
                self._router.at_death = AtDeath(asked["seen"])
            case "data_path":
                await self._power(bool(asked["up"]))
            case unknown:
                raise ValueError(f"nobody knows {unknown!r}")
        return None
