"""The way in for tests and operators: one JSON object per line, one answer each, over a loopback port.

Each line carries the server's own admin token. `handle.LocalModal` speaks this; so can anybody.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
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
        self._images = images
        self._sandboxes = sandboxes
        self._verbs: dict[str, Callable[[Asked], Any]] = {
            "set_fault": lambda asked: faults.set(Fault.from_json(asked["fault"])),
            "clear_faults": lambda _: self._clear(),
            "calls": lambda _: faults.calls,
            "fail_builds": lambda asked: setattr(images, "build_failure", str(asked["why"])),
            "sandboxes": lambda _: self._reports(),
            "images": lambda _: self._known_images(),
            "end": self._end,
            "advance": lambda asked: clock.advance(float(asked["seconds"])),
            "refuse_tokens": lambda _: tokens.refuse(),
            "token_lifetime": lambda asked: setattr(tokens, "lifetime_s", float(asked["seconds"])),
            "at_death": lambda asked: setattr(router, "at_death", AtDeath(asked["seen"])),
            "data_path": lambda asked: power(bool(asked["up"])),
        }

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

    async def _carry_out(self, asked: Asked) -> Any:
        if asked["do"] not in self._verbs:
            raise ValueError(f"nobody knows {asked['do']!r}")
        done = self._verbs[asked["do"]](asked)
        return await done if inspect.isawaitable(done) else done

    def _clear(self) -> None:
        self._faults.clear()
        self._images.build_failure = None

    async def _end(self, asked: Asked) -> None:
        sandbox = self._sandboxes.get(asked["sandboxId"])
        await self._sandboxes.end(sandbox, ended(asked["how"], asked.get("exitCode")))

    def _reports(self) -> list[Asked]:
        return [sandbox.report() for sandbox in self._sandboxes.all()]

    def _known_images(self) -> list[Asked]:
        return [{"imageId": image.image_id, "commands": image.commands} for image in self._images.known()]
