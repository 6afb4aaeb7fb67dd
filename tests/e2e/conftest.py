"""Fixtures of the tests that start real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator

import pytest
import torch

from tests.e2e.cases import NAMED, prompts_for, spec_of
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Clusters, Spec
from tests.e2e.hostile import Scene, streams_beside
from tests.e2e.lab import Lab

#: One stays warm for the next tests while another runs; more would only compete for the cores.
_AT_MOST = 2
_LAB = pytest.StashKey[Lab]()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Models, oracles and shared clusters; no process outlives the session."""
    torch.set_num_threads(1)
    clusters = Clusters(tmp_path_factory.mktemp("clusters"), at_most=_AT_MOST)
    lab = request.config.stash[_LAB] = Lab(directory=tmp_path_factory.mktemp("models"), clusters=clusters)
    yield lab
    clusters.close_all()


@pytest.fixture
def own_cluster(lab: Lab) -> Iterator[Callable[[Spec], Cluster]]:
    """Start clusters that a test may break; they end with it."""
    started: list[Cluster] = []

    def start(spec: Spec) -> Cluster:
        started.append(lab.clusters.launch(spec))
        return started[-1].wait_ready()

    yield start
    for cluster in started:
        lab.clusters.close(cluster)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Cluster], Client]]:
    """Make clients of clusters."""
    clients: list[Client] = []

    def make(cluster: Cluster) -> Client:
        clients.append(Client(cluster.base_url))
        return clients[-1]

    yield make
    for client in clients:
        await client.http.aclose()


@pytest.fixture
async def scene(lab: Lab, connect: Callable[[Cluster], Client]) -> AsyncIterator[Scene]:
    """Eight streams beside whatever a test does; afterwards the same processes, all well, and no work left."""
    name, topology = NAMED
    cluster = lab.clusters.get(spec_of(lab.model_dir(name), topology))
    pids = {instance.name: instance.pid for instance in cluster.state().instances}
    async with streams_beside(connect(cluster), prompts_for(lab.oracle(name))):
        yield Scene(cluster)
    assert {instance.name: instance.pid for instance in cluster.state().instances} == pids
    assert cluster.whole()
    cluster.wait_idle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the instances said last with every failure."""
    report = yield
    lab = item.config.stash.get(_LAB, None)
    if report.failed and lab is not None:
        report.sections += [(f"logs of {cluster.spec}", cluster.log_tails()) for cluster in lab.clusters.known]
    return report
