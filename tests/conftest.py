"""Settings of every test: eight CPU devices, no silent rank promotion, one compilation cache for the suite."""

import pathlib

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# A jitted train step takes about six CPU-seconds to compile, however small; with the cache a second run is quick.
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Nothing asserts wall-clock time: hypothesis would fail an example that took over 0.2 s on a busy machine.
hypothesis.settings.register_profile("jaxtune", deadline=None)
hypothesis.settings.load_profile("jaxtune")
