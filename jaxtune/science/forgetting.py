"""Gain against forgetting: which runs give the most on their tasks for what they lose on other text."""

from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Points (forgetting, gain) that no other beats in both: less forgotten and as much gained, or more gained.

    Places in `points`, from the least forgetting to the most. Equal points count once, the first of them.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
