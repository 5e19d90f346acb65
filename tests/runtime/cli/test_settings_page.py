"""The page of settings names all that there are, with their defaults."""

import re
from pathlib import Path

from pydantic.alias_generators import to_camel

from agent_runtime.cli.settings import Settings, read_settings

PAGE = (Path(__file__).parents[3] / "docs" / "settings.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))


def test_the_page_names_every_setting_and_no_other() -> None:
    assert list(ROWS) == [to_camel(name) for name in Settings.model_fields]


def test_the_page_tells_the_defaults() -> None:
    told = {name: default.strip("`") for name, default in ROWS.items() if default != "see right"}
    defaults = Settings().model_dump(by_alias=True, mode="json")
    for name, default in told.items():
        assert _as_told(defaults[name]) == default, name


def test_a_file_may_hold_all_of_them(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("agentIdleTimeoutS: 5\nviewerBacklogBytes: 100000\nfileRules: {ignore: [build]}\n")
    settings = read_settings(file, {"port": 0})
    assert (settings.agent_idle_timeout_s, settings.viewer_backlog_bytes) == (5, 100_000)
    assert settings.file_rules.ignore == ("build",)


def _as_told(value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 1 << 20 and not value % (1 << 20):
        return f"{value >> 20} MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)
