from hypothesis import given
from hypothesis import strategies as st

from jaxtune.science.forgetting import pareto


def test_the_front_leaves_out_what_another_beats_in_both():
    points = [(0.1, 1.0), (0.2, 0.9), (0.3, 1.5), (0.0, 0.2), (0.3, 1.5), (0.5, 1.4)]
    assert pareto(points) == [3, 0, 2] and pareto([]) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_no_point_beats_one_of_the_front_and_every_other_is_beaten(whole):
    points = [(float(x), float(y)) for x, y in whole]
    front = [points[i] for i in pareto(points)]
    beaten = lambda a: any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in points)
    assert not any(map(beaten, front)) and all(point in front or beaten(point) for point in points)
