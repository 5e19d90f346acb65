"""What a host chooses about its sandboxes on Modal: the section `modal` of the settings.

Every field is read in this package. Modal's token is none of them: it comes from Modal's own
configuration (`modal token new`) or from MODAL_TOKEN_ID and MODAL_TOKEN_SECRET.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from agent_runtime.frozen import Strict

_DAY_S: Final = 24 * 3600

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,63}$")]
_ImageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,127}(:[A-Za-z0-9._-]{1,127})?$")]


class ModalOptions(Strict):
    """Where and how sandboxes are made on Modal.

    `app`: the app that they belong to; made where it is not there. `environment`: None: the account's
    own choice. `image`: a published image for all profiles; None: the one that a profile's needs
    describe, built when it is not published yet. `regions`, `cloud`: None or empty: anywhere.
    `lifetime_s`: when Modal ends a sandbox (24 hours at most); a profile may ask for less.
    `idle_s`: when Modal ends one that nobody is attached to; None: the runner's own bound only.
    `start_within_s`: from asking for a sandbox to its runner's being there, with a cold image.
    `call_within_s`: for each single question to Modal.
    """

    app: _Name = "agent-runtime"
    environment: _Name | None = None
    image: _ImageName | None = None
    regions: tuple[_Name, ...] = Field(default=(), max_length=20)
    cloud: _Name | None = None
    lifetime_s: int = Field(default=20 * 3600, ge=60, le=_DAY_S)
    idle_s: int | None = Field(default=None, ge=30, le=_DAY_S)
    start_within_s: float = Field(default=120.0, gt=0, le=3600)
    call_within_s: float = Field(default=30.0, gt=0, le=600)
    snapshot_within_s: float = Field(default=120.0, gt=0, le=3600)
    snapshot_days: int = Field(default=30, ge=1, le=365)
