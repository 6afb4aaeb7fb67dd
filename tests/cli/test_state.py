"""The run directory: one cluster per name, readable by its user alone, never mistaken for alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus.cluster.state import ClusterState, RunDirectory, running_clusters
from janus.errors import ConfigError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


STATE = ClusterState(
    name="blue",
    pid=1,
    url="http://127.0.0.1:1",
    controller="127.0.0.1:2",
    controller_ops="http://127.0.0.1:3",
    secret_file="/s",
    model="/m",
    served_model_name="m",
    instances=[],
)


def test_state_is_found_while_the_cluster_runs_and_gone_afterwards(environ: dict[str, str]) -> None:
    with RunDirectory("blue", environ=environ) as directory:
        directory.write(STATE)
        assert RunDirectory("blue", environ=environ).read() == STATE
        assert running_clusters(environ) == ["blue"]
    assert running_clusters(environ) == []
    with pytest.raises(ConfigError, match="no cluster 'blue' is running"):
        RunDirectory("blue", environ=environ).read()


def test_a_name_runs_once(environ: dict[str, str]) -> None:
    with (
        RunDirectory("blue", environ=environ),
        RunDirectory("green", environ=environ),
        pytest.raises(ConfigError, match="already running"),
    ):
        RunDirectory("blue", environ=environ).__enter__()


def test_what_a_crash_left_behind_is_not_a_cluster(environ: dict[str, str]) -> None:
    directory = RunDirectory("blue", environ=environ)
    directory.path.mkdir(parents=True)
    directory.write(STATE)
    with pytest.raises(ConfigError, match="no cluster 'blue'"):
        directory.read()


def test_files_are_for_the_user_alone(environ: dict[str, str]) -> None:
    with RunDirectory("blue", environ=environ) as directory:
        secret = directory.write_secret("very secret")
        directory.write(STATE)
        assert secret.stat().st_mode & 0o777 == 0o600
        assert (directory.path / "state.json").stat().st_mode & 0o777 == 0o600
        assert directory.path.stat().st_mode & 0o777 == 0o700
        assert secret.read_text() == "very secret\n"
    assert not secret.exists()
