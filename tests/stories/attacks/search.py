"""Run by a tool of the agent: where in the sandbox its variable QUIET_TOKEN is, but in the agent."""

import json
import os

wanted = os.environb[b"QUIET_TOKEN"]
found, looked = [], 0


def look(path: str) -> None:
    global looked  # noqa: PLW0603
    try:
        with open(path, "rb") as file:
            content = file.read(16 * 1024 * 1024)
    except OSError:
        return
    looked += 1
    if wanted in content:
        found.append(path)


for top in ("/workspace", "/home", "/tmp", "/run", "/etc", "/dev/shm", "/opt/agent-runtime/lib"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                look(path)
for pid in filter(str.isdigit, os.listdir("/proc")):
    look(f"/proc/{pid}/cmdline")
look("/proc/1/environ")
with open(f"/proc/{os.environ['CLAUDE_PID']}/stat") as stat:
    look(f"/proc/{stat.read().rpartition(')')[2].split()[1]}/environ")
print("FOUND", json.dumps([found, looked > 10]), "END")
