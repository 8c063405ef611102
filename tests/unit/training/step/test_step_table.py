"""What every rank reads from the table of a step, up to thousands of ranks."""

from __future__ import annotations

import math

import numpy as np

from lrrunner.training.step.step_table import Column, Request, StepReading, columns_of


def reading(*rows: dict[Column, float], grad_norm: float = 1.0) -> StepReading:
    table = np.zeros((len(rows), len(Column)))
    for rank, row in enumerate(rows):
        for column, value in row.items():
            table[rank, column] = value
    return StepReading(columns_of(table), grad_norm=grad_norm)


def test_the_mean_is_exact_whatever_the_number_of_ranks() -> None:
    """0.1 summed 4,096 times in floats is not 409.6; the mean of equal losses must be that loss."""
    many = reading(*({Column.LOSS_SUM: 0.1, Column.ITEMS: 1} for _ in range(4096)))
    assert many.num_items == 4096
    assert many.loss == 0.1


def test_ranks_without_items_do_not_count() -> None:
    """And a step without any has no loss."""
    assert reading({Column.LOSS_SUM: 3.0, Column.ITEMS: 2}, {}).loss == 1.5
    assert math.isnan(reading({}, {}).loss)


def test_requests_and_bad_losses_name_their_ranks() -> None:
    """A NaN on one rank does not erase the rows of the others."""
    found = reading(
        {Column.LOSS_SUM: 1.0, Column.ITEMS: 1, Column.REQUEST: Request.SAVE},
        {Column.LOSS_SUM: math.nan, Column.ITEMS: 1, Column.NON_FINITE: 1},
        {Column.LOSS_SUM: math.inf, Column.ITEMS: 1, Column.NON_FINITE: 1, Column.REQUEST: Request.STOP},
    )
    assert found.non_finite_ranks == (1, 2)
    assert found.stopping_ranks == (2,)
    assert found.save_requested
    assert math.isnan(found.loss)
    infinite = reading({Column.LOSS_SUM: math.inf, Column.ITEMS: 1}, {Column.LOSS_SUM: 1.0, Column.ITEMS: 1})
    assert infinite.loss == math.inf


def test_gradients_that_differ_are_listed_by_rank() -> None:
    """Rounding is allowed; NaN is reported elsewhere; of many ranks a few are named."""
    assert not reading({Column.GRADIENT: 1.0}, {Column.GRADIENT: 1.0 + 1e-6}).gradient_disagreement
    assert not reading({Column.GRADIENT: math.nan}, {Column.GRADIENT: 1.0}).gradient_disagreement
    assert not reading({}, {}).gradient_disagreement
    differing = reading({Column.GRADIENT: 1.5}, {Column.GRADIENT: 3.0}).gradient_disagreement
    assert differing == "1.5 on rank 0, 3 on rank 1"
    many = reading(*({Column.GRADIENT: float(rank)} for rank in range(100))).gradient_disagreement
    assert many.endswith("7 on rank 7, ...")
