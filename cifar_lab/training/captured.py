"""The training step captured in a CUDA graph: one launch instead of hundreds.

There is no torch.compile: its kernels round otherwise, so nothing could be compared with the plain path, and compiling
takes longer than a short run trains.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from cifar_lab.errors import UserError, first_line
from cifar_lab.training.classifier import Batch, Classifier
from cifar_lab.training.optimizers import Muon

WARM_UP = 3  # calls before the capture, in which libraries allocate; as in torch's notes on CUDA graphs


class Graph:
    """`function` from tensors to tensors; on CUDA a graph of it is replayed, elsewhere it is called.

    The function must read nothing but its arguments and tensors that stay where they are, and must wait for no value.
    The next call overwrites the result. Arguments of other shapes start over. Raises UserError if the capture fails.
    """

    # NOT YET RUN ON A GPU: only on a simulated one (tests/make_believe.py), which replays operations.

    def __init__(self, function: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        self.function = function
        self.inputs: list[Tensor] = []

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if [x.shape for x in inputs] != [x.shape for x in self.inputs]:
            self.graph, self.calls = None, 0
            self.inputs = [torch.empty_like(x) for x in inputs]
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        if inputs[0].device.type != "cuda":
            return self.function(self.inputs)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up()
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()
        return self.outputs

    def _warm_up(self) -> list[Tensor]:
        """A call on the stream of the capture, which can't be the default one."""
        if self.calls == 1:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(self.inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _capture(self) -> Any:
        """A graph of the function. Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.outputs = self.function(self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(f"trainer.captured: this network can't be captured: {first_line(error)}") from error
        return graph


class CapturedClassifier(Classifier):
    """A Classifier whose training step is a Graph: forward and backward passes, clipping, and Muon's step.

    torch's SGD and AdamW take their learning rate from Python, so they step after the graph. Augmentation, metrics and
    the schedule stay outside. On a CPU, weights and metrics have the bits of a Classifier. Whether they do on a GPU is
    not known, so `trainer.captured` is part of the config hash.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def count_steps(self) -> int:
        self.trainer.fit_loop.setup_data()
        ranges: Any = self.trainer.train_dataloader
        return ranges.steps * self.trainer.max_epochs

    def on_train_start(self) -> None:
        self.graph = Graph(self._forward_backward)

    def on_train_end(self) -> None:
        del self.graph  # its addresses are those of this device

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients: the graph writes into them."""

    def training_step(self, batch: list[list[Batch]], index: int) -> None:  # type: ignore[override]
        """The steps of a range (see batches.Ranges)."""
        optimizer, schedule = self.trainer.optimizers[0], cast(LRScheduler, self.lr_schedulers())
        with torch.autocast(self.device.type, enabled=False):  # Lightning's would include the optimiser
            for parts in batch:
                self.learning_rate = optimizer.param_groups[0]["lr"]
                if isinstance(optimizer, Muon):
                    optimizer.copy_rates()
                outputs = self.graph([tensor for part in parts for tensor in part])
                if not isinstance(optimizer, Muon):
                    optimizer.step()
                schedule.step()
                for (_, targets), loss, scores in zip(parts, outputs[::2], outputs[1::2], strict=True):
                    self.record("train", loss, scores, self.logits(scores), targets)

    def _forward_backward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Loss and scores of each micro-batch of a step. inputs: its images and targets."""
        optimizer, outputs = self.trainer.optimizers[0], []
        optimizer.zero_grad()
        parts = list(zip(inputs[::2], inputs[1::2], strict=True))
        bf16 = self.trainer.precision == "bf16-mixed"
        for images, targets in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
                scores = self.scores(images).float()
                loss = self.loss(scores, targets, "train")
            (loss / len(parts)).backward()
            outputs += [loss.detach(), scores.detach()]
        if self.optim.clip_norm:
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(weights, self.optim.clip_norm)
        if isinstance(optimizer, Muon):
            optimizer.step()
        return outputs
