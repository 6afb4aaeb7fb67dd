"""What ``janus up`` leaves on disk while it runs, so that ``status``, ``down`` and ``chat`` find the cluster.

One directory per cluster name, readable by its user alone: ``state.json``, ``secret``, ``control.sock``, ``lock`` and
the logs. The lock is held for as long as ``janus up`` runs, so a state file left behind by a crash is never taken for a
live cluster.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from janus.errors import ConfigError


class InstanceState(msgspec.Struct, frozen=True, kw_only=True):
    """One instance in the state file."""

    role: str
    name: str
    pid: int
    port: int
    ops_port: int
    log: str


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """The state file of one running cluster."""

    name: str
    #: The process that runs ``janus up``.
    pid: int
    url: str
    #: ``host:port`` that instances register at.
    controller: str
    #: Base URL of the controller's operations endpoint.
    controller_ops: str
    secret_file: str
    model: str
    served_model_name: str
    instances: list[InstanceState]


class RunDirectory:
    """The directory of the cluster ``name``; the object of ``with`` holds its lock."""

    def __init__(self, name: str, *, environ: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self.path = _base(environ) / name
        self._environ = environ
        self._lock: int | None = None

    def __enter__(self) -> RunDirectory:
        """Raises ConfigError when a cluster of this name runs already."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                "--name",
                f"cluster {self.name!r} is already running",
                f"run janus down --name {self.name}, or choose another --name",
            ) from error
        self._lock = lock
        for stale in (*self.path.glob("*.log"), self.path / "state.json", self.control_socket):
            stale.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in ("state.json", "secret", self.control_socket.name):
            (self.path / file).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def control_socket(self) -> Path:
        """Where ``janus up`` takes operations, see ``janus.cluster.control``."""
        return self.path / "control.sock"

    def write_secret(self, secret: str) -> Path:
        """Store the cluster secret, for the user's own tools; returns the file's path."""
        return self._write("secret", secret.encode() + b"\n")

    def secret(self) -> str:
        """Return what ``write_secret`` stored.

        Raises:
            ConfigError: no cluster of this name runs.
        """
        try:
            return (self.path / "secret").read_text().strip()
        except OSError as error:
            raise self._not_running() from error

    def write(self, state: ClusterState) -> None:
        """Replace the state file in one step."""
        self._write("state.json", msgspec.json.format(msgspec.json.encode(state), indent=2))

    def read(self) -> ClusterState:
        """Return the state of the running cluster.

        Raises:
            ConfigError: no cluster of this name runs.
        """
        try:
            state = msgspec.json.decode((self.path / "state.json").read_bytes(), type=ClusterState)
        except (OSError, msgspec.DecodeError) as error:
            raise self._not_running() from error
        if not self.locked():
            raise self._not_running()
        return state

    def locked(self) -> bool:
        """Whether a process holds this directory's lock, that is, whether the cluster runs."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _not_running(self) -> ConfigError:
        others = [other for other in running_clusters(self._environ) if other != self.name]
        remedy = f"running are: {', '.join(others)}" if others else "start one with janus up --model PATH"
        return ConfigError("--name", f"no cluster {self.name!r} is running", remedy)

    def _write(self, file: str, content: bytes) -> Path:
        path, part = self.path / file, self.path / f".{file}.part"
        part.touch(mode=0o600)
        part.write_bytes(content)
        part.replace(path)
        return path


def running_clusters(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of this user's clusters that run now."""
    base = _base(environ)
    names = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    return [name for name in names if RunDirectory(name, environ=environ).locked()]


def _base(environ: Mapping[str, str]) -> Path:
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "janus"
    cache = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "janus" / "run"
