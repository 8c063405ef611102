"""Stage A: every error has its field, rule, value and next move, and all are reported at once."""

from __future__ import annotations

import pytest

from lrrunner.config.schema import budget_steps
from tests.composing import composed, errors_of

VAL_EVERY = (
    "sweep.val_every must lie between 1 and 5, so that sweep.num_steps=100 gives 20 evaluations to stop by, "
    "got {}; try 1"
)
NEW_LENGTH = "confirm.horizon is now train.num_steps, which describes your training; set train.num_steps"
NEW_SCHEDULE = "confirm.schedule is now train.schedule, which describes your training; set train.schedule"
TRAINING_LENGTH = "train.num_steps must lie between 1 and 1000000000, got {}; null is a training of unknown length"
ERRORS = {
    "sweep.start_lr=20": "sweep.end_lr must exceed sweep.start_lr=20, got 10; raise sweep.end_lr",
    "sweep.start_lr=0": "sweep.start_lr must be above 0, got 0; try 1e-7",
    "sweep.start_lr=-1": "sweep.start_lr must be above 0, got -1; try 1e-7",
    "sweep.end_lr=inf": "sweep.end_lr must be finite, got inf; the defaults are 1e-7 and 10",
    "sweep.start_lr=nan": "sweep.start_lr must be finite, got nan; the defaults are 1e-7 and 10",
    "sweep.num_steps=1": "sweep.num_steps must be at least 2, got 1; try 100",
    "sweep.smoothing=1": "sweep.smoothing must lie in [0, 1), got 1; try 0.9",
    "sweep.smoothing=-0.1": "sweep.smoothing must lie in [0, 1), got -0.1; try 0.9",
    "sweep.repeats=0": "sweep.repeats must be at least 1, got 0; try 1",
    "sweep.repeats=1000000000000": "sweep.repeats must be at most 1000, got 1000000000000; lower it",
    "sweep.num_steps=10000000": "sweep.num_steps must be at most 1000000, got 10000000; lower it",
    "confirm.budget_steps=10000000000": "confirm.budget_steps must be at most 1000000000, got 10000000000; lower it",
    "data.dataloader.num_workers=10000": "data.dataloader.num_workers must be at most 1000, got 10000; lower it",
    "launch.concurrent=10000": "launch.concurrent must be at most 1000, got 10000; lower it",
    "optimizer.lr=1e31": "optimizer.lr must lie between 1e-30 and 1e+30, got 1e+31; the default range is 1e-7 to 10",
    "sweep.end_lr=1e31": "sweep.end_lr must lie between 1e-30 and 1e+30, got 1e+31; the default range is 1e-7 to 10",
    "~tracking": "tracking must not be removed, got ~tracking; leave that out, and set the keys that are to change",
    "~loss": "loss must be given for an objective with a criterion, got null; leave it out, or use another objective",
    "run.dir='~nobody-here/x'": (
        "run.dir must begin with the home directory of a user of this machine, got ~nobody-here/x; correct the name"
    ),
    "sweep.diverge_factor=0": "sweep.diverge_factor must be above 0 for stop_rule=range, got 0; try 2",
    "confirm.budget_steps=9": "confirm.budget_steps must be at least 10, got 9; null takes 5 x sweep.num_steps x "
    "sweep.repeats, at least 300",
    "confirm.horizon=500": NEW_LENGTH,
    "+confirm.horizon=500": NEW_LENGTH,
    "confirm.schedule=cosine": NEW_SCHEDULE,
    "+confirm.schedule=cosine": NEW_SCHEDULE,
    "train.schedule=step": "train.schedule must be one of constant, linear, cosine; got step",
    "train.num_steps=0": TRAINING_LENGTH.format(0),
    "train.num_steps=10000000000": TRAINING_LENGTH.format(10_000_000_000),
    "tracking.also=[mlflow]": "tracking.also must name trackers of aim, clearml, comet_ml, dvclive, swanlab, "
    "tensorboard, trackio, wandb; got mlflow",
    "train.num_steps=1e3": "train.num_steps must be a whole number, got 1e3; write 1000",
    "train.warmup_steps=-1": "train.warmup_steps must lie between 0 and 1000000000, got -1; 0 is no warm-up",
    "train.warmup_steps=null": "train.warmup_steps must have a value, got null; leave it out to keep the default",
    "sweep.monitor=test": "sweep.monitor must be one of train, val; got test",
    "sweep.val_every=0": VAL_EVERY.format(0),
    "sweep.val_every=6": VAL_EVERY.format(6),
    "sweep.val_batches=0": "sweep.val_batches must be at least 1, got 0; try 2",
    "sweep.auto_range=perhaps": "sweep.auto_range must be true or false, got perhaps; correct the value",
    "suggestion.method=best": (
        "suggestion.method must be one of auto, steepest, minimum, valley, slide, largest_drop; got best"
    ),
    "sweep.mode=log": "sweep.mode must be one of exponential, linear; got log",
    "model=resnet": "model must be one of cnn, custom, gpt, hf_gpt2_tiny, hf_vit_tiny, lenet, mlp; got resnet",
    "data=imagenet": "data must be one of custom, digits, mnist, text; got imagenet",
    "sweep.strat_lr=1e-6": "sweep.strat_lr is not a configuration key; did you mean sweep.start_lr?",
    "+sweep.strat_lr=1e-6": "sweep.strat_lr is not a configuration key; did you mean sweep.start_lr?",
    "+tracker=x": "tracker is not a configuration key; see lrrunner --cfg job for all keys",
    "sweep.num_steps=many": "sweep.num_steps must be a whole number, got many; correct the value",
    "sweep.num_steps=1.5": "sweep.num_steps must be a whole number, got 1.5; correct the value",
    "sweep.end_lr=big": "sweep.end_lr must be a number, got big; correct the value",
    "tracking.enabled=maybe": "tracking.enabled must be true or false, got maybe; correct the value",
    "train.mixed_precision=no": "train.mixed_precision must be one of fp32, bf16, fp16; got no",
    "train.accumulation_steps=0": "train.accumulation_steps must be at least 1, got 0; try 1",
    "train.max_grad_norm=0": "train.max_grad_norm must be above 0, got 0; null turns clipping off",
    "data.global_batch_size=63": (
        "data.global_batch_size must be divisible by 2 ranks x 1 accumulation steps = 2, got 63; use 62 or 64"
    ),
    "data.global_batch_size=1": (
        "data.global_batch_size must be divisible by 2 ranks x 1 accumulation steps = 2, got 1; use 2"
    ),
    "data.global_batch_size=0": "data.global_batch_size must be at least 1, got 0; try 64",
    "optimizer.lr=0": "optimizer.lr must be a number above 0, got 0; try 1e-3",
    "optimizer.lr=fast": "optimizer.lr must be a number above 0, got 'fast'; try 1e-3",
    "model=custom": "model._target_ is missing; give it as model._target_=...",
    "tracking.uri=ftp://host/x": (
        "tracking.uri must start with one of sqlite, http, https, postgresql, mysql, mssql, databricks; "
        "got ftp://host/x; the default is sqlite:///mlflow.db"
    ),
    "tracking.uri=mlruns": (
        "tracking.uri must start with one of sqlite, http, https, postgresql, mysql, mssql, databricks; "
        "got mlruns; the default is sqlite:///mlflow.db"
    ),
    "tracking.uri=sqlite": (
        "tracking.uri must have the form sqlite:///..., got sqlite; the default is sqlite:///mlflow.db"
    ),
    "tracking.uri=http://": (
        "tracking.uri must have the form http://..., got http://; the default is sqlite:///mlflow.db"
    ),
    "tracking.experiment=''": "tracking.experiment must have a name, got nothing; the default is lrrunner",
    "run.timeout_s=inf": "run.timeout_s must lie between 0 and 1e+06, got inf; try 300",
    "run.timeout_s=nan": "run.timeout_s must lie between 0 and 1e+06, got nan; try 300",
    "tracking.timeout_s=0": "tracking.timeout_s must lie between 0 and 1e+06, got 0; try 10",
    "launch.num_processes=0": "launch.num_processes must be at least 1, got 0; give the number of ranks",
    "launch.concurrent=0": "launch.concurrent must be at least 1, got 0; try 1",
    "launch.timeout_s=0": "launch.timeout_s must lie between 0 and 1e+06, got 0; try 1800",
    "data.train={_target_: mine.data, size: 9}": (
        "data.train={_target_: mine.data, size: 9} has keys that data.train does not have yet; write "
        "+data.train={_target_: mine.data, size: 9}"
    ),
    "+optimizer._partial_=true": (
        "optimizer._partial_ has a value already, got +optimizer._partial_=true; write it without +"
    ),
    "+experiment=digits_mlp": "experiment has a value already, got +experiment=digits_mlp; write it without +",
    "sweep": "'sweep' is not an override; write key=value, and quote values with special characters",
}


def test_confirmation_runs_cost_five_sweeps_by_default() -> None:
    """The default budget follows the sweep and its repeats, down to three runs of a hundred steps."""
    assert budget_steps(composed("sweep.num_steps=200")) == 1000
    assert budget_steps(composed("sweep.num_steps=200", "sweep.repeats=3")) == 3000
    assert budget_steps(composed("sweep.num_steps=30")) == 300
    assert budget_steps(composed("confirm.budget_steps=40")) == 40


@pytest.mark.parametrize("override", ERRORS)
def test_an_error_names_its_correction(override: str) -> None:
    """One message: field, rule, value, next move."""
    assert errors_of(override) == (ERRORS[override],)


def test_all_errors_are_reported_at_once() -> None:
    """Nobody should have to run five times to find five errors, of composition and of values alike."""
    overrides = ["sweep.strat_lr=1", "model=resnet", "sweep.num_steps=many", "+x=1", "sweep.smoothing=2"]
    errors = errors_of(*overrides)
    assert len(errors) == 5
    for text in ("strat_lr", "resnet", "many", "x is not", "smoothing"):
        assert sum(text in error for error in errors) == 1


def test_a_claimed_world_must_be_the_world() -> None:
    """`accelerate launch --cpu --num_processes 2` silently starts one rank; the claim makes that visible."""
    (error,) = errors_of("launch.num_processes=2", world_size=1)
    assert error.startswith("launch.num_processes must equal the 1 rank(s) that were started, got 2;")
    assert "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m lrrunner" in error
    assert composed("launch.num_processes=2", world_size=2).launch.num_processes == 2


def test_one_rank_cannot_shard_parameters() -> None:
    """And there is no validation loss without a validation set."""
    assert errors_of("train.fsdp=true", "sweep.monitor=val", "data.val=null", world_size=1) == (
        "sweep.monitor must be train without data.val, got val; give data.val._target_=..., or leave it at train",
        "train.fsdp must be false on 1 rank, got true; start several ranks with launch.num_processes=2, say",
    )


def test_one_gradient_a_step_has_no_noise_scale() -> None:
    """Ranks or accumulation steps give two gradients to compare; both ways are named."""
    (error,) = errors_of("sweep.noise_scale=true", world_size=1)
    assert error == (
        "sweep.noise_scale compares gradients of several ranks or accumulation steps, got 1 rank x 1 accumulation "
        "step; set train.accumulation_steps=2 or start more ranks"
    )
    assert composed("sweep.noise_scale=true", "train.accumulation_steps=2", world_size=1)
    assert composed("sweep.noise_scale=true", world_size=2)


def test_shards_hide_the_noise() -> None:
    """Hooks on shards would see the gradient of all ranks and call it that of one."""
    (error,) = errors_of("train.fsdp=true", "sweep.noise_scale=true")
    assert error == (
        "sweep.noise_scale must be false under train.fsdp, where no rank sees its own gradient, got true; use DDP"
    )


def test_a_warm_up_is_shorter_than_the_training() -> None:
    """Without a length there is nothing to compare it with."""
    (error,) = errors_of("train.num_steps=100", "train.warmup_steps=100")
    assert error == "train.warmup_steps must be below train.num_steps=100, got 100; warm up for fewer steps"
    assert composed("train.warmup_steps=100").train.warmup_steps == 100


def test_a_static_graph_cannot_accumulate() -> None:
    """DDP's reducer fails an internal assertion in the first step; on one rank there is no DDP."""
    overrides = ("train.ddp.static_graph=true", "train.accumulation_steps=2")
    (error,) = errors_of(*overrides)
    assert error.startswith("train.ddp.static_graph must be false with several accumulation steps")
    assert composed(*overrides, world_size=1)
