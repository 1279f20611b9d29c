"""Options of compiled programs, and the dtype in which a platform computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.parallel import compilation
from jaxtune.parallel.compilation import COMPILED_FAST, PREFERRED, YNN, compiler_options


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


X86 = "processor\t: 0\nflags\t\t: fpu avx512f avx512bw{}\nbugs\t: none\n"


@pytest.mark.parametrize(
    ("cpuinfo", "bfloat16"),
    [
        (X86.format(" avx512_bf16"), compilation.YNN_PRODUCTS),
        (X86.format(" amx_bf16"), compilation.YNN_PRODUCTS),
        (X86.format(""), ""),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", None),
        (None, None),
    ],
    ids=["AVX-512 with bfloat16", "AMX", "AVX-512", "ARM", "no /proc"],
)
def test_products_in_bfloat16_go_to_the_library_that_is_faster_on_this_cpu(cpuinfo, bfloat16, tmp_path):
    place = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        place.write_text(cpuinfo)
    assert compilation.ynn_operations("bfloat16", place) == bfloat16
    assert compilation.ynn_operations("float32", place) == ""


def test_a_program_in_bfloat16_is_compiled_with_what_this_cpu_does_fast(monkeypatch):
    for asked in (compilation.YNN_PRODUCTS, ""):
        monkeypatch.setattr(compilation, "ynn_operations", lambda dtype, asked=asked: asked)
        compiler_options.cache_clear()
        assert compiler_options("cpu", "bfloat16") == {YNN: asked}
        jax.jit(lambda x: x @ x, compiler_options={YNN: asked})(jnp.ones((64, 64), jnp.bfloat16)).block_until_ready()


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "auto"])
def test_auto_is_bfloat16_wherever_the_device_is_no_cpu(asked):
    found = {platform: compilation.compute_dtype(asked, platform) for platform in ("cpu", "gpu", "tpu")}
    auto = {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}
    assert found == (auto if asked == "auto" else dict.fromkeys(found, asked))


def test_options_for_a_platform_that_is_not_here_are_those_that_are_given():
    assert compiler_options("tpu", "bfloat16") is None
    assert compiler_options("tpu", "bfloat16", (("xla_tpu_x", "1"),)) == {"xla_tpu_x": "1"}


def test_what_the_environment_says_goes_before_ours_and_what_is_given_before_both(monkeypatch):
    assert compiler_options("cpu", "float32") == {YNN: ""}
    given = (("xla_cpu_enable_fast_math", "false"), ("xla_gpu_all_gather_combine_threshold_bytes", "5"))
    expected = {"xla_cpu_enable_fast_math": False, "xla_gpu_all_gather_combine_threshold_bytes": "5"}
    assert compiler_options("cpu", "float32", given) == {YNN: "", **expected}
    compiler_options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", f"--{YNN}=")
    assert compiler_options("cpu", "float32") is None


RETIRED = {
    "xla_gpu_enable_pipelined_all_gather", "xla_gpu_enable_pipelined_all_reduce",
    "xla_gpu_enable_pipelined_reduce_scatter",
}  # fmt: skip
"""Options that XLA had with the pinned jaxlib and no longer has with jaxlib 0.12."""


def known(options):
    """Those options that the installed XLA has; all of them, but for what a later version may have retired."""
    found = {name: value for name, value in options.items() if compilation._refusal({name: value}) is None}
    assert options.keys() - found.keys() <= (RETIRED if jax.__version_info__ >= (0, 11) else set())
    return found


def test_programs_that_only_fill_are_compiled_fast_on_a_cpu_and_fill_the_same(monkeypatch):
    assert compiler_options("cpu", "float32", fills=True) == {YNN: "", **COMPILED_FAST}
    assert compiler_options("tpu", "bfloat16", fills=True) is None
    asked = (("xla_backend_optimization_level", "2"),)
    assert compiler_options("cpu", "float32", asked, fills=True) == {YNN: "", **COMPILED_FAST, **dict(asked)}
    fill = lambda x: (x, jnp.zeros_like(x), jnp.full((3, 5), 7, jnp.int32), x.astype(jnp.bfloat16))
    x = jnp.linspace(-3, 3, 35).reshape(5, 7)
    fast, usual = (compilation.jit(fill, platform="cpu", dtype=jnp.float32, fills=f)(x) for f in (True, False))
    jax.tree.map(np.testing.assert_array_equal, fast, usual)
    compiler_options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true")
    assert compiler_options("cpu", "float32", fills=True) == {YNN: ""}


def test_options_that_the_installed_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "ynn_operations", lambda dtype: None)
    monkeypatch.setitem(PREFERRED, "cpu", {"xla_of_tomorrow": True, "xla_gpu_enable_latency_hiding_scheduler": True})
    assert compiler_options("cpu", "bfloat16") == {"xla_gpu_enable_latency_hiding_scheduler": True}
    assert known(PREFERRED["gpu"])


def test_given_options_reach_the_program_and_wrong_ones_are_named():
    double = compilation.jit(
        lambda x: 2 * x, platform="cpu", dtype=jnp.float32, options={"xla_cpu_enable_fast_math": "true"}
    )
    assert float(double(jax.numpy.float32(4))) == 8
    with pytest.raises(UserError, match="compiler_options: XLA refuses .*xla_nonsense"):
        compilation.jit(lambda x: x, platform="cpu", dtype=jnp.float32, options={"xla_nonsense": "1"})
