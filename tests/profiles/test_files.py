"""Profile files: those that are shipped, reading and writing, and what is said of a file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.exchange_cost import LinkCost
from janus.core.planning.catalog import named
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.core.planning.host import Host
from janus.core.planning.performance import Deployment, Load, step_time
from janus.errors import ConfigError
from janus.profiles import load_profile, parse, shipped, to_toml, write_profile

GOOD = """\
janus-profile = 1
name = "mine"
kind = "published"
[device.G]
memory_bytes = { value = 8e10, source = "data sheet" }
weight_bytes_s = { value = 2e12, source = "data sheet x 0.6" }
kv_bytes_s = { value = 2e12, source = "data sheet x 0.6" }
flops_s = { value = 5e14, source = "data sheet x 0.5" }
[intra]
message_s = { value = 1e-6, source = "assumed" }
latency_s = { value = 0, source = "assumed" }
byte_s = { value = 1e-12, source = "assumed" }
[inter]
message_s = { value = 1e-6, source = "assumed" }
latency_s = { value = 5e-6, source = "assumed" }
byte_s = { value = 1e-11, source = "assumed" }
"""
MEASURED = GOOD.replace('"published"', '"measured"')


@pytest.mark.parametrize("name", shipped())
def test_what_is_shipped_says_where_every_rate_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for device in profile.devices.values():
        for key in ("memory_bytes", "weight_bytes_s", "kv_bytes_s", "flops_s", "attention_layer_s", "expert_layer_s"):
            figure = profile.figures[f"{device.name}.{key}"]
            assert figure.value == getattr(device, key)
            assert figure.source != "measured" or figure.low is not None
    if profile.kind == "published":
        assert "nothing measured" in profile.about
        assert not profile.measured
        assert all(figure.low is None and figure.source != "measured" for figure in profile.figures.values())
    else:
        assert {"command", "hardware", "commit", "date"} <= set(profile.measured)


@pytest.mark.parametrize("name", [name for name in shipped() if load_profile(name).kind == "published"])
def test_a_gpu_has_the_memory_that_its_driver_reports(name: str) -> None:
    """In whole MiB: vendors' gigabytes are of either kind, and neither is what can be allocated."""
    for device in load_profile(name).devices.values():
        source = load_profile(name).figures[f"{device.name}.memory_bytes"].source
        assert int(source.split(" MiB, as nvidia-smi reports it")[0]) * 2**20 == device.memory_bytes


def test_the_devices_that_planning_is_shown_with_are_shipped() -> None:
    assert {"h100-80gb", "h200-141gb", "a100-80gb", "h100-h20"} <= set(shipped())
    cheap, fast = load_profile("h100-h20").device("H20-96GB"), load_profile("H100-80GB").device()
    assert cheap.cost_per_hour < fast.cost_per_hour / 2
    assert cheap.memory_bytes > fast.memory_bytes
    assert cheap.flops_s < fast.flops_s / 5


@pytest.mark.parametrize(
    ("attention", "experts", "batch", "a_max", "per_device"),
    [(1, 6, 64, 15.66, 99), (2, 6, 256, 19.98, 240), (4, 6, 512, 20.47, 340), (5, 10, 256, 14.0, 170)],
)
def test_h100_reaches_what_the_paper_reports(
    attention: int, experts: int, batch: int, a_max: float, per_device: float
) -> None:
    """Tokens per second and GPU as in arXiv 2512.13525, figure 9; a_max as in figure 17, at 10 by interpolation."""
    profile = load_profile("h100-80gb")
    device = profile.device()
    step = step_time(
        named("DeepSeek-V2"),
        profile,
        Deployment(attention=attention, experts=experts, attention_device=device, expert_device=device),
        # ShareGPT-like: 16 tokens in, half of 256 out.
        Load(batch=batch, context=144),
        a_max=lambda _experts, _batch: a_max,
    )
    assert batch / step.total_s / (attention + experts) == pytest.approx(per_device, rel=0.17)


def test_attention_on_h100_is_flat_up_to_a_batch_of_about_256() -> None:
    profile = load_profile("h100-80gb")
    device, sizes = profile.device(), named("DeepSeek-V2")

    def products(rows: float) -> float:
        deployment = Deployment(attention=1, experts=6, attention_device=device, expert_device=device)
        # No context: what is left are the products.
        step = step_time(sizes, profile, deployment, Load(batch=rows, context=0), a_max=lambda *_: 20)
        return step.attention_s

    assert products(1) == products(128) == products(256)
    assert products(512) > products(256) * 1.1


figures = st.floats(1e-15, 1e18)
words = st.text(st.characters(codec="utf-8"), max_size=30)


@st.composite
def profiles(draw: st.DrawFn) -> HardwareProfile:
    """Any profile that can be written."""
    measured = draw(st.booleans())
    known: dict[str, Figure] = {}

    def number(key: str) -> float:
        value = draw(figures)
        if measured and draw(st.booleans()):
            known[key] = Figure(value=value, low=value * 0.9, high=value * 1.1)
        else:
            known[key] = Figure(value=value, source=draw(words.filter(bool)))
        return value

    def link(name: str) -> LinkCost:
        return LinkCost(**{key: number(f"{name}.{key}") for key in ("message_s", "latency_s", "byte_s")})

    cores = draw(st.sampled_from([0, 8]))
    names = draw(st.lists(words.filter(bool), min_size=1, max_size=3, unique=True))
    # "intra.message_s" is a link's figure: a device of that name could not be told from it.
    names = [name for name in names if name not in ("intra", "inter", "peers", "host")] or ["cpu"]
    rates = ("memory_bytes", "weight_bytes_s", "kv_bytes_s", "flops_s", "row_s", "cost_per_hour")
    return HardwareProfile(
        name=draw(words),
        kind="measured" if measured else "published",
        about=draw(words),
        devices={
            name: Device(
                name=name,
                shared_cores=draw(st.integers(1, 8) if cores else st.integers(0, 64)),
                **{rate: number(f"{name}.{rate}") for rate in rates},
            )
            for name in names
        },
        intra=link("intra"),
        inter=link("inter"),
        peers=link("peers") if draw(st.booleans()) else None,
        host=Host(cores=cores, gateway_token_s=number("host.gateway_token_s")) if cores else Host(),
        devices_per_node=draw(st.integers(1, 72)),
        links_per_node=draw(st.integers(1, 72)),
        figures=known,
        measured=draw(st.dictionaries(words, words, max_size=3)),
    )


@given(profiles())
def test_what_is_written_reads_the_same(profile: HardwareProfile) -> None:
    assert parse(to_toml(profile), where="file") == profile


def test_a_file_is_found_by_its_path(tmp_path: Path) -> None:
    profile = parse(GOOD, where="text")
    write_profile(profile, tmp_path / "mine.toml")
    assert load_profile(tmp_path / "mine.toml") == load_profile(str(tmp_path / "mine.toml")) == profile


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a file that can be written"):
        write_profile(parse(GOOD, where="text"), tmp_path / "no" / "mine.toml")


def test_a_name_that_nobody_knows_is_answered_with_those_that_are_shipped() -> None:
    with pytest.raises(ConfigError, match="did you mean h100-80gb") as caught:
        load_profile("h100-80")
    assert all(name in caught.value.remedy for name in shipped())


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("janus-profile = 1\n", "", "janus-profile", "begin the file with janus-profile = 1"),
        ("janus-profile = 1", "janus-profile = 7", "janus-profile", "reads version 1"),
        ('"published"', '"guessed"', "kind", "guessed"),
        ("kv_bytes_s", "kv_byte_s", "device.G.kv_byte_s", "did you mean kv_bytes_s"),
        ("kv_bytes_s = {", "row_ss = 1\nkv_bytes_s = {", "device.G.row_ss", "did you mean row_s"),
        ('source = "data sheet" }', 'sauce = "data sheet" }', "device.G.memory_bytes.sauce", "did you mean source"),
        ("latency_s = { value = 5e-6", "latencies = 1\nlatency_s = { value = 5e-6", "inter.latencies", "latency_s"),
        ("value = 8e10", 'value = "much"', "device.G.memory_bytes.value", "expected `float`"),
        ("value = 2e12", "value = 0", "device.G.weight_bytes_s", "give a positive number"),
        ("value = 5e14", "value = inf", "device.G.flops_s", "give a finite number"),
        ("value = 5e-6", "value = -1", "inter.latency_s", "give 0 or more"),
        ('{ value = 5e14, source = "data sheet x 0.5" }', "5e14", "device.G.flops_s", "has no source"),
        (', source = "data sheet x 0.5"', "", "device.G.flops_s", "neither an interval nor a source"),
        ("value = 5e14", "value = 5e14, low = 1e14", "device.G.flops_s", "both low and high"),
        ("value = 5e14", "value = 5e14, low = 4e14, high = 6e14", "device.G.flops_s", "the profile is published"),
        ('kind = "published"', 'kind = "published"\ndevices_per_node = 0', "devices_per_node", "at least 1"),
        ("[inter]", "[inter", "", "is no TOML"),
        ("[inter]", "[host]\ncores = 2\n[inter]", "device.G.shared_cores", "leave out [host]"),
        ("[inter]", "[host]\ncores = 0\n[inter]", "host.cores", "leave out [host]"),
        ("[inter]", "[host]\ncores = 2\ngateway_s = 1\n[inter]", "host.gateway_s", "is no key of a profile"),
        ("[inter]", "[host]\ncores = 2\ngateway_token_s = 1e-5\n[inter]", "host.gateway_token_s", "has no source"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_key(old: str, new: str, key: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=r"mine\.toml") as caught:
        parse(GOOD.replace(old, new, 1), where="mine.toml")
    assert key in caught.value.field
    assert says in str(caught.value)


def test_a_measured_profile_may_state_numbers_without_more_ado() -> None:
    text = MEASURED.replace('{ value = 5e14, source = "data sheet x 0.5" }', "5e14")
    profile = parse(text, where="mine.toml")
    assert profile.device().flops_s == 5e14
    assert "G.flops_s" not in profile.figures


def test_an_interval_that_is_turned_round_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"5e\+14 is not in its interval, 6e\+14 to 4e\+14"):
        parse(MEASURED.replace("value = 5e14", "value = 5e14, low = 6e14, high = 4e14"), where="mine.toml")


def test_members_that_have_links_of_their_own_do_not_share() -> None:
    profile = load_profile("h100-80gb")
    one, _ = profile.links(members=1, near=False)
    four, _ = profile.links(members=4, near=False)
    many, _ = profile.links(members=64, near=False)
    near, intra = profile.links(members=1, near=True)
    assert one == profile.inter
    assert four.byte_s == one.byte_s / 4
    assert many.byte_s == one.byte_s / 8
    assert near == intra == profile.intra
