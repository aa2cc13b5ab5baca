"""Compiles the generator when its source has changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("generator.c")
FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
TLS_FLAGS: Final = ("-DWITH_TLS",)
TLS_LIBRARIES: Final = ("-lssl", "-lcrypto")
DEADLINE_S: Final = 120.0


class NoGenerator(Exception):
    """The generator cannot be made; the text says what is missing."""


def compiled(folder: Path, *, tls: bool, compiler: str) -> Path:
    """Return the generator, which is compiled into `folder` unless it is there already."""
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode()).hexdigest()[:12]
    program = folder / f"generator-{'tls' if tls else 'plain'}-{digest}"
    if program.exists():
        return program
    found = shutil.which(compiler)
    if found is None:
        raise NoGenerator(f"there is no C compiler {compiler}; install one (Debian: gcc), or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    made = program.with_suffix(".new")
    command = [found, *FLAGS, *(TLS_FLAGS if tls else ()), "-o", str(made), str(SOURCE)]
    command += TLS_LIBRARIES if tls else ()
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        hint = "; TLS needs the headers of OpenSSL 3 (Debian: libssl-dev)" if tls else ""
        raise NoGenerator(f"{compiler} cannot compile {SOURCE.name}{hint}\n{done.stderr.strip()}")
    made.rename(program)
    return program
