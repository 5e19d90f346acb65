"""The protocol of the installed SDK is the one that the local Modal was written for, and a drift is seen."""

from dataclasses import replace

import pytest
from modal.sandbox import _filesystem

from agent_runtime_modal_local import drift as guard
from agent_runtime_modal_local.drift import CONTROL, DATA, RPCS, USED, WHOLE, Relied, drift
from agent_runtime_modal_local.router import Router
from agent_runtime_modal_local.rpc import Service
from agent_runtime_modal_local.sandbox_calls import SandboxCalls
from agent_runtime_modal_local.toolchain import FS_TOOL


def test_the_installed_protocol_is_the_one_that_we_rely_on() -> None:
    assert drift() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Relied(release="1.5"), "and not 1.5"),
        (Relied(rpcs={**RPCS, CONTROL: "SandboxCreateV3"}), f"{CONTROL} has no SandboxCreateV3"),
        (Relied(rpcs={**RPCS, DATA: "TaskExecKill"}), f"{DATA} has no TaskExecKill"),
        (Relied(rpcs={"modal.Nobody": "Do"}), "modal.Nobody has no Do"),
        (Relied(used={**USED, "TaskLogs": "data colour"}), "TaskLogs has no colour"),
        (Relied(used={**USED, "Unheard": "of"}), "Unheard has no of"),
        (
            Relied(whole={**WHOLE, "NetworkAccess": "allowed_cidrs allowed_domains"}),
            "NetworkAccess has network_access_type, which nobody has thought about",
        ),
        (replace(Relied(), statuses=Relied().statuses + " PREEMPTED"), "a sandbox cannot end as PREEMPTED"),
        (replace(Relied(), statuses="UNSPECIFIED"), "a sandbox may end as TIMEOUT"),
    ],
)
def test_a_wrong_expectation_is_found_out(wrong: Relied, said: str) -> None:
    found = drift(wrong)
    assert any(sentence.endswith(said) for sentence in found), found


def test_a_server_does_not_start_over_a_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "version", lambda _: "1.7.0")
    with pytest.raises(guard.Drifted, match=r"modal 1\.7\.0 is installed"):
        guard.insist()


@pytest.mark.parametrize(("service", "kind"), [(CONTROL, SandboxCalls), (DATA, Router)])
def test_what_is_served_is_what_is_guarded(service: str, kind: type[Service]) -> None:
    methods = [getattr(kind, name) for name in dir(kind)]
    served = {rpc for method in methods for rpc in getattr(method, "serves", ())}
    assert served == set(RPCS[service].split())
    assert kind.descriptor.full_name == service


def test_the_tool_for_files_is_where_the_sdk_looks() -> None:
    assert _filesystem._SANDBOX_FS_TOOLS_PATH == FS_TOOL
