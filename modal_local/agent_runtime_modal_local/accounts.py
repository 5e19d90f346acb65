"""What an account holds beside sandboxes: its credentials, its apps, its secrets."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.images import new_id

CREATING = (
    api.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
    api.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
    api.OBJECT_CREATION_TYPE_EPHEMERAL,
    api.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
)


@dataclass
class Account:
    """The one account of a server; new credentials each time.

    Attributes:
        apps: (environment, name) to id.
    """

    token_id: str = field(default_factory=lambda: f"ak-{secrets.token_hex(8)}")
    token_secret: str = field(default_factory=lambda: f"as-{secrets.token_hex(16)}")
    apps: dict[tuple[str, str], str] = field(default_factory=dict)
    _secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    _secret_names: dict[str, str] = field(default_factory=dict)

    def admits(self, token_id: object, token_secret: object) -> bool:
        """Whether these are its credentials."""
        right = hmac.compare_digest(str(token_secret).encode(), self.token_secret.encode())
        return right and token_id == self.token_id

    def app(self, environment: str, name: str, *, create: bool) -> str:
        """The id of an app. Raises `GRPCError` (NOT_FOUND)."""
        if (environment, name) not in self.apps:
            if not create:
                raise GRPCError(Status.NOT_FOUND, f"App '{name}' not found")
            self.apps[environment, name] = new_id("ap-")
        return self.apps[environment, name]

    def check_app(self, app_id: str) -> None:
        """Raises `GRPCError` (NOT_FOUND)."""
        if app_id not in self.apps.values():
            raise GRPCError(Status.NOT_FOUND, f"App {app_id} not found")

    def secret(self, request: api.SecretGetOrCreateRequest) -> tuple[str, dict[str, str]]:
        """Find, make or replace a secret; its id and its variables. Raises `GRPCError`."""
        name, how = request.deployment_name, request.object_creation_type
        known = self._secret_names.get(name)
        if known is not None and how == api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Secret '{name}' already exists")
        if known is None and how not in CREATING:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found")
        if known is None or how == api.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            known = new_id("st-")
            self._secrets[known] = dict(request.env_dict)
            if name:
                self._secret_names[name] = known
        variables = self._secrets[known]
        if lacking := set(request.required_keys) - set(variables):
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' lacks {', '.join(sorted(lacking))}")
        return known, variables

    def delete_secret(self, secret_id: str) -> None:
        """Forget a secret. Raises `GRPCError` (NOT_FOUND)."""
        self._variables(secret_id)
        del self._secrets[secret_id]
        self._secret_names = {name: known for name, known in self._secret_names.items() if known != secret_id}

    def environment(self, sources: Iterable[api.SecretSource]) -> dict[str, str]:
        """The variables of secrets, given by id or openly, the last one first. Raises `GRPCError`."""
        env: dict[str, str] = {}
        for source in sources:
            given = source.WhichOneof("source") == "env"
            env |= dict(source.env.contents) if given else self._variables(source.secret_id)
        return env

    def environment_of(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """The same for ids alone. Raises `GRPCError`."""
        env: dict[str, str] = {}
        for secret_id in secret_ids:
            env |= self._variables(secret_id)
        return env

    def _variables(self, secret_id: str) -> Mapping[str, str]:
        if secret_id not in self._secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret {secret_id} not found")
        return self._secrets[secret_id]
