import dataclasses
import math

import numpy as np
import pytest
from test_charts import contrast, linear, themes

from jaxtune.reports.heatmap import INK_TURNS, Grid, heat_table, heatmap_png


def grid(mean, *, higher_is_better=True):
    mean = np.array(mean)
    return Grid(
        title="Exact match",
        rows=["1", "2"],
        columns=["1e-4", "1e-3"],
        row_label="temperature",
        column_label="peak lr",
        mean=mean,
        spread=np.full(mean.shape, 0.01),
        higher_is_better=higher_is_better,
        form=lambda value: f"{value:.2f}",
    )


def test_of_cells_that_differ_in_rounding_alone_the_first_is_framed():
    assert grid([[0.3, 0.1 + 0.2], [0.0, 0.0]]).best == (0, 0)
    assert grid([[0.3, 0.3 + 1e-6], [0.0, 0.0]]).best == (0, 1)


def test_the_best_cell_depends_on_the_direction():
    values = [[0.1, 0.9], [0.4, math.nan]]
    assert grid(values).best == (0, 1)
    assert grid(values, higher_is_better=False).best == (0, 0)
    assert grid(values, higher_is_better=False).shade(0.9) == 0.0


def test_the_table_shows_every_mean_with_its_spread_and_frames_the_best():
    table = heat_table(grid([[0.1, 0.9], [0.4, math.nan]]))
    assert table.count("± 0.01") == 3 and table.count("–") == 1
    assert 'class="dark best" style="--x:0.92">0.90' in table


def test_a_grid_of_equal_values_has_no_extremes():
    assert grid([[0.5, 0.5], [0.5, 0.5]]).shade(0.5) == 0.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_are_readable_on_every_shade(theme):
    colours = themes()[theme]
    encoded = lambda name: np.array([int(colours[name][at : at + 2], 16) for at in (1, 3, 5)])
    for shade in np.linspace(0.06, 0.92, 40):
        mixed = np.round(shade * encoded("heat") + (1 - shade) * encoded("panel")).astype(int)
        ink = "heat-ink" if shade > INK_TURNS else "ink"
        assert contrast(linear(colours[ink]), linear("#" + bytes(mixed.tolist()).hex())) >= 3.5, shade


def test_the_png_is_a_picture_of_all_grids(tmp_path):
    from PIL import Image

    heatmap_png([grid([[0.1, 0.9], [0.4, math.nan]]), grid([[1.0, 2.0], [3.0, 4.0]])], tmp_path / "heat.png")
    picture = Image.open(tmp_path / "heat.png").convert("RGB")
    assert picture.width > 900 and picture.height > 300
    colours = picture.getcolors(maxcolors=1 << 24)
    assert colours is not None and len(colours) > 50


def test_titles_of_narrow_grids_have_room_side_by_side(tmp_path):
    """The pixels above the cells of the first grid's right half are white: no title runs into the next one's."""
    from PIL import Image

    one = dataclasses.replace(grid([[0.1], [0.4]]), columns=["all"], spread=np.full((2, 1), 0.01))
    titles = ("Validation loss, mean of tasks (nats)", "Exact match, mean of tasks (%)")
    heatmap_png([dataclasses.replace(one, title=title) for title in titles], tmp_path / "heat.png")
    top = np.asarray(Image.open(tmp_path / "heat.png").convert("L"))[:40]
    middle = top.shape[1] // 2
    assert (top[:, middle - 40 : middle] > 200).all() and (top[:, -10:] > 200).all()
