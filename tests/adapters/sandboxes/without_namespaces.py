"""Local sandboxes without namespaces keep what the port promises.

Not collected by itself: as root it takes a Python that others can run too, which the environment of the
tests may not be. `test_landlock` runs it with one that is.
"""

from agent_runtime.ports import SandboxProvider
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.adapters.sandboxes import test_sandbox_contract as contract

TIERS = (Tier.LANDLOCK_CGROUP, Tier.LANDLOCK)


class TestLocalWithoutNamespaces(contract.OnThisMachine):
    in_a_row = 40

    def provider(self) -> SandboxProvider:
        return LocalSandboxes(self.root, tiers=TIERS)
