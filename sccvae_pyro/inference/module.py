"""What Lightning trains: a loss of the program, its validation figure, and the optimiser."""

from __future__ import annotations

from typing import Any

import lightning as L  # noqa: N812 - the name that Lightning gives itself
import torch
from torch import Tensor

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference.objectives import Loss
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.program import Program

VALIDATION = "validation_loss"


class SVIModule(L.LightningModule):
    """One program, its loss and its optimiser.

    Parameters
    ----------
    loss
        What is optimised.
    spec
        How to fit.
    n_steps
        Gradient steps of the whole run, which set the schedules.
    """

    def __init__(self, loss: Loss, spec: InferenceSpec, n_steps: int) -> None:
        super().__init__()
        self.loss, self.spec, self.n_steps = loss, spec, n_steps

    @property
    def program(self) -> Program:
        """The program that is fitted."""
        return self.loss.program

    def kl_weight(self) -> float:
        """Weight of the KL at this step: linear from ``kl_start`` to 1, then 1."""
        warmup = self.spec.kl_warmup * self.n_steps
        progress = min(1.0, self.global_step / warmup) if warmup else 1.0
        return self.spec.kl_start + (1.0 - self.spec.kl_start) * progress

    def on_train_epoch_start(self) -> None:
        """Give the epoch its own order of cells."""
        self.trainer.train_dataloader.sampler.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch."""
        # Seeded by its number, a step of a resumed run draws what the same step of an undisturbed one draws:
        # Lightning's loaders take numbers from the global generator in another order when they resume.
        torch.manual_seed(self.spec.seed + 1000 * (self.global_step + 1))
        loss = self.loss(batch, self.kl_weight())
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.library_c)
        )
        return loss

    def validation_step(self, batch: Batch) -> None:
        """What the best state is chosen by, at the full weight of the KL."""
        self.log(VALIDATION, self.loss.validate(batch), prog_bar=True, batch_size=len(batch.library_c))

    def configure_optimizers(self) -> Any:
        """Adam with longer steps for the globals, and a one-cycle schedule."""
        groups = parameter_groups(self.program, self.spec)
        optimizer = torch.optim.Adam(groups)
        peaks = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=self.n_steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(program: Program, spec: InferenceSpec) -> list[dict[str, Any]]:
    """Split the parameters into networks and variational parameters of the globals, each with its rate."""
    networks = [*program.encoder.parameters(), *program.decoder.parameters()]
    known = {id(parameter) for parameter in networks}
    globals_ = [parameter for parameter in program.parameters() if id(parameter) not in known]
    groups = [
        {"params": networks, "lr": spec.learning_rate},
        {"params": globals_, "lr": spec.learning_rate * spec.global_rate},
    ]
    return [group for group in groups if group["params"]]
