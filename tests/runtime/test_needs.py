"""What a profile asks of its sandbox: bounded by the runtime, refused where it makes no sense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_runtime.needs import Dependencies, Egress, Resources, SandboxNeeds

amounts = st.none() | st.integers(64 * 1024**2, 2**50)
resources = st.builds(
    Resources,
    cpu=st.none() | st.floats(0.1, 128),
    memory_bytes=amounts,
    processes=st.none() | st.integers(16, 100_000),
    disk_bytes=amounts,
)


@given(resources, resources)
def test_nobody_gets_more_than_the_runtime_gives(asked: Resources, bounds: Resources) -> None:
    given_ = asked.within(bounds)
    for name in Resources.model_fields:
        most, wanted, got = getattr(bounds, name), getattr(asked, name), getattr(given_, name)
        assert got in (most, wanted)
        assert most is None or got <= most
        assert wanted is None or got <= wanted
    assert given_.within(bounds) == given_


@pytest.mark.parametrize(
    "rule", ["pypi.org", "git.example.com:22", "*.pythonhosted.org", "PyPI.org", "[::1]"]
)
def test_a_host_is_a_name_with_a_port_or_without(rule: str) -> None:
    if rule == "[::1]":
        with pytest.raises(ValidationError):
            Egress(hosts=(rule,))
        return
    assert Egress(hosts=(rule,)).hosts == (rule.lower(),)


@pytest.mark.parametrize(
    "rule", ["", "*", "*.", "http://pypi.org", "pypi.org/simple", "a b", "x:0", "x:65536", "x:"]
)
def test_what_is_no_host_is_refused(rule: str) -> None:
    with pytest.raises(ValidationError):
        Egress(hosts=(rule,))


@pytest.mark.parametrize("requirement", ["--index-url=http://evil", "-r x", "", "a b", "a\nb"])
def test_a_requirement_is_no_option_of_its_installer(requirement: str) -> None:
    with pytest.raises(ValidationError):
        Dependencies(pip=(requirement,))


def test_an_unknown_need_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="memoryBytez"):
        SandboxNeeds.model_validate({"resources": {"memoryBytez": 1}})
