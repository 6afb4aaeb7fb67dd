"""The compose file against the specification's schema and our own options; the Dockerfile against the Makefile."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from janus.config import AttentionOptions, ControllerOptions, ExpertOptions, GatewayOptions
from janus.config.fields import option_fields
from janus.config.sources import resolve
from janus.core.membership import roster

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVICES: dict[str, Any] = {
    "janus-gateway": GatewayOptions,
    "janus-attention-server": AttentionOptions,
    "janus-expert-server": ExpertOptions,
    "janus-placement-controller": ControllerOptions,
}


def interpolate(text: str) -> str:
    """``${NAME:-default}`` -> ``default``, as compose does where nothing is set."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(interpolate((ROOT / "compose" / "docker-compose.yml").read_text()))
    return loaded


def of_profile(document: dict[str, Any], profile: str) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in document["services"].items() if profile in service["profiles"]}


def options_of(service: dict[str, Any]) -> Any:
    """The options that the service's command line gives, checked as the service itself would."""
    prog, *arguments = shlex.split(service["command"])
    cls = SERVICES[prog]
    names = {item.flag: item.name for item in option_fields(cls)}
    given = {names[flag]: value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}
    assert given.pop("secret") == "/run/secrets/janus_secret"
    return resolve(cls, cli=given, environ={"JANUS_SECRET": "from the file"})


def test_it_is_a_compose_file(document: dict[str, Any]) -> None:
    schema = json.loads((HERE / "compose_spec.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(document, schema, cls=jsonschema.Draft7Validator)
    broken = {**document, "services": {"x": {"comand": "y"}}}
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(broken, schema, cls=jsonschema.Draft7Validator)


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_instances_are_those_that_the_controller_waits_for(document: dict[str, Any], profile: str) -> None:
    services = of_profile(document, profile)
    options = {name: options_of(service) for name, service in services.items()}
    (controller,) = [each for each in options.values() if isinstance(each, ControllerOptions)]
    expected = roster(
        attention=controller.expect_attention, experts=controller.expect_experts, gateways=controller.expect_gateways
    )
    names = {each.common.name for each in options.values() if each is not controller}
    assert names == set(expected)
    for name, each in options.items():
        hostname = services[name]["hostname"]
        assert each.common.host == hostname
        reachable = services[name]["networks"]
        assert name == hostname or hostname in reachable["janus"]["aliases"]
        if each is not controller:
            assert each.common.controller == f"{controller.common.host}:{controller.common.port}"


def test_only_what_computes_reserves_a_gpu(document: dict[str, Any]) -> None:
    reserving = {name for name, service in document["services"].items() if "deploy" in service}
    assert reserving == {"attention-0-gpu", "expert-0-gpu", "expert-1-gpu"}


def test_every_service_proves_the_secret_and_is_watched(document: dict[str, Any]) -> None:
    assert document["secrets"] == {"janus_secret": {"file": "./secret"}}
    for service in document["services"].values():
        assert service["secrets"] == ["janus_secret"]
        assert f":{options_of(service).common.ops_port}/health" in service["healthcheck"]["test"][-1]
        compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_the_endpoint_is_published_on_this_host_only(document: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in document["services"].items() if "ports" in service}
    assert set(published) == {"gateway", "gateway-gpu"}
    assert all(ports == ["127.0.0.1:8000:8000"] for ports in published.values())


def test_the_image_is_built_by_the_makefile(document: dict[str, Any]) -> None:
    dockerfile = (ROOT / "compose" / "Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE))
    runs = re.findall(r"^RUN make (.*)$", dockerfile, flags=re.MULTILINE)
    assert runs
    for run in runs:
        words = shlex.split(run)
        assert {word for word in words if "=" not in word} <= targets
        assert {word.partition("=")[0] for word in words if "=" in word} <= variables
    assert "pip install" not in dockerfile
    arguments = set(re.findall(r"^ARG ([A-Z_]+)", dockerfile, flags=re.MULTILINE))
    for service in document["services"].values():
        assert set(service["build"]["args"]) <= arguments
        assert (ROOT / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_image_has_what_the_build_needs() -> None:
    dockerfile = (ROOT / "compose" / "Dockerfile").read_text()
    copied = set(" ".join(re.findall(r"^COPY (.*) \S+$", dockerfile, flags=re.MULTILINE)).split())
    assert {"Makefile", "pyproject.toml", "README.md", "LICENSE", "src", "services", "kernels"} <= copied
    assert all((ROOT / name).exists() for name in copied)
