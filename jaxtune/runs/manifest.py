"""The manifest of a run: fingerprints of its data, tokenizer, template, plan, config and code, and its environment.

Every fingerprint is a SHA-256 in hexadecimal. A manifest is plain JSON; `compare_manifests` says in words what differs
between two, which is how a run is verified and how a resumed run knows that nothing changed under it.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxtune.parallel.mesh import all_devices
from jaxtune.storage.documents import leaves
from jaxtune.storage.fingerprints import file_fingerprint, json_fingerprint, text_fingerprint

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "numpy", "ml-dtypes", "array-record",
    "tensorflow-datasets", "pyarrow", "sentencepiece", "tokenizers", "jinja2", "tyro",
)  # fmt: skip
"""Libraries whose version can change what a run computes."""

VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that can change what a run computes."""

_PACKAGE = pathlib.Path(__file__).parent.parent


def code() -> dict[str, Any]:
    """Fingerprints of this package's source files; commit and dirty flag of the repository that tracks them, if any."""
    sources = sorted(path for path in _PACKAGE.rglob("*") if path.suffix in (".py", ".jinja"))
    files = {path.relative_to(_PACKAGE).as_posix(): file_fingerprint(path) for path in sources}
    # Else the repository is someone else's.
    tracked = _git("ls-files", "--error-unmatch", "runs/manifest.py") is not None
    commit = _git("rev-parse", "HEAD") if tracked else None
    status = _git("status", "--porcelain", "--", ".")
    return {
        "version": importlib.metadata.version("jaxtune"),
        "sha256": json_fingerprint(files),
        "files": files,
        "commit": commit,
        "dirty": None if commit is None or status is None else bool(status),
    }


def environment() -> dict[str, Any]:
    """Environment of the program: code state, versions, devices, variables; neither host nor user."""
    devices = all_devices()
    source = code()
    return {
        "commit": source["commit"],
        "dirty": source["dirty"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "cpu": _cpu_model(),
        "cpus": usable_cpus(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def usable_cpus() -> int:
    """CPUs that this process may use; XLA splits sums over as many threads on CPUs, and rounding follows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """The inputs of a run that its manifest binds, mostly as fingerprints."""

    data: Mapping[str, Any]
    """Task -> fingerprint, or any JSON about its source."""
    tokenizer: Mapping[str, str]
    """File name -> fingerprint."""
    template: str
    """The chat template with its settings."""
    plan: Mapping[str, Any]
    """Hash of the plan and the numbers that it has."""
    config: Mapping[str, Any]
    """Resolved and complete."""
    seeds: Mapping[str, int]
    base_model: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """File name -> fingerprint."""
    blocks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Task -> fingerprints of runs of its examples, to find a change."""
    batches: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Step -> fingerprint."""


def build_manifest(material: Material) -> dict[str, Any]:
    """The manifest of a run on this material that starts here and now."""
    return {
        "format": 1,
        "data": dict(material.data),
        "tokenizer": dict(material.tokenizer),
        "template": text_fingerprint(material.template),
        "plan": dict(material.plan),
        "seeds": dict(material.seeds),
        "base_model": dict(material.base_model),
        "blocks": {task: " ".join(of) for task, of in material.blocks.items()},
        "batches": dict(material.batches),
        "config": dict(material.config),
        "code": code(),
        "environment": environment(),
    }


def compare_manifests(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every difference between two manifests in words, e.g. `config optim.peak_lr: was 2e-05, is 1e-05`."""
    before, after = dict(leaves(then)), dict(leaves(now))
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        if before.get(key, _NOTHING) != after.get(key, _NOTHING):
            lines.append(_in_words(key, before.get(key, _NOTHING), after.get(key, _NOTHING)))
    return lines


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _in_words(key: tuple[str, ...], then: Any, now: Any) -> str:
    name = f"{key[0]} {'.'.join(key[1:])}".strip()
    if then is _NOTHING:
        return f"{name}: was absent, is {_short(now)}"
    if now is _NOTHING:
        return f"{name}: was {_short(then)}, is absent"
    if _is_fingerprint(then) and _is_fingerprint(now):
        return f"{name}: content changed (SHA-256 {then[:12]} then, {now[:12]} now)"
    return f"{name}: was {_short(then)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = value[:12] if _is_fingerprint(value) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Model name: the instructions that XLA compiles for depend on it."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _git(*arguments: str) -> str | None:
    """Output of git in the package's folder; None without git or without a repository."""
    try:
        done = subprocess.run(["git", "-C", _PACKAGE, *arguments], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
