"""Settings that hold for every test: eight CPU devices, no silent rank promotion, one compilation cache for the whole suite."""

import pathlib

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# A jitted train step costs about six CPU-seconds to compile however small it is; the cache makes a second run of the suite quick.
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
