"""Stage A: every mistake gets its field, rule, value and next move, all at once, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lrrunner.cli.main import run
from lrrunner.config.command_line import parse_command_line
from lrrunner.config.schema import batch_summary, budget_steps
from lrrunner.config.serialization import config_from, to_plain
from lrrunner.errors import ConfigError
from tests.composing import composed

ROOT = Path(__file__).resolve().parents[3]

VAL_EVERY = (
    "sweep.val_every must lie between 1 and 5, so that sweep.num_steps=100 gives 20 evaluations to stop by, "
    "got {}; try 1"
)
MISTAKES = {
    "sweep.start_lr=20": "sweep.end_lr must exceed sweep.start_lr=20, got 10; raise sweep.end_lr",
    "sweep.start_lr=0": "sweep.start_lr must be above 0, got 0; try 1e-7",
    "sweep.start_lr=-1": "sweep.start_lr must be above 0, got -1; try 1e-7",
    "sweep.end_lr=inf": "sweep.end_lr must be finite, got inf; the defaults are 1e-7 and 10",
    "sweep.start_lr=nan": "sweep.start_lr must be finite, got nan; the defaults are 1e-7 and 10",
    "sweep.num_steps=1": "sweep.num_steps must be at least 2, got 1; try 100",
    "sweep.smoothing=1": "sweep.smoothing must lie in [0, 1), got 1; try 0.9",
    "sweep.smoothing=-0.1": "sweep.smoothing must lie in [0, 1), got -0.1; try 0.9",
    "sweep.repeats=0": "sweep.repeats must be at least 1, got 0; try 1",
    "sweep.diverge_factor=0": "sweep.diverge_factor must be above 0 for stop_rule=range, got 0; try 2",
    "confirm.horizon=0": "confirm.horizon must be at least 1, got 0; null is a training of unknown length",
    "confirm.budget_steps=9": "confirm.budget_steps must be at least 10, got 9; null takes 5 x sweep.num_steps",
    "confirm.schedule=linear": "confirm.schedule must be one of constant, cosine; got linear",
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
    "optimizer.lr=0": "optimizer.lr must be a number above 0, got 0; the sweep keeps group ratios to it",
    "optimizer.lr=fast": "optimizer.lr must be a number above 0, got 'fast'; the sweep keeps group ratios to it",
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
    "+experiment=digits_mlp": "experiment has a value already, got +experiment=digits_mlp; write it without +",
    "sweep": "'sweep' is not an override; write key=value, and quote values with special characters",
}


def test_confirmation_runs_cost_five_sweeps_unless_told_otherwise() -> None:
    """The default budget follows the sweep."""
    assert budget_steps(composed("sweep.num_steps=30")) == 150
    assert budget_steps(composed("confirm.budget_steps=40")) == 40


def errors_of(*overrides: str, world_size: int = 2) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides, world_size=world_size)
    return caught.value.errors


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_named_with_its_way_out(override: str) -> None:
    """One message: field, rule, value, next move."""
    assert errors_of(override) == (MISTAKES[override],)


def test_all_mistakes_are_shown_at_once() -> None:
    """Nobody should have to run five times to find five mistakes, of composition and of values alike."""
    overrides = ["sweep.strat_lr=1", "model=resnet", "sweep.num_steps=many", "+x=1", "sweep.smoothing=2"]
    errors = errors_of(*overrides)
    assert len(errors) == 5
    for word in ("strat_lr", "resnet", "many", "x is not", "smoothing"):
        assert sum(word in error for error in errors) == 1


def test_a_claimed_world_must_be_the_world() -> None:
    """`accelerate launch --cpu --num_processes 2` silently starts one rank; the claim makes that visible."""
    (error,) = errors_of("launch.num_processes=2", world_size=1)
    assert error.startswith("launch.num_processes must equal the 1 rank(s) that were started, got 2;")
    assert "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m lrrunner" in error
    assert composed("launch.num_processes=2", world_size=2).launch.num_processes == 2


def test_one_rank_has_nobody_to_share_parameters_with() -> None:
    """Nor is there a validation loss to watch without a validation set."""
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


def test_a_static_graph_cannot_accumulate() -> None:
    """DDP's reducer dies of an internal assertion in the first step; on one rank there is no DDP."""
    overrides = ("train.ddp.static_graph=true", "train.accumulation_steps=2")
    (error,) = errors_of(*overrides)
    assert error.startswith("train.ddp.static_graph must be false with several accumulation steps")
    assert composed(*overrides, world_size=1)


def test_an_unset_variable_is_named() -> None:
    """An interpolation that fails is the user's typo or a missing export."""
    (error,) = errors_of("tracking.run_name=${oc.env:LRRUNNER_NOT_SET}")
    assert error.startswith("tracking.run_name cannot be resolved")
    assert "LRRUNNER_NOT_SET" in error


def test_a_missing_config_directory_is_named(tmp_path: Path) -> None:
    """Hydra only warns about it."""
    with pytest.raises(ConfigError, match="--config-dir must be a directory"):
        composed("--config-dir", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_experiment_composes(path: Path) -> None:
    """An experiment that does not compose is found by a test, not by a user."""
    target = composed(f"experiment={path.stem}", world_size=2).model["_target_"]
    assert target.startswith(("lrrunner.tasks.", "transformers."))


@pytest.mark.parametrize("group", ["model", "data", "loss", "objective", "optimizer"])
def test_every_part_group_has_a_custom_option(group: str) -> None:
    """A user's own part must not inherit the arguments of a packaged one."""
    content = yaml.safe_load((ROOT / "conf" / group / "custom.yaml").read_text())
    free = content["train"] if group == "data" else content
    assert {key: value for key, value in free.items() if key != "_partial_"} == {"_target_": "???"}


def test_command_line_beats_experiment_beats_default() -> None:
    """`_self_` at the wrong place silently undoes experiments."""
    job = composed("experiment=mnist_lenet_luz", "sweep.end_lr=0.5")
    assert job.sweep.start_lr == 1e-6
    assert job.sweep.end_lr == 0.5
    assert job.suggestion.method == "minimum"
    assert job.optimizer["_target_"] == "torch.optim.Adam"
    assert composed("experiment=mnist_lenet_luz", "optimizer=sgd").optimizer["_target_"] == "torch.optim.SGD"


def test_a_users_own_experiment_needs_no_change_of_the_package(tmp_path: Path) -> None:
    """The example of the contract, from a directory of the user's."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        """# @package _global_
defaults: [override /model: custom, override /data: custom, override /loss: custom, override /optimizer: custom]
model: {_target_: mine.Net, width: 64}
data: {train: {_target_: mine.dataset, split: train}, val: {_target_: mine.dataset, split: val}, global_batch_size: 256}
loss: {_target_: torch.nn.CrossEntropyLoss}
optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-3, weight_decay: 0.05}
"""
    )
    job = composed("--config-dir", str(tmp_path), "experiment=mine", "model.width=32", world_size=2)
    assert job.model == {"_target_": "mine.Net", "width": 32}
    assert job.data.train == {"_target_": "mine.dataset", "split": "train"}
    assert job.optimizer["weight_decay"] == 0.05


def test_a_mistake_inside_an_experiment_file_is_named_with_its_file(tmp_path: Path) -> None:
    """Hydra speaks of the key `experiment`, which is right."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text("# @package _global_\nsweep: {num_step: 3}\n")
    (tmp_path / "experiment" / "bare.yaml").write_text("sweep: {num_steps: 3}\n")
    (tmp_path / "experiment" / "broken.yaml").write_text("sweep: {num_steps: 3}}\n")

    def message(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            composed("--config-dir", str(tmp_path), *overrides)
        (error,) = caught.value.errors
        return error

    assert message("experiment=bad") == (
        "sweep.num_step is not a configuration key; did you mean sweep.num_steps? (in experiment/bad)"
    )
    assert message("experiment=bare") == (
        "experiment=bare names a file without a package; begin it with: # @package _global_"
    )
    assert message("experiment=broken").startswith("experiment=broken reads a file that is not valid YAML:")
    assert "bad, bare, broken, char_gpt" in message("experiment=none_such")


@pytest.mark.parametrize("flag", ["--config-path", "--package", "--experimental-rerun"])
def test_flags_without_a_meaning_here_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra would run its own empty task with them, and return 0."""
    assert run([f"{flag}=x"]) == 2
    assert f"{flag} is not supported" in capsys.readouterr().err


def test_a_secret_in_a_mistyped_override_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names what was typed, and terminals are logged."""
    assert run(["+x.api_token=canary-4711", "tracking.uri=ftp://ann:canary-4712@host/x"]) == 2
    shown = capsys.readouterr().err
    assert "canary" not in shown
    assert "x is not a configuration key" in shown
    assert "ftp://***@host/x" in shown


def test_the_batch_is_told_in_one_sentence() -> None:
    """An LR means nothing without it."""
    job = composed("train.accumulation_steps=2", world_size=4)
    assert batch_summary(job, world_size=4) == "4 ranks, global batch 64 = 4 ranks x 8 x 2 accumulation steps"
    one = composed()
    assert batch_summary(one, world_size=1) == "1 rank, global batch 64 = 1 rank x 64 x 1 accumulation step"


@pytest.mark.parametrize(
    "module",
    ["lrrunner.core.suggestion_rules", "lrrunner.cli.main", "lrrunner.launch.rank_command", "lrrunner.records"],
)
def test_the_light_modules_load_no_torch(module: str) -> None:
    """Help, completion and configuration errors must not cost the three seconds of torch, accelerate and MLflow."""
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'accelerate', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stage_a_speaks_without_torch_and_exits_with_2(tmp_path: Path) -> None:
    """The whole path of a mistyped command: code 2, one message on stderr, no traceback, no torch, nothing written."""
    code = (
        "import sys\nfrom lrrunner.cli.main import run\n"
        "code = run(['sweep.start_lr=20', 'model=resnet'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "2 False"
    assert done.stderr.startswith("lrrunner: the configuration is wrong (2 errors)\n")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "--info", "--cfg"])
def test_hydras_own_flags_work(tmp_path: Path, flag: str) -> None:
    """People who know Hydra expect them."""
    arguments = [flag, {"--cfg": "job", "--info": "defaults"}[flag]] if flag != "--help" else [flag]
    done = subprocess.run(
        [sys.executable, "-m", "lrrunner", *arguments, "model=cnn"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "lrrunner.tasks.models.Cnn" in done.stdout or flag == "--info"
    assert list(tmp_path.iterdir()) == []


def test_a_plain_run_is_no_flag() -> None:
    """`--run` asks Hydra for what happens anyway; it must not be answered by doing nothing."""
    words = parse_command_line(["--run", "-r", "model=cnn", "--config-name=mine"])
    assert words.hydra_flags == ()
    assert words.overrides == ("model=cnn",)
    assert words.options == ["--config-name", "mine"]


@pytest.mark.parametrize("name", ["o'brien ${x}", r"a\${b}", r"back\slash $c"])
def test_a_resolved_value_is_not_resolved_again(name: str) -> None:
    """A directory may be called like an interpolation."""
    plain = to_plain(composed())
    plain["run"]["dir"] = name
    assert config_from(plain).run.dir == name
