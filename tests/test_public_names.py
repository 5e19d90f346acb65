"""The public surface is small and known; whoever changes it changes this list."""

import agent_runtime


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(agent_runtime.__all__) == [
        "Agent",
        "AgentProfile",
        "AgentRuntime",
        "Authenticator",
        "Block",
        "Credentials",
        "Event",
        "EventLog",
        "Gateway",
        "NewSession",
        "PersistenceAdapter",
        "Position",
        "Principal",
        "RuntimeConfig",
        "RuntimeFault",
        "SandboxProvider",
        "SessionManager",
    ]
    assert all(hasattr(agent_runtime, name) for name in agent_runtime.__all__)
