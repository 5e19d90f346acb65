"""Processes: started until they say so, and weighed from outside."""

import os
import sys

import pytest

import processes
from processes import children, cores_given_back, cpu_seconds, cpu_seconds_of_tree, memory, pin, process

BUSY = """
import json, signal, subprocess, sys, time
work = "import sys; sum(range(10**6)); print(1, flush=True); sys.stdin.read()"
child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
while time.process_time() < 0.1:
    pass
print(json.dumps({"child": child.pid, "own": time.process_time()}), flush=True)
signal.pause()
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are weighed through /proc")


@linux_only
async def test_a_process_is_weighed_with_its_children() -> None:
    async with process(sys.executable, "-c", BUSY) as (child, told):
        assert children(child.pid) == [told["child"]]
        assert cpu_seconds(child.pid) == pytest.approx(told["own"], abs=0.05)
        assert cpu_seconds_of_tree(child.pid) > cpu_seconds(child.pid)
        weighed = memory(child.pid)
        assert 0 < weighed.private <= weighed.pss <= weighed.rss


@linux_only
async def test_a_process_that_says_it_is_ready_is_pinned() -> None:
    core = min(os.sched_getaffinity(0))
    async with process(sys.executable, "-c", BUSY, core=core) as (child, _):
        assert os.sched_getaffinity(child.pid) == {core}


@linux_only
def test_a_core_that_is_not_there_is_told_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processes._refused", [])
    assert processes.pinning() == "as wanted"
    assert not pin(os.getpid(), 1000)
    assert processes.pinning().startswith("refused, core 1000: ")


async def test_a_program_that_says_nothing_did_not_start() -> None:
    with pytest.raises(SystemExit, match="did not start"):
        async with process(sys.executable, "-c", ""):
            pass


@linux_only
async def test_what_a_benchmark_pinned_of_itself_is_no_pin_of_the_next_one() -> None:
    before = os.sched_getaffinity(0)
    with cores_given_back():
        pin(os.getpid(), min(before))
        assert os.sched_getaffinity(0) == {min(before)}
    async with process(sys.executable, "-c", BUSY) as (child, _):
        assert os.sched_getaffinity(child.pid) == before
