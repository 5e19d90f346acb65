"""FileProfiles: agent profiles from a folder of files, read again when they change.

    reviewer.yaml   the fields of `AgentProfile`, camelCase or snake_case; also `.yml` and `.json`
    writer.md       the same fields as YAML front matter between two `---` lines; the text is `instructions`

`profileId` and `name` default to the file's stem. A file that cannot be used becomes one sentence in
`problems()`, with the file's name and the field; all others go on working. Only plain YAML is read:
no tags, no aliases, bounded in size and depth. Subfolders and hidden files are left alone. Not here:
the profile `default`, and profiles in a store (`ports.PersistenceAdapter`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from agent_runtime.profile import AgentProfile

MAX_FILE_BYTES: Final = 256 * 1024
MAX_FILES: Final = 1000
MAX_DEPTH: Final = 32
"""Collections inside collections; a profile needs four."""

_YAML: Final = {".yaml", ".yml"}
_MARKDOWN: Final = ".md"
_JSON: Final = ".json"
_LOADER: Final[type[Any]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_Stamp = tuple[int, int, int]


class _Unusable(Exception):
    """Why a file is no profile: the end of a sentence that begins with the file's name."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file gave when it was last read: a profile, or the reason why not."""

    stamp: _Stamp
    profile: AgentProfile | None
    problem: str | None


class FileProfiles:
    """The profiles of one folder. Each call looks at names and times, and reads what changed."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._read: dict[str, _Read] = {}

    def profiles(self) -> tuple[AgentProfile, ...]:
        """All usable profiles, sorted by id."""
        return self._look()[0]

    def problems(self) -> tuple[str, ...]:
        """One sentence for each file that cannot be used, and for a folder that cannot be read."""
        return self._look()[1]

    def _look(self) -> tuple[tuple[AgentProfile, ...], tuple[str, ...]]:
        try:
            self._refresh()
        except OSError as error:
            return (), (f"The folder of profiles cannot be read: {_reason(error)}.",)
        except _Unusable as error:
            return (), (str(error),)
        usable: dict[str, tuple[AgentProfile, str]] = {}
        problems: list[str] = []
        for name, read in sorted(self._read.items()):
            if read.profile is None:
                problems.append(f"{_shown(name)}: {read.problem}")
            elif first := usable.get(read.profile.profile_id):
                problems.append(f"{_shown(name)}: profileId is taken by {_shown(first[1])}.")
            else:
                usable[read.profile.profile_id] = (read.profile, name)
        return tuple(usable[profile_id][0] for profile_id in sorted(usable)), tuple(problems)

    def _refresh(self) -> None:
        """Bring what was read up to the folder. Raises `OSError` and `_Unusable` for the folder itself."""
        found = [path for path in self._folder.iterdir() if _is_profile_name(path)]
        if len(found) > MAX_FILES:
            raise _Unusable(f"The folder of profiles holds more than {MAX_FILES} files.")
        known, self._read = self._read, {}
        for path in found:
            try:
                status = path.stat()
            except OSError:
                continue  # gone since it was listed, or a link to nowhere
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            before = known.get(path.name)
            if not path.is_file():
                continue
            self._read[path.name] = before if before and before.stamp == stamp else _read(path, stamp)


def _is_profile_name(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in {*_YAML, _JSON, _MARKDOWN}


def _read(path: Path, stamp: _Stamp) -> _Read:
    try:
        return _Read(stamp, _profile(path), None)
    except OSError as error:
        return _Read(stamp, None, f"cannot be read: {_reason(error)}.")
    except _Unusable as error:
        return _Read(stamp, None, str(error))


def _profile(path: Path) -> AgentProfile:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise _Unusable(f"is larger than {MAX_FILE_BYTES // 1024} KiB.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unusable("is not UTF-8 text.") from error
    fields = {**_fields(path.suffix.lower(), text)}
    for alias, name in (("profileId", "profile_id"), ("name", "name")):
        if alias not in fields and name not in fields:
            fields[alias] = path.stem
    try:
        return AgentProfile.model_validate(fields)
    except ValidationError as error:
        raise _Unusable(_first_complaint(error)) from error


def _fields(suffix: str, text: str) -> Mapping[str, Any]:
    if suffix == _JSON:
        return _mapping(_load_json(text))
    if suffix in _YAML:
        return _mapping(_load_yaml(text))
    lines = text.splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    if len(ends) < 2 or ends[0] != 0:  # noqa: PLR2004 - the line before and the line after
        raise _Unusable("has no front matter between two --- lines.")
    front = _mapping(_load_yaml("".join(lines[1 : ends[1]])))
    body = "".join(lines[ends[1] + 1 :]).strip()
    if body and "instructions" in front:
        raise _Unusable("instructions are given in the front matter and again as text.")
    return {**front, "instructions": body} if body else front


def _mapping(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _Unusable("does not hold fields with names.")
    return value


def _load_json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Unusable(f"is not JSON (line {error.lineno}: {error.msg}).") from error
    except RecursionError as error:
        raise _Unusable("is nested too deep.") from error


def _load_yaml(text: str) -> object:
    try:
        _check_yaml(text)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - the loader is the safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise _Unusable(f"is not YAML ({where}{error.problem or error.context}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _Unusable("is not YAML that can be read.") from error


def _check_yaml(text: str) -> None:
    """Refuse what grows when it is read: a few lines of aliases can stand for gigabytes."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise _Unusable(f"uses a YAML alias (line {_line(event)}); write the value out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _Unusable("is nested too deep.")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{field}: there is no such field."
    return f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}."


def _reason(error: OSError) -> str:
    return (error.strerror or "it does not answer").lower()


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
