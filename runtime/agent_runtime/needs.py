"""Needs: what a profile asks of the sandbox that its agent works in.

Values only. A profile says what it needs (`profile.AgentProfile.sandbox`), the runtime says how far
anybody may go (`config`), a provider gives it (`ports.SandboxSpec`) and says what it cannot enforce
(`ports.Capabilities`). Secrets are named here, never held: their values come from the runtime's own
environment, and only the named ones enter a sandbox.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, field_validator

from agent_runtime.frozen import Strict

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB
_LAST_PORT: Final = 65535

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
ImageName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}(:[A-Za-z0-9][A-Za-z0-9._-]{0,127})?$")
]
HostRule = Annotated[
    str,
    StringConstraints(
        to_lower=True, pattern=r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:\d{1,5})?$"
    ),
]
"""`pypi.org` (port 443), `git.example.com:22`, or `*.pythonhosted.org` for every name below it."""
VariableValue = Annotated[str, StringConstraints(max_length=32 * 1024, pattern=r"^[^\x00]*$")]
_Requirement = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9@][^\s\x00]*$")
]


_RESERVED_BEGINNINGS: Final = (
    *("AGENT_RUNTIME_", "ANTHROPIC_", "CLAUDE", "OTEL_"),
    *("LD_", "DYLD_", "PYTHON", "NODE_", "BUN_", "BASH_FUNC_"),
)
_RESERVED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "TMPDIR", "IFS", "ENV", "BASH_ENV"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY"),
        *("GLIBC_TUNABLES", "GCONV_PATH", "IS_SANDBOX"),
    }
)


def is_reserved(variable: str) -> bool:
    """Whether only the runtime sets it: it says who the agent is, what it loads, or where it connects."""
    name = variable.upper()
    return name in _RESERVED or name.startswith(_RESERVED_BEGINNINGS)


class Resources(Strict):
    """Bounds of one sandbox. None: the provider's own default.

    `cpu` in cores. `memory_bytes` counts all processes and everything that is written to memory
    filesystems. `processes` counts threads too. `disk_bytes` is for workspace and home together.
    """

    cpu: float | None = Field(default=None, gt=0, le=128)
    memory_bytes: int | None = Field(default=None, ge=64 * _MIB)
    processes: int | None = Field(default=None, ge=16, le=100_000)
    disk_bytes: int | None = Field(default=None, ge=16 * _MIB)

    def within(self, bounds: Resources) -> Resources:
        """These, none above that of the others, and theirs where these say nothing."""
        merged = {
            name: _smaller(getattr(self, name), getattr(bounds, name)) for name in type(self).model_fields
        }
        return Resources.model_validate(merged)


DEFAULT_RESOURCES: Final = Resources(cpu=2, memory_bytes=4 * _GIB, processes=1024, disk_bytes=8 * _GIB)
"""What a sandbox gets, and may have at most, where the host says nothing else."""


class Egress(Strict):
    """What a sandbox may reach. The model's API by way of the gateway is always among it.

    `hosts`: to be reached through the egress proxy; an entry without port means 443. Empty: nothing.
    `models`: the only models that the gateway lets pass (`*` at the end stands for any rest); None: all.
    """

    hosts: tuple[HostRule, ...] = Field(default=(), max_length=200)
    models: tuple[str, ...] | None = Field(default=None, max_length=200)

    @field_validator("hosts")
    @classmethod
    def _ports_exist(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for rule in hosts:
            _, _, port = rule.partition(":")
            if port and not 1 <= int(port) <= _LAST_PORT:
                raise ValueError(f"{rule}: there is no such port")
        return hosts


class Dependencies(Strict):
    """Packages that are there when the agent begins, by the names and versions of their registries.

    They become layers of the image, or folders of the local toolchain, kept by their content.
    """

    pip: tuple[_Requirement, ...] = Field(default=(), max_length=200)
    npm: tuple[_Requirement, ...] = Field(default=(), max_length=200)
    apt: tuple[_Requirement, ...] = Field(default=(), max_length=200)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.pip or self.npm or self.apt)


class SandboxNeeds(Strict):
    """All that a profile can ask of its sandbox.

    `env`: plain variables for the agent and its tools. `secrets`: names of variables of the runtime's
    own environment that are to be inside, and are then readable by the agent. `image`: the published name
    of an image that takes the place of ours, where the provider has images. `lifetime_s`: the longest
    life of one sandbox; the session outlives it. `idle_timeout_s`: how long it may rest, in place of the
    runtime's own. `ports`: the only ones that may be opened from outside; None: any.
    """

    resources: Resources = Field(default_factory=Resources)
    egress: Egress = Field(default_factory=Egress)
    dependencies: Dependencies = Field(default_factory=Dependencies)
    env: dict[VariableName, VariableValue] = Field(default_factory=dict, max_length=200)
    secrets: tuple[VariableName, ...] = Field(default=(), max_length=50)
    image: ImageName | None = None
    lifetime_s: float | None = Field(default=None, ge=60)
    idle_timeout_s: float | None = Field(default=None, gt=0)
    ports: tuple[Annotated[int, Field(ge=1, le=_LAST_PORT)], ...] | None = Field(default=None, max_length=100)

    @property
    def reserved(self) -> tuple[str, ...]:
        """Variables that are asked for and that no profile can set: its sandbox is refused."""
        return tuple(name for name in (*self.env, *self.secrets) if is_reserved(name))

    def within(self, bounds: Resources) -> Self:
        """The same needs, with no resource above these bounds."""
        return self.model_copy(update={"resources": self.resources.within(bounds)})


def _smaller(mine: float | None, theirs: float | None) -> float | None:
    given = [value for value in (mine, theirs) if value is not None]
    return min(given) if given else None
