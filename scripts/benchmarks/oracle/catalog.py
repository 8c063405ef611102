"""The jobs of the benchmark: what is trained, with what optimizer, and which jobs are never fitted to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from oracle import splits
from oracle.models import (
    EmbeddingMlp,
    Factors,
    FrozenEmbeddingMlp,
    Recurrent,
    SeriesCnn,
    SymbolCnn,
    Transformer,
    UNet,
    VisionTransformer,
    cnn,
    convolutions,
    mlp,
    resnet,
    wave_cnn,
)
from oracle.splits import Split

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The training that a fine-tuning starts from: AdamW, constant LR. The head is a new one afterwards.

    Attributes:
        split: (data folder) -> its data.
        model: Makes its model; all parameters but those of another shape are taken over.
        num_steps: Steps.
        lr: LR.
    """

    split: Callable[[Any], Split]
    model: Callable[[], nn.Module]
    num_steps: int = 400
    lr: float = 3e-3


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: everything but its learning rate, length and schedule.

    Attributes:
        name: Short name: data, model, optimizer.
        split: (data folder) -> its data; embedded data ignores the folder.
        model: Makes the model; called under a seed.
        optimizer: Name in ``optimizers.KINDS``.
        options: Arguments of the optimizer.
        loss: (output, target) -> mean loss.
        batch_size: Samples a step.
        max_grad_norm: Norm that gradients are clipped to; None does not clip.
        warmup: Share of the steps in which the LR rises linearly to its value, before the schedule.
        pretraining: What a fine-tuning starts from; None starts from scratch.
        real: Whether its data come from the data folder.
        long: Whether it is measured at 1,000 and 5,000 steps as well.
    """

    name: str
    split: Callable[[Any], Split]
    model: Callable[[], nn.Module]
    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)
    loss: Loss = F.cross_entropy
    batch_size: int = 64
    max_grad_norm: float | None = None
    warmup: float = 0.0
    pretraining: Pretraining | None = None
    real: bool = True
    long: bool = False

    @property
    def is_test(self) -> bool:
        """Whether nothing is ever fitted to it."""
        return self.name in TEST_JOBS


TEST_JOBS = frozenset(
    {
        "signs_vit_adamw",
        "adult_mlp_adamw",
        "pycode_finetune_gpt_adamw",
        "signs_cnn_dropout_adamw",
        "warpeace_ngram_adamw",
        "solubility_mlp_adamw",
        "solubility_cnn_adam",
        "digits_mlp_adamw",
        "chains_gpt_adamw",
        "adult_mlp_bn_momentum",
        "protein_mlp_momentum",
        "mnist_cnn_momentum",
        "warpeace_ngram_momentum",
        "mnist_linear_sgd",
        "teacher_mlp_sgd",
        "beijing_mlp_lion",
        "patches_denoise_nadam",
    }
)
"""Chosen once, before anything was measured, and fixed: within each of four classes (Adam and AdamW on real data, on
embedded data; SGD with momentum; all others) every third name in the order of its SHA-256, from the first one."""


def masked_bce(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy over what was measured (a target of -1 was not)."""
    losses = F.binary_cross_entropy_with_logits(scores, targets.clamp(min=0), reduction="none")
    known = (targets >= 0).float()
    return (losses * known).sum() / known.sum()


_MSE, _HUBER, _BCE = F.mse_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits
_SMOOTHED = functools.partial(F.cross_entropy, label_smoothing=0.1)


def _text(name: str, **options: Any) -> Callable[[Any], Split]:
    return functools.partial(splits.text, name=name, **options)


def _gpt(steps: int = 32, vocabulary: int = 128, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Transformer(vocabulary, vocabulary, steps=steps, **options)


def _adam_on_real_data() -> list[Job]:
    return [
        Job(
            name="mnist_mlp_adam", split=splits.mnist, model=lambda: mlp(784, 32, 10), optimizer="adam", batch_size=128
        ),
        Job(
            name="mnist_autoencoder_adamw",
            split=splits.mnist_images,
            model=lambda: mlp(784, 32, 8, 32, 784),
            optimizer="adamw",
            loss=_MSE,
            batch_size=64,
        ),
        Job(
            name="shakespeare_gpt_adamw",
            split=_text("tinyshakespeare"),
            model=_gpt(),
            optimizer="adamw",
            options={"weight_decay": 0.1},
            batch_size=8,
            max_grad_norm=1.0,
            warmup=0.1,
        ),
        Job(
            name="shakespeare_lstm_adam",
            split=_text("tinyshakespeare", length=16),
            model=lambda: Recurrent(128, 128, kind=nn.LSTM, symbols=True, everywhere=True),
            optimizer="adam",
            batch_size=16,
            max_grad_norm=1.0,
        ),
        Job(
            name="signs_cnn_dropout_adamw",
            split=splits.signs,
            model=lambda: cnn(3, 43, dropout=0.2),
            optimizer="adamw",
            batch_size=32,
        ),
        Job(
            name="signs_vit_adamw",
            split=splits.signs,
            model=lambda: VisionTransformer(3, 28, 43, dropout=0.1),
            optimizer="adamw",
            options={"weight_decay": 0.05},
            loss=_SMOOTHED,
            batch_size=32,
            warmup=0.1,
        ),
        Job(
            name="signs_finetune_cnn_adamw",
            split=functools.partial(splits.signs, first=22, size=1500),
            model=lambda: cnn(3, 21, norm=True),
            optimizer="adamw",
            batch_size=32,
            pretraining=Pretraining(
                split=functools.partial(splits.signs, last=22), model=lambda: cnn(3, 22, norm=True)
            ),
        ),
        Job(
            name="nuclei_unet_adam",
            split=splits.nuclei,
            model=lambda: UNet(6),
            optimizer="adam",
            loss=_BCE,
            batch_size=8,
        ),
        Job(
            name="spoken_gru_adamw",
            split=splits.spoken,
            model=lambda: Recurrent(40, 10, width=24, channels_first=True),
            optimizer="adamw",
            batch_size=16,
            max_grad_norm=1.0,
        ),
        Job(name="waves_cnn_adam", split=splits.waves, model=lambda: wave_cnn(10), optimizer="adam", batch_size=16),
        Job(
            name="adult_mlp_adamw",
            split=splits.adult,
            model=lambda: EmbeddingMlp(110, 2, places=8, extra=6),
            optimizer="adamw",
            batch_size=256,
            long=True,
        ),
        Job(
            name="protein_mlp_adam",
            split=splits.protein,
            model=lambda: mlp(9, 64, 64, 1),
            optimizer="adam",
            loss=_MSE,
            batch_size=256,
            long=True,
        ),
        Job(
            name="beijing_gru_adam",
            split=functools.partial(splits.beijing, hours=12),
            model=lambda: Recurrent(15, 1, width=16),
            optimizer="adam",
            loss=_HUBER,
            batch_size=32,
        ),
        Job(
            name="movielens_factors_adam",
            split=splits.movielens,
            model=Factors,
            optimizer="adam",
            loss=_MSE,
            batch_size=1024,
        ),
        Job(
            name="solubility_mlp_adamw",
            split=functools.partial(splits.solubility, inputs="d"),
            model=lambda: mlp(17, 64, 64, 1, dropout=0.1),
            optimizer="adamw",
            options={"weight_decay": 0.1},
            loss=_MSE,
            batch_size=32,
            long=True,
        ),
        Job(
            name="solubility_cnn_adam",
            split=splits.solubility,
            model=lambda: SymbolCnn(128, 1),
            optimizer="adam",
            loss=_MSE,
            batch_size=32,
        ),
        Job(
            name="toxicity_cnn_adamw",
            split=splits.toxicity,
            model=lambda: SymbolCnn(128, 12, dropout=0.3),
            optimizer="adamw",
            loss=masked_bce,
            batch_size=32,
        ),
        Job(
            name="pycode_finetune_gpt_adamw",
            split=_text("pycode"),
            model=_gpt(),
            optimizer="adamw",
            batch_size=8,
            max_grad_norm=1.0,
            warmup=0.1,
            pretraining=Pretraining(split=_text("warpeace"), model=_gpt()),
        ),
        Job(
            name="warpeace_ngram_adamw",
            split=functools.partial(splits.ngrams, name="warpeace"),
            model=lambda: EmbeddingMlp(128, 128, places=8, hidden=(64,), act=nn.Tanh),
            optimizer="adamw",
            batch_size=128,
            long=True,
        ),
        Job(
            name="intents_bag_adam",
            split=splits.intents,
            model=lambda: EmbeddingMlp(3040, 150, width=32, hidden=(), bag=True),
            optimizer="adam",
            batch_size=64,
            long=True,
        ),
        Job(
            name="intents_transformer_adamw",
            split=splits.intents,
            model=lambda: Transformer(3040, 150, steps=16, causal=False, dropout=0.1),
            optimizer="adamw",
            batch_size=32,
            warmup=0.1,
        ),
    ]


def _adam_on_embedded_data() -> list[Job]:
    return [
        Job(
            name="digits_mlp_adamw",
            split=splits.digits,
            model=lambda: mlp(64, 64, 64, 10),
            optimizer="adamw",
            batch_size=32,
            real=False,
            long=True,
        ),
        Job(
            name="teacher_mlp_adam",
            split=functools.partial(splits.teacher, size=10_000),
            model=lambda: mlp(32, 64, 64, 1, dropout=0.1),
            optimizer="adam",
            loss=_MSE,
            batch_size=32,
            real=False,
            long=True,
        ),
        Job(
            name="photograph_mlp_adam",
            split=splits.photograph,
            model=lambda: mlp(64, 64, 64, 3),
            optimizer="adam",
            loss=_MSE,
            batch_size=256,
            real=False,
            long=True,
        ),
        Job(
            name="chains_gpt_adamw",
            split=splits.chains,
            model=_gpt(24, 32),
            optimizer="adamw",
            options={"weight_decay": 0.1},
            batch_size=16,
            warmup=0.1,
            real=False,
        ),
        Job(
            name="mislabelled_digits_mlp_adam",
            split=splits.mislabelled_digits,
            model=lambda: mlp(64, 64, 10, norm=True),
            optimizer="adam",
            batch_size=64,
            real=False,
            long=True,
        ),
    ]


def _momentum() -> list[Job]:
    decay = {"weight_decay": 5e-4}
    return [
        Job(
            name="mnist_cnn_momentum",
            split=splits.mnist,
            model=lambda: cnn(1, 10, width=6, norm=True),
            optimizer="momentum",
            options=decay,
            batch_size=32,
        ),
        Job(
            name="signs_resnet_nesterov",
            split=splits.signs,
            model=lambda: resnet(3, 43),
            optimizer="nesterov",
            options=decay,
            batch_size=32,
        ),
        Job(
            name="nuclei_denoise_momentum",
            split=splits.noisy_nuclei,
            model=lambda: convolutions(1, width=6),
            optimizer="momentum",
            loss=_MSE,
            batch_size=8,
        ),
        Job(
            name="spoken_cnn_momentum",
            split=splits.spoken,
            model=lambda: nn.Sequential(nn.Unflatten(1, (1, 40)), cnn(1, 10)),
            optimizer="momentum",
            batch_size=32,
        ),
        Job(
            name="speaker_finetune_cnn_momentum",
            split=functools.partial(splits.spoken, target="speaker"),
            model=lambda: nn.Sequential(nn.Unflatten(1, (1, 40)), cnn(1, 6)),
            optimizer="momentum",
            batch_size=32,
            pretraining=Pretraining(
                split=splits.spoken, model=lambda: nn.Sequential(nn.Unflatten(1, (1, 40)), cnn(1, 10))
            ),
        ),
        Job(
            name="adult_mlp_bn_momentum",
            split=splits.adult,
            model=lambda: EmbeddingMlp(110, 2, places=8, extra=6, norm=True),
            optimizer="momentum",
            options=decay,
            batch_size=1024,
        ),
        Job(
            name="beijing_cnn_momentum",
            split=splits.beijing,
            model=lambda: SeriesCnn(15, 1),
            optimizer="momentum",
            loss=_MSE,
            batch_size=64,
            max_grad_norm=1.0,
        ),
        Job(
            name="warpeace_ngram_momentum",
            split=functools.partial(splits.ngrams, name="warpeace"),
            model=lambda: EmbeddingMlp(128, 128, places=8, hidden=(64,)),
            optimizer="momentum",
            batch_size=64,
            long=True,
        ),
        Job(
            name="protein_mlp_momentum",
            split=functools.partial(splits.protein, size=4000),
            model=lambda: mlp(9, 64, 64, 1),
            optimizer="momentum",
            options={"weight_decay": 1e-4},
            loss=_MSE,
            batch_size=128,
            long=True,
        ),
        Job(
            name="moved_digits_cnn_nesterov",
            split=splits.moved_digits,
            model=lambda: cnn(1, 10, norm=True),
            optimizer="nesterov",
            options=decay,
            batch_size=64,
            warmup=0.1,
            real=False,
        ),
        Job(
            name="digits_finetune_mlp_momentum",
            split=functools.partial(splits.digits, first=5),
            model=lambda: mlp(64, 64, 5),
            optimizer="momentum",
            batch_size=16,
            pretraining=Pretraining(split=functools.partial(splits.digits, last=4), model=lambda: mlp(64, 64, 4)),
            real=False,
            long=True,
        ),
        Job(
            name="teacher_mlp_momentum",
            split=splits.teacher,
            model=lambda: mlp(32, 32, 32, 1),
            optimizer="momentum",
            loss=_MSE,
            batch_size=64,
            real=False,
            long=True,
        ),
    ]


def _others() -> list[Job]:
    return [
        Job(name="mnist_linear_sgd", split=splits.mnist, model=lambda: mlp(784, 10), optimizer="sgd", batch_size=32),
        Job(
            name="pairs_mlp_rmsprop",
            split=splits.pairs,
            model=lambda: EmbeddingMlp(32, 32, places=2, width=16, hidden=(64,)),
            optimizer="rmsprop",
            options={"weight_decay": 1e-4},
            batch_size=128,
            real=False,
            long=True,
        ),
        Job(
            name="signs_mlp_rmsprop",
            split=splits.signs,
            model=lambda: mlp(2352, 32, 43),
            optimizer="rmsprop",
            batch_size=64,
        ),
        Job(
            name="movielens_factors_adagrad",
            split=splits.movielens,
            model=Factors,
            optimizer="adagrad",
            loss=_MSE,
            batch_size=512,
        ),
        Job(
            name="adult_logistic_adagrad",
            split=splits.adult,
            model=lambda: EmbeddingMlp(110, 2, places=8, extra=6, hidden=()),
            optimizer="adagrad",
            batch_size=64,
        ),
        Job(
            name="protein_mlp_nadam",
            split=splits.protein,
            model=lambda: mlp(9, 64, 64, 1, act=nn.Tanh),
            optimizer="nadam",
            loss=_HUBER,
            batch_size=64,
            long=True,
        ),
        Job(
            name="patches_denoise_nadam",
            split=splits.patches,
            model=lambda: convolutions(3, width=8),
            optimizer="nadam",
            loss=_MSE,
            batch_size=32,
            real=False,
        ),
        Job(
            name="beijing_mlp_lion",
            split=splits.beijing,
            model=lambda: mlp(360, 32, 32, 1),
            optimizer="lion",
            loss=_MSE,
            batch_size=128,
        ),
        Job(
            name="intents_bag_lion",
            split=splits.intents,
            model=lambda: EmbeddingMlp(3040, 150, width=32, hidden=(32,), bag=True),
            optimizer="lion",
            options={"weight_decay": 0.1},
            batch_size=128,
        ),
        Job(
            name="teacher_mlp_sgd",
            split=functools.partial(splits.teacher, size=2000),
            model=lambda: mlp(32, 32, 1),
            optimizer="sgd",
            loss=_MSE,
            batch_size=16,
            real=False,
            long=True,
        ),
        Job(
            name="pycode_ngram_muon",
            split=functools.partial(splits.ngrams, name="pycode"),
            model=lambda: FrozenEmbeddingMlp(128, 8),
            optimizer="muon",
            batch_size=64,
        ),
        Job(
            name="moved_digits_mlp_muon",
            split=splits.moved_digits,
            model=lambda: mlp(64, 32, 32, 10, bias=False),
            optimizer="muon",
            batch_size=64,
            real=False,
        ),
    ]


def jobs() -> list[Job]:
    """All jobs."""
    return [*_adam_on_real_data(), *_adam_on_embedded_data(), *_momentum(), *_others()]
