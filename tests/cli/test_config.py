"""Options: precedence of the sources, and an error that names the field and the remedy for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from janus.config import AttentionOptions, ControllerOptions, ExpertOptions, GatewayOptions, UpOptions
from janus.config.cli import run_service
from janus.config.fields import parse_duration
from janus.config.sources import known_environment, load_config, resolve
from janus.errors import ConfigError
from janus_cli.options import ChatOptions, DoctorOptions, StatusOptions

SECRET = "correct horse"
ENV = {"JANUS_SECRET": SECRET}
GIVEN = {"controller": "10.0.0.1:7700", "model": "/models/m"}


def expert(cli: dict[str, Any] | None = None, env: dict[str, str] | None = None, config: Path | None = None) -> Any:
    return resolve(ExpertOptions, cli=GIVEN | (cli or {}), environ=ENV | (env or {}), config=config)


def write(path: Path, text: str) -> Path:
    file = path / "cluster.toml"
    file.write_text(text)
    return file


def test_command_line_before_environment_before_file_before_default(tmp_path: Path) -> None:
    config = write(tmp_path, "[expert]\nthreads = 1\nslots = 1\nport = 1\n[common]\nport = 2\nops_port = 2\n")
    env = {"JANUS_EXPERT_THREADS": "2", "JANUS_EXPERT_SLOTS": "2"}
    options = expert({"threads": "3"}, env, config)
    assert (options.threads, options.slots, options.common.port, options.common.ops_port) == (3, 2, 1, 2)
    assert options.dtype == "float32"


def test_an_instance_without_a_name_gets_a_unique_one() -> None:
    name = expert({"node": "rack7"}).common.name
    assert name.startswith("expert-rack7-")
    assert name.rsplit("-", 1)[1].isdecimal()


def test_the_controller_needs_no_controller() -> None:
    options = resolve(ControllerOptions, cli={"model": "/m"}, environ=ENV)
    assert options.common.controller == ""


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    key, secret = tmp_path / "key", tmp_path / "secret"
    key.write_text("sk-abc\n")
    secret.write_text("another long one\n")
    environ = {"JANUS_SECRET_FILE": str(secret), "JANUS_GATEWAY_API_KEY_FILE": str(key)}
    options = resolve(GatewayOptions, cli=GIVEN, environ=environ)
    assert (options.common.secret, options.api_key) == ("another long one", "sk-abc")
    assert "another long one" not in repr(options)
    assert "sk-abc" not in repr(options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("64KiB", 65536), ("1.5 GiB", 3 << 29), ("2M", 2 << 20), ("8mib", 8 << 20), ("8192B", 8192)],
)
def test_sizes_take_binary_suffixes(text: str, expected: int) -> None:
    options = resolve(AttentionOptions, cli=GIVEN | {"kv_cache_bytes": text}, environ=ENV)
    assert options.kv_cache_bytes == expected


MISTAKES: list[tuple[dict[str, Any], dict[str, str], str, str]] = [
    ({"threads": "-1"}, {}, "--threads", "at least 0"),
    ({"threads": "two"}, {}, "--threads", "not a whole number"),
    ({"threads": "1.5"}, {}, "--threads", "not a whole number"),
    ({"dtype": "fp8"}, {}, "--dtype", "float32, bfloat16"),
    ({"port": "70000"}, {}, "--port", "at most 65535"),
    ({"ops_port": "-2"}, {}, "--ops-port", "at least -1"),
    ({"drain_timeout_s": "nan"}, {}, "--drain-timeout", "at least 0"),
    ({"drain_timeout_s": "soon"}, {}, "--drain-timeout", "not a number"),
    ({"drain_timeout_s": "3 parsecs"}, {}, "--drain-timeout", "a duration such as 150ms"),
    ({"drain_timeout_s": "-2ms"}, {}, "--drain-timeout", "at least 0"),
    ({"controller": "nowhere"}, {}, "--controller", "HOST:PORT"),
    ({"controller": "host:0"}, {}, "--controller", "HOST:PORT"),
    ({"host": ""}, {"JANUS_EXPERT_HOST": ""}, "--host", "is empty"),
    ({"secret": "/no/such/file"}, {}, "--secret-file", "cannot read"),
    ({"host": "a b"}, {}, "--host", "no address"),
    ({"name": "a/b"}, {}, "--name", "letters, digits"),
    ({"node": "rack\n7"}, {}, "--node", "letters, digits"),
    ({"drain_timeout_s": "inf"}, {}, "--drain-timeout", "a finite number of seconds"),
    ({"speed": "inf"}, {}, "--speed", "a finite number"),
    ({"threads": "9" * 400}, {}, "--threads", "at most 4096"),
    ({"load_rate_bytes": "1e400"}, {}, "--load-rate", "not a size"),
    ({}, {"JANUS_SECRET": "short"}, "JANUS_SECRET", "shorter than 8"),
    ({}, {"JANUS_EXPERT_THREADS": "many"}, "JANUS_EXPERT_THREADS", "not a whole number"),
    ({}, {"JANUS_EXPERT_SLOTS": "-4"}, "JANUS_EXPERT_SLOTS", "at least 0"),
    ({}, {"JANUS_EXPERT_THREDS": "2"}, "JANUS_EXPERT_THREDS", "did you mean JANUS_EXPERT_THREADS?"),
    ({}, {"JANUS_FROBNICATE": "2"}, "JANUS_FROBNICATE", "unset it"),
]


@pytest.mark.parametrize(("cli", "env", "field", "words"), MISTAKES)
def test_a_mistake_names_where_it_was_made_and_the_remedy(
    cli: dict[str, Any], env: dict[str, str], field: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        expert(cli, env)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.remedy


def test_what_janus_up_passes_on_may_stand_in_the_common_section(tmp_path: Path) -> None:
    config = write(tmp_path, '[common]\ntransport = "tcp"\nlog_level = "debug"\nhost = "10.0.0.1"\n[up]\nport = 1\n')
    options = resolve(UpOptions, cli={"model": "/m", "log_level": "error"}, environ={}, config=config)
    assert (options.transport, options.log_level, options.port) == ("tcp", "error", 1)
    assert options.host == "127.0.0.1"  # of the HTTP endpoint: another thing than where instances are reached


@pytest.mark.parametrize(
    ("cli", "environ", "text", "expected"),
    [
        ([], {}, "", ()),
        (
            ["expert.slots=3", "expert.speed=2"],
            {"JANUS_UP_SET": "expert.slots=4"},
            "",
            ("expert.slots=3", "expert.speed=2"),
        ),
        (
            [],
            {"JANUS_UP_SET": "expert.slots=4 'controller.state-dir=/a b'"},
            "",
            ("expert.slots=4", "controller.state-dir=/a b"),
        ),
        (None, {}, "[up]\nset = ['expert.slots=5']\n", ("expert.slots=5",)),
    ],
)
def test_an_option_that_may_be_repeated(
    tmp_path: Path, cli: list[str] | None, environ: dict[str, str], text: str, expected: tuple[str, ...]
) -> None:
    options = resolve(UpOptions, cli={"model": "/m", "set": cli}, environ=environ, config=write(tmp_path, text))
    assert options.set == expected


def test_a_repeated_option_that_is_no_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.toml: up\.set: 3 is not a list of texts"):
        resolve(UpOptions, cli={"model": "/m"}, environ={}, config=write(tmp_path, "[up]\nset = 3\n"))
    with pytest.raises(ConfigError, match="JANUS_UP_SET: No closing quotation"):
        resolve(UpOptions, cli={"model": "/m"}, environ={"JANUS_UP_SET": "'expert.slots=3"})


FILES = [
    ("[expert]\nthread = 2\n", "cluster.toml: expert.thread", "did you mean threads?"),
    ("[experts]\nthreads = 2\n", "cluster.toml: [experts]", "did you mean expert?"),
    ("[gateway]\ndtype = 'float32'\n", "cluster.toml: gateway.dtype", "is not an option"),
    ("expert = 3\n", "cluster.toml: expert", "[expert]"),
    ("[expert\n", "--config", "is not TOML"),
    ("[expert]\nthreads = 'two'\n", "cluster.toml: expert.threads", "not a whole number"),
    ("[expert]\nthreads = true\n", "cluster.toml: expert.threads", "boolean"),
    ("[expert]\nthreads = -3\n", "cluster.toml: expert.threads", "at least 0"),
    ("[expert]\nname = 3\n", "cluster.toml: expert.name", "not text"),
    ("[common]\nsecret = 'in the clear'\n", "cluster.toml: common.secret", "secret_file"),
    ("[common]\nsecret_file = 3\n", "cluster.toml: common.secret_file", "cannot read"),
]


@pytest.mark.parametrize(("text", "field", "words"), FILES)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(ExpertOptions, cli=GIVEN, environ={} if "secret" in text else ENV, config=write(tmp_path, text))
    assert caught.value.field == field
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("cls", "cli", "environ", "field"),
    [
        (ExpertOptions, {"controller": "h:1"}, ENV, "--model"),
        (ExpertOptions, {"model": "/m"}, ENV, "--controller"),
        (ExpertOptions, GIVEN, {}, "--secret-file"),
        (AttentionOptions, GIVEN | {"token_budget": "8"}, ENV, "--token-budget"),
        (AttentionOptions, GIVEN | {"block_size": "0"}, ENV, "--block-size"),
        (GatewayOptions, GIVEN | {"max_body_bytes": "lots"}, ENV, "--max-body"),
        (GatewayOptions, GIVEN | {"http_host": "a/b"}, ENV, "--http-host"),
        (AttentionOptions, GIVEN | {"max_running": "100000"}, ENV, "--max-running"),
        (UpOptions, {"model": "/m", "name": "../x"}, {}, "--name"),
        (UpOptions, {"model": "/m", "host": "http://a"}, {}, "--host"),
        (UpOptions, {"model": "/m"}, {"JANUS_UP_PRELOAD": "maybe"}, "JANUS_UP_PRELOAD"),
        (DoctorOptions, {"controller": "b:0"}, {}, "--controller"),
        (DoctorOptions, {"peers": "a:1, b"}, {}, "--peers"),
        (StatusOptions, {"controller_ops": "a:8080"}, {}, "--controller-ops"),
        (ChatOptions, {"url": "a:8000"}, {}, "--url"),
        (UpOptions, {"model": "/m", "attention": "0"}, {}, "--attention"),
    ],
)
def test_what_is_required_and_what_contradicts(
    cls: type, cli: dict[str, str], environ: dict[str, str], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(cls, cli=cli, environ=environ)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--thread", "2"), "error: --thread: is no option; did you mean --threads?"),
        (("--threads",), "error: --threads: needs a value; see janus-expert-server --help"),
        (("stray", "words"), "error: stray words: is not expected; see janus-expert-server --help"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_service(ExpertOptions, lambda _: pytest.fail("it ran"), prog="janus-expert-server", help="", args=words)
    assert caught.value.code == 2
    assert capsys.readouterr().err == said + "\n"


def test_other_services_variables_are_no_mistake() -> None:
    assert expert(env={"JANUS_GATEWAY_MAX_QUEUE": "7"}).threads == 0
    assert "JANUS_UP_EXPERTS" in known_environment()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("150ms", 0.15), ("2s", 2.0), ("2 S", 2.0), ("5min", 300.0), ("1.5h", 5400.0), (".5m", 30.0), ("250us", 25e-5)],
)
def test_durations_may_be_said_with_their_unit(said: str, seconds: float) -> None:
    assert parse_duration(said) == pytest.approx(seconds)


def test_a_number_alone_is_seconds() -> None:
    assert parse_duration("0.15") == parse_duration(0.15) == 0.15
    assert parse_duration("1e-3") == 0.001
    for word in ("", "s", "1 2s", True):
        with pytest.raises(ValueError, match="not a number of seconds"):
            parse_duration(word)
