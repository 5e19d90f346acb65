"""Start the Claude agent before its driver, the SDK and asyncio are imported (`early`).

What is started is the SDK's to say. It is asked for its command line like this: the one module of it that
makes that up is imported with everything left out that it does not need for it, 12 ms instead of 75, and
is brought to the point where it would open a process. The SDK's modules are forgotten afterwards, and the
driver imports it as it is. When that opens its process, this one is taken if command, environment and all
else are the same to the letter. So a guess that is wrong costs time and nothing else.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from types import SimpleNamespace
from typing import Any, Final

from agent_runtime_sandbox.drivers import Places
from agent_runtime_sandbox.drivers.absent import absent, body_later
from agent_runtime_sandbox.drivers.claude_options import check, leave_foreign_settings, sdk_fields
from agent_runtime_sandbox.drivers.early import Asked, EarlyAgent, Wanted
from agent_runtime_sandbox.drivers.fresh import fresh_folders

_SDK: Final = "claude_agent_sdk"
_NOT_NEEDED: Final = (f"{_SDK}.types", "anyio", "sniffio", "opentelemetry", "importlib.metadata")
"""Annotations, what it would do with the process, tracing, and the name of an app."""

_log = logging.getLogger(__name__)


def begin_early(wanted: Wanted, places: Places) -> EarlyAgent | None:
    """Start the agent, where that can be done before its driver is there; that asks for it again.

    None where a conversation is resumed, which the SDK first lays out, and where anything goes wrong:
    then the driver starts it itself, and tells what is wrong.
    """
    options = wanted.options
    if options.get("resume") is not None or _SDK in sys.modules or "anyio" in sys.modules:
        return None  # what is imported already would not be left out, and would be changed for good
    try:
        check(options)
        leave_foreign_settings()
        folders = fresh_folders(places.home)
        # Where its transcript goes to is the driver's business; that there is such a place is not.
        fields = sdk_fields(options, places, folders, resume=None, store=object(), stderr=_unheard)
        return EarlyAgent(wanted, _what_the_sdk_starts(_Options(**fields)), folders)
    except Exception:  # whatever the SDK's own modules raise, too
        _log.debug("not started early", exc_info=True)
        return None


class _Options(SimpleNamespace):
    """Stands for `ClaudeAgentOptions`, whose module takes 22 ms: what is not set is not there."""

    allowed_tools = ()

    def __getattr__(self, _: str) -> None:
        return None


class _NotTold(Exception):
    """The SDK did not come to the point."""


class _Told(BaseException):
    """Ends what the SDK was doing when it came to the point. It must not take it for a failure."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked


def _what_the_sdk_starts(options: _Options) -> Asked:
    """Raises `_NotTold`, `ImportError`."""
    with _transport_module() as module:

        async def tell(command: list[str], **how: Any) -> None:
            raise _Told(Asked(command, how))

        module.anyio.open_process = tell
        try:
            transport = module.SubprocessCLITransport(prompt=None, options=options)
            # Before it comes to the point it would look for this in a thread.
            transport._cli_path = transport._cli_path or transport._find_cli()  # noqa: SLF001
            with closing(transport.connect()) as connecting:
                connecting.send(None)
        except _Told as told:
            return told.asked
        except Exception as error:
            raise _NotTold from error
    raise _NotTold


@contextmanager
def _transport_module() -> Iterator[Any]:
    """The part of the SDK that makes up the command line; none of the SDK's own modules stays imported."""
    before = set(sys.modules)
    with ExitStack() as stack:
        for name in _NOT_NEEDED:
            stack.enter_context(absent(name))
        stack.enter_context(body_later(_SDK))
        try:
            yield importlib.import_module(f"{_SDK}._internal.transport.subprocess_cli")
        finally:
            for name in [name for name in sys.modules if name.startswith(f"{_SDK}.")]:
                if name not in before:
                    del sys.modules[name]


def _unheard(_: str) -> None:
    """Stands for who is told of the agent's complaints: it makes the SDK ask for them."""
