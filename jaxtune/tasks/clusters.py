"""Several tasks at once: clusters held out with everything that leaks into them, other wordings, nested groups."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxtune.errors import UserError
from jaxtune.mixture import Group
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.task import Task
from jaxtune.tasks.wording import Builder, Template


def by_name(tasks: Iterable[Task]) -> dict[str, Task]:
    """Tasks by name; raises `UserError` when two share one."""
    found: dict[str, Task] = {}
    for task in tasks:
        if task.name in found:
            raise UserError(f"two tasks are named {task.name!r}; give each its own name")
        found[task.name] = task
    return found


def in_cluster(cluster: str | None, wanted: str) -> bool:
    """Whether a cluster is the wanted one or lies inside it (a/b is inside a)."""
    return cluster is not None and (cluster == wanted or cluster.startswith(wanted + "/"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Tasks parted into those to train on and those kept out."""

    kept: dict[str, Task]
    """By name, what is trained on; a task may have lost templates."""
    held: dict[str, Task]
    """By name, the tasks that were named or belong to a named cluster."""
    leaking: dict[str, Task]
    """By name, tasks that would give a held one away."""
    reasons: dict[str, str]
    """By task name, why it, or some of its templates, is out."""


def hold_out(tasks: Iterable[Task], names: Sequence[str]) -> HoldOut:
    """Parts tasks by held-out clusters (or task names), with everything that leaks into them.

    Out go: tasks of the clusters; tasks that say they leak into one; other wordings of an excluded task's records
    (`variant_of`, in both directions), and tasks that read the same files; templates that train a held-out cluster.
    """
    all_tasks = by_name(tasks)
    reasons = {name: f"is in {wanted}" for name, task in all_tasks.items() for wanted in names if _is_in(task, wanted)}
    _check_known(names, all_tasks)
    held = {name: all_tasks[name] for name in reasons}
    for name, task in all_tasks.items():
        given_away = [w for w in names if any(in_cluster(c, w) or in_cluster(w, c) for c in task.leaks_into)]
        if name not in reasons and given_away:
            reasons[name] = f"leaks into {', '.join(given_away)}"
    _spread(all_tasks, reasons)
    kept: dict[str, Task] = {}
    for name, task in all_tasks.items():
        if name in reasons:
            continue
        left = tuple(w for w in task.templates if not _trains(w, names))
        if len(left) == len(task.templates):
            kept[name] = task
            continue
        reasons[name] = (
            f"{len(task.templates) - len(left)} of its {len(task.templates)} templates train a held-out cluster"
        )
        if left:
            kept[name] = dataclasses.replace(task, templates=left)
    leaking = {name: all_tasks[name] for name in reasons if name not in held and name not in kept}
    return HoldOut(kept=kept, held=held, leaking=leaking, reasons=reasons)


def _is_in(task: Task, wanted: str) -> bool:
    return task.name == wanted or in_cluster(task.cluster, wanted)


def _trains(wording: Template | Builder, names: Sequence[str]) -> bool:
    return isinstance(wording, Template) and any(in_cluster(wording.cluster, wanted) for wanted in names)


def _check_known(names: Sequence[str], tasks: Mapping[str, Task]) -> None:
    clusters = {task.cluster for task in tasks.values()}
    clusters |= {w.cluster for task in tasks.values() for w in task.templates if isinstance(w, Template)}
    known = sorted(cluster for cluster in clusters if cluster is not None) + sorted(tasks)
    unknown = [n for n in names if n not in tasks and not any(in_cluster(cluster, n) for cluster in clusters)]
    if unknown:
        raise UserError(f"held-out {unknown} is no cluster or task; known: {known}")


def _spread(tasks: Mapping[str, Task], reasons: dict[str, str]) -> None:
    """Adds tasks that share records with an excluded one, until nothing changes."""
    origins = {name: frozenset(itertools.chain.from_iterable(_origins(task))) for name, task in tasks.items()}
    queue = list(reasons)
    while queue:
        out = queue.pop()
        for name, task in tasks.items():
            if name in reasons:
                continue
            if task.variant_of == out or tasks[out].variant_of == name or _siblings(task, tasks[out]):
                reasons[name] = f"words the records of {out}"
            elif origins[name] & origins[out]:
                reasons[name] = f"reads the same data as {out}: {sorted(origins[name] & origins[out])[0]}"
            else:
                continue
            queue.append(name)


def _siblings(task: Task, other: Task) -> bool:
    return task.variant_of is not None and task.variant_of == other.variant_of


def _origins(task: Task) -> Iterator[frozenset[str]]:
    sources = [task.records, *task.splits.values()]
    return (source.origins for source in sources if isinstance(source, RecordSource))


def invert(
    task: Task, templates: Sequence[Template | Builder], *, name: str | None = None, cluster: str | None
) -> Task:
    """The same records asked the other way round, as a task of its own that is held out together with the first."""
    return dataclasses.replace(
        task,
        name=name or f"{task.name}_inverted",
        templates=tuple(templates),
        cluster=cluster,
        variant_of=task.variant_of or task.name,
    )


def cluster_groups(tasks: Iterable[Task]) -> dict[str, Group]:
    """Nested mixture groups by cluster: tasks of `language/translation` form a group inside the group `language`."""
    members: dict[str, list[tuple[str, str]]] = {}
    for task in tasks:
        if task.cluster is not None:
            head, _, rest = task.cluster.partition("/")
            members.setdefault(head, []).append((rest, task.name))
    return {head: _group(inside) for head, inside in members.items()}


def _group(members: Sequence[tuple[str, str]]) -> Group:
    inner: dict[str, list[tuple[str, str]]] = {}
    for path, name in members:
        if path:
            head, _, rest = path.partition("/")
            inner.setdefault(head, []).append((rest, name))
    return Group(
        tasks=tuple(name for path, name in members if not path),
        groups={head: _group(inside) for head, inside in inner.items()},
    )
