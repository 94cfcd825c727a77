"""Trains one hybrid on the training part, and keeps the epoch that was best on the validation part."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from exporters.demo.dataset import Dataset, Part
from exporters.hybrid.config import HybridConfig
from exporters.hybrid.network import HybridNetwork, MultiHeadAttention

BATCH = 128
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 1e-2
GRADIENT_NORM = 1.0
REGRESSION_WEIGHT = 0.1
ENSEMBLE_WEIGHT = 0.25

ATTENTION_GAIN = 3.0
"""Factor on the initial query and key weights. The heads see the last step through attention alone; at torch's
initial weights that is nearly a plain mean over the window, and the time of day averages out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The best epoch's parameters, float32, with the regression in basis points; and how it came about."""

    state_dict: dict[str, Tensor]
    best_epoch: int
    epochs: int
    validation_loss: float


def train_hybrid(
    config: HybridConfig,
    dataset: Dataset,
    *,
    seed: int,
    max_epochs: int,
    patience: int,
    on_epoch: Callable[[int, float], None],
) -> Trained:
    """Trains from a seed until the validation loss has not improved for `patience` epochs.

    Args:
        config: Of the network.
        dataset: Its training and validation parts.
        seed: Of the initial weights, the order of the samples and dropout.
        max_epochs: Most epochs.
        patience: Epochs without improvement before stopping.
        on_epoch: Called after each epoch with its number and its validation loss.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _train(config, dataset, max_epochs=max_epochs, patience=patience, on_epoch=on_epoch)


def _train(
    config: HybridConfig,
    dataset: Dataset,
    *,
    max_epochs: int,
    patience: int,
    on_epoch: Callable[[int, float], None],
) -> Trained:
    target_scale = float(np.std(dataset.train.forward_return_bp))
    train = _tensors(dataset.train, dataset, target_scale)
    validation = _tensors(dataset.validation, dataset, target_scale)
    network = HybridNetwork(config)
    _sharpen_attention(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    best_loss, best_epoch, best_state = float("inf"), 0, network.state_dict()
    epoch = 0
    for epoch in range(1, max_epochs + 1):
        _run_epoch(network, optimizer, train)
        loss = _validation_loss(network, validation)
        if loss < best_loss:
            best_loss, best_epoch, best_state = loss, epoch, copy.deepcopy(network.state_dict())
        on_epoch(epoch, loss)
        if epoch - best_epoch >= patience:
            break
    return Trained(
        state_dict=to_basis_points(best_state, config, target_scale),
        best_epoch=best_epoch,
        epochs=epoch,
        validation_loss=best_loss,
    )


def to_basis_points(state: dict[str, Tensor], config: HybridConfig, target_scale: float) -> dict[str, Tensor]:
    """Scales the last layers, so that a network trained on scaled targets answers in basis points."""
    scaled = {name: tensor.detach().clone() for name, tensor in state.items()}
    for kind in ("weight", "bias"):
        scaled[f"regression_head.layers.6.{kind}"] *= target_scale
        for member in range(config.num_ensemble_models):
            scaled[f"ensemble_models.{member}.3.{kind}"][config.num_classes :] *= target_scale
    return scaled


def _tensors(part: Part, dataset: Dataset, target_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = torch.tensor(dataset.normalization.mean)[:, None]
    scale = torch.tensor(dataset.normalization.scale)[:, None]
    return (
        (torch.from_numpy(part.x) - mean) / scale,
        torch.from_numpy(part.label),
        torch.from_numpy(part.forward_return_bp)[:, None] / target_scale,
    )


def _sharpen_attention(network: HybridNetwork) -> None:
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, MultiHeadAttention):
                module.w_q.weight.mul_(ATTENTION_GAIN)
                module.w_k.weight.mul_(ATTENTION_GAIN)


def _run_epoch(
    network: HybridNetwork, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    network.train()
    for rows in torch.split(torch.randperm(len(data[0])), BATCH):
        x, label, target = (tensor[rows] for tensor in data)
        optimizer.zero_grad()
        _loss(network, x, label, target).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimizer.step()


def _validation_loss(network: HybridNetwork, data: tuple[Tensor, Tensor, Tensor]) -> float:
    network.eval()
    with torch.no_grad():
        return float(_loss(network, *data))


def _loss(network: HybridNetwork, x: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Loss of the two heads, plus that of the members: each alone, and together by the learned weights."""
    logits = network(x)
    members = logits.member_logits.shape[1]
    weights = torch.softmax(network.ensemble_weights, dim=0)[None, :, None]
    heads = _task_loss(logits.class_logits, logits.regression, label, target)
    alone = _task_loss(
        logits.member_logits.flatten(0, 1),
        logits.member_regression.flatten(0, 1),
        label.repeat_interleave(members),
        target.repeat_interleave(members, dim=0),
    )
    together = _task_loss(
        (weights * logits.member_logits).sum(dim=1),
        (weights * logits.member_regression).sum(dim=1),
        label,
        target,
    )
    return heads + ENSEMBLE_WEIGHT * (alone + together)


def _task_loss(class_logits: Tensor, regression: Tensor, label: Tensor, target: Tensor) -> Tensor:
    classification = nn.functional.cross_entropy(class_logits, label)
    return classification + REGRESSION_WEIGHT * nn.functional.huber_loss(regression, target)
