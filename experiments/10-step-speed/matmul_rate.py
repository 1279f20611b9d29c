"""The machine's float32 matmul rate: 2 n^3 / seconds for square matrices, by torch, NumPy or JAX.

<python of a venv that has it> experiments/10-step-speed/matmul_rate.py torch|numpy|jax [--threads 1|2] [--n 4096]
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable


def torch_product(n: int, threads: int) -> Callable:
    import torch

    torch.set_num_threads(threads)
    left, right, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    return lambda: torch.mm(left, right, out=out)


def numpy_product(n: int, threads: int) -> Callable:
    import numpy as np

    draws = np.random.default_rng(0)
    left, right = (draws.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)


def jax_product(n: int, threads: int) -> Callable:
    if threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    import jax

    left, right = (jax.random.normal(jax.random.key(seed), (n, n)) for seed in range(2))
    multiply = jax.jit(lambda a, b: a @ b)
    return lambda: multiply(left, right).block_until_ready()


PRODUCTS = {"torch": torch_product, "numpy": numpy_product, "jax": jax_product}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=PRODUCTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    product = PRODUCTS[arguments.library](arguments.n, arguments.threads)
    product()
    times = []
    for _ in range(arguments.repeats):
        start = time.process_time()
        product()
        times.append(time.process_time() - start)
    rate = lambda seconds: round(2 * arguments.n**3 * arguments.threads / seconds / 1e9, 1)
    print(json.dumps({
        "library": arguments.library, "version": importlib.metadata.version(arguments.library),
        "threads": arguments.threads, "n": arguments.n, "gflops": rate(statistics.median(times)),
        "gflops_best": rate(min(times)),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
