"""The command line: `agent-runtime serve | demo | doctor | sessions | deploy-image`.

Bad input gets one clear line and exit code 2. What a command does is in the module of its name;
nothing here knows more than options.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvloop

from agent_runtime import logs
from agent_runtime.errors import RuntimeFault

from . import demo as demo_command
from . import deploy_image as deploy_image_command
from . import doctor as doctor_command
from . import sessions as sessions_command
from .serve import serve as serve_forever
from .settings import SandboxKind, Settings, read_settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take a default in brackets for markup and show nothing
    help="AI coding agents in isolated sandboxes, streamed as typed blocks.",
)
sessions = typer.Typer(no_args_is_help=True, help="Look at the sessions of a running server.")
app.add_typer(sessions, name="sessions")

Host = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one [8700].")]
Data = Annotated[Path | None, typer.Option(help="Folder for everything durable [agent-runtime-data].")]
Kind = Annotated[SandboxKind | None, typer.Option(help="Where agents run [local].")]
Config = Annotated[Path | None, typer.Option(help="YAML file with these settings and more.")]
Url = Annotated[str, typer.Option(help="The server.", envvar="AGENT_RUNTIME_URL")]
Token = Annotated[str, typer.Option(help="Its token.", envvar="AGENT_RUNTIME_TOKEN")]


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    sandbox: Kind = None,
    config: Config = None,
    open_access: Annotated[
        bool, typer.Option("--open-access", help="No token; loopback addresses only.")
    ] = False,
) -> None:
    """Serve until Ctrl-C, then close in order."""
    _log_to_stderr(logging.INFO)
    _run(serve_forever(_settings(config, host, port, data, sandbox, open_access=open_access or None)))


@app.command()
def demo(
    port: Port = None,
    data: Data = None,
    sandbox: Kind = None,
) -> None:
    """Show the main job: a real agent in a sandbox, its blocks in this terminal and in the console."""
    _log_to_stderr(logging.WARNING)
    once = os.environ.get("DEMO_ONCE", "") not in {"", "0"}
    settings = _settings(None, None, 0 if port is None else port, data or Path("demo-data"), sandbox)
    raise typer.Exit(_run(demo_command.demo(settings, once=once)))


@app.command()
def doctor(data: Data = None, sandbox: Kind = None) -> None:
    """Tell what works on this machine, and how to get what does not."""
    _log_to_stderr(logging.WARNING)
    raise typer.Exit(_run(doctor_command.doctor(_settings(None, None, None, data, sandbox))))


@app.command("deploy-image")
def deploy_image(
    profile: Annotated[list[str] | None, typer.Option(help="For this profile; may be repeated.")] = None,
    app_name: Annotated[str | None, typer.Option("--app", help="Modal's app [agent-runtime].")] = None,
    environment: Annotated[str | None, typer.Option(help="Modal's environment [the account's own].")] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Build the sandbox's image in your Modal account, and publish it."""
    _log_to_stderr(logging.WARNING)
    settings = _settings(config, None, None, data, None)
    _run(deploy_image_command.deploy_image(settings, profile or (), app=app_name, environment=environment))


@sessions.command("list")
def list_sessions(url: Url = "http://127.0.0.1:8700", token: Token = "") -> None:
    """List your sessions, newest first."""
    _run(sessions_command.list_sessions(url, token))


@sessions.command("show")
def show_session(session_id: str, url: Url = "http://127.0.0.1:8700", token: Token = "") -> None:
    """Show the newest blocks of one session."""
    _run(sessions_command.show_session(url, token, session_id))


def main() -> None:
    """The entry point: one clear line for what a person did wrong."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.exceptions.TyperException as error:
        _refuse(error.format_message())
    except RuntimeFault as fault:
        _refuse(fault.detail)


def _refuse(why: str) -> None:
    sys.stderr.write(f"agent-runtime: {' '.join(why.split())}\n")
    sys.exit(2)


def _settings(
    config: Path | None,
    host: str | None,
    port: int | None,
    data: Path | None,
    sandbox: SandboxKind | None,
    *,
    open_access: bool | None = None,
) -> Settings:
    given = {"host": host, "port": port, "data": data, "sandbox": sandbox, "open_access": open_access}
    return read_settings(config, given)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _log_to_stderr(level: int) -> None:
    """People read standard error; standard output belongs to the commands."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        processors=logs.processors(sys.stderr),
    )
