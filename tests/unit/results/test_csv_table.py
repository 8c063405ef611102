"""A table of a resumed run: what was recorded stays, times included."""

from __future__ import annotations

from pathlib import Path

from lrrunner.results.csv_table import CsvTable

COLUMNS = ("step", "loss", "elapsed_s")


def table(path: Path, *rows: tuple[int, float, float], resumed: bool = True) -> list[dict[str, str] | None]:
    made = CsvTable(path, COLUMNS, resumed=resumed)
    known = [made.write(row) for row in rows]
    made.close()
    return known


def test_a_row_written_again_keeps_its_times(tmp_path: Path) -> None:
    """So that MLflow is not sent the same point with two times."""
    path = tmp_path / "x.csv"
    table(path, (0, 0.5, 1.0), (1, 0.25, 2.0), resumed=False)
    known = table(path, (0, 0.5, 11.0), (1, 0.25, 12.0), (2, 0.125, 13.0))
    assert known == [
        {"step": "0", "loss": "0.5", "elapsed_s": "1.0"},
        {"step": "1", "loss": "0.25", "elapsed_s": "2.0"},
        None,
    ]
    assert path.read_text().splitlines() == ["step,loss,elapsed_s", "0,0.5,1.0", "1,0.25,2.0", "2,0.125,13.0"]


def test_rows_not_written_again_stay_until_they_are_dropped(tmp_path: Path) -> None:
    """A second attempt that is interrupted loses nothing of the first."""
    path = tmp_path / "x.csv"
    table(path, (0, 0.5, 1.0), (1, 0.25, 2.0), resumed=False)
    table(path, (0, 0.5, 11.0))
    assert path.read_text().splitlines()[1:] == ["0,0.5,1.0", "1,0.25,2.0"]
    again = CsvTable(path, COLUMNS, resumed=True)
    again.write((0, 0.5, 0.0))
    again.drop_unrepeated()
    again.close()
    assert path.read_text().splitlines()[1:] == ["0,0.5,1.0"]


def test_a_row_that_differs_replaces_what_follows(tmp_path: Path) -> None:
    """A GPU that rounds otherwise: records must be those of one attempt from there on."""
    path = tmp_path / "x.csv"
    table(path, (0, 0.5, 1.0), (1, 0.25, 2.0), (2, 0.125, 3.0), resumed=False)
    table(path, (0, 0.5, 11.0), (1, 0.26, 12.0))
    assert path.read_text().splitlines()[1:] == ["0,0.5,1.0", "1,0.26,12.0"]


def test_an_incomplete_row_is_removed(tmp_path: Path) -> None:
    """Also where all its columns have begun."""
    path = tmp_path / "x.csv"
    table(path, (0, 0.5, 1.0), resumed=False)
    with path.open("a") as file:
        file.write("1,0.25,2")
    table(path, (0, 0.5, 1.0), (1, 0.25, 2.5))
    assert path.read_text().splitlines()[1:] == ["0,0.5,1.0", "1,0.25,2.5"]


def test_a_file_without_a_complete_row_begins_anew(tmp_path: Path) -> None:
    """Killed while the header was written, or before."""
    path = tmp_path / "x.csv"
    path.write_text("step,lo")
    table(path, (0, 0.5, 1.0))
    assert path.read_text().splitlines() == ["step,loss,elapsed_s", "0,0.5,1.0"]
    assert table(tmp_path / "new.csv", (0, 0.5, 1.0)) == [None]
