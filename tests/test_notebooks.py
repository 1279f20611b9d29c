import ast
import pathlib

import nbclient
import nbformat
import pytest
import toy_runs

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RENDERED = {"chapter"}
"""Notebooks that are kept with their outputs, to be read without being run."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_and_define_nothing_and_keep_outputs_only_where_they_are_read(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            defined = [
                node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)
            ]
            assert not defined, f"{path.name}: {cell.source}"
            if path.stem in RENDERED:
                failed = [one for one in cell.outputs if one.output_type == "error"]
                assert cell.execution_count and not failed, f"{path.name} is kept with its outputs; run it"
            else:
                assert not cell.outputs and cell.execution_count is None, f"{path.name} holds outputs; clear them"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_RUN", str(toy_runs.write_toy_run(tmp_path / "run", steps=24)))
    monkeypatch.setenv("JAXTUNE_SWEEP", str(toy_runs.write_toy_sweep(tmp_path / "sweep", steps=6)))
    monkeypatch.setenv("JAXTUNE_CHAPTER", str(tmp_path / "chapter"))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_results_can_be_read_in_a_fresh_clone(tmp_path, monkeypatch):
    """Without any run the notebook makes a short one and a small sweep."""
    monkeypatch.delenv("JAXTUNE_RUN", raising=False)
    monkeypatch.delenv("JAXTUNE_SWEEP", raising=False)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(FOLDER / "results.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    ).execute()
    assert (tmp_path / "runs" / "results-run" / "report.html").exists()
    assert (tmp_path / "runs" / "results-sweep" / "results.csv").exists()
