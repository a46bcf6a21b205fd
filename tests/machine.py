"""`hai` on a machine of its own: a name, a mounted drive, and owners elsewhere that are given up after seconds.

HAI_TEST_MACHINE is the host's name, HAI_TEST_DRIVE a folder that counts as the mount of a drive.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import hai.paths

NAME, DRIVE = os.environ["HAI_TEST_MACHINE"], Path(os.environ["HAI_TEST_DRIVE"])
socket.gethostname = lambda: NAME
hai.paths.is_mount = lambda folder, table=None: Path(folder).is_relative_to(DRIVE)

from hai.checkpoint import owner  # noqa: E402  (what it imports is replaced above)

owner.HEARTBEAT_S, owner.STALE_S = 0.5, 3.0  # type: ignore[misc]

from hai.cli import main  # noqa: E402

main()
