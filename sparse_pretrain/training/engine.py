"""The only file that knows DeepSpeed: one engine with the same few verbs at ZeRO 1, 2 and 3.

ZeRO keeps three things apart for every parameter, and so do we:

* the **working copy** that forward uses (fp32, bf16 or fp16), whole on every rank at stages 1 and 2,
  sharded at stage 3 (small ones whole as well);
* the **fp32 master**, of which each rank owns one flat fragment;
* Adam's **moments**, fragments of the same shape as the master's.
"""

import contextlib
import importlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup
from torch import Tensor, nn

from sparse_pretrain.config.training import OptimizerSection
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.models.pretraining import Predictions, PretrainingModel, arguments
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.ranks import ProcessGroupRanks
from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.training.gradient_norm import BLOCK, sum_of_squares
from sparse_pretrain.training.precision import Resolved

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """This rank's part of one parameter: elements [start, start + length) of it, flattened.

    Attributes:
        start: first element.
        length: elements; 0 when this rank owns none.
        master: fp32 view [length] of the optimizer's own memory.
        moments: views [length] by name; empty before the first optimizer step.
    """

    start: int
    length: int
    master: Tensor
    moments: dict[str, Tensor]


class Engine:
    """A student under DeepSpeed: forward, backward, step, and access to its partitioned weights.

    Implements `pruning.weights.WeightAccess`. Parameter names are Hugging Face's own;
    distillation's projections have a prefix (`models.projections`).
    """

    def __init__(self, model: PretrainingModel, section: OptimizerSection, config: dict[str, Any]) -> None:
        self.stage = int(config["zero_optimization"]["stage"])
        self.parameters: dict[str, nn.Parameter] = model.trained_parameters()
        self.shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        self._adam = adam(model, section)
        originals = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        compile_nothing()
        load_optimizers()
        with quiet_warnings():
            self._deepspeed, self._zero, _, _ = deepspeed.initialize(
                model=model, optimizer=self._adam, config=config, dist_init_required=False
            )
        # A model that was loaded, not made, comes without dropout (`from_pretrained` ends with `eval`).
        self._deepspeed.train()
        self.device: torch.device = self._deepspeed.device
        self.ranks = ProcessGroupRanks()
        # What DeepSpeed divides gradients by.
        ranks = 1 if config.get("gradient_allreduce_op") == "sum" else dist.get_world_size()
        self._divided_by = float(ranks * int(config["gradient_accumulation_steps"]))
        # ZeRO-3 keeps gradients by group and place; at the other stages the parameter knows its place.
        groups = self._zero.fp16_groups if self.stage == 3 else []
        self._place_in_group = {
            parameter.ds_id: place for group in groups for place, parameter in enumerate(group)
        }
        self._restore_masters(originals)
        if self.stage < 3:
            # A NaN or infinity anywhere makes the gradient norm one, which DeepSpeed looks at next, on all ranks
            # together: searching every gradient for the smallest and the largest value before is a tenth of a step.
            self._zero.check_overflow = lambda partition_gradients=True: None
            self._zero._add_to_grad_partition_buffer = add_gradient
            if self.device.type == "cpu":
                self._keep_gradient_buffers()
        self._zero.get_grad_norm_direct = self._norm_of_all
        # At its lowest scale DeepSpeed would end an fp16 run itself; when to give up is the guard's to say.
        self._zero.loss_scaler.raise_error_at_min_scale = False

    # --- the training step ---------------------------------------------------------------------

    def __call__(self, batch: Batch) -> Predictions:
        """Run the student forward with gradient."""
        return self._deepspeed(*arguments(batch))  # type: ignore[no-any-return]

    def backward(self, share: Tensor) -> None:
        """Accumulate gradients of `share`, this micro-batch's share of the global loss.

        DeepSpeed averages over micro-batches (at stage 3 over ranks, too); our shares are already divided by
        global counts and must be summed, so its division is undone here, once.
        """
        self._deepspeed.backward(share * self._divided_by)
        if not self._deepspeed.is_gradient_accumulation_boundary():
            # Only counts the micro-batch.
            self._deepspeed.step()

    def step(self) -> bool:
        """Update the weights; called once, after the last micro-batch's backward.

        Returns:
            False when the update was skipped, on all ranks: a gradient was NaN or infinite somewhere (fp16:
            beyond the loss scale, which shrinks).
        """
        self._deepspeed.step()
        return bool(self._deepspeed.was_step_applied())

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the coming optimizer step."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate

    def gradient_norm(self) -> float:
        """Return the global gradient norm of the last step, before clipping."""
        norm = self._deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _norm_of_all(self, gradients: list[Tensor], _parameters: Any) -> Tensor:
        """Return the norm of a group's gradients over all ranks; -1, as DeepSpeed has it, when it is no number.

        DeepSpeed's own makes a copy in double precision of every gradient first: a tenth of a step on a CPU.
        """
        squares = sum_of_squares(gradients).to(self.device)
        dist.all_reduce(squares)
        norm = squares.sqrt().float()
        return torch.where(norm.isfinite(), norm, -torch.ones_like(norm))

    def _keep_gradient_buffers(self) -> None:
        """Let DeepSpeed sum gradients in the same memory at every step; only a GPU's allocator would give it again.

        A seventh of a step on a CPU was the system zeroing the pages of a buffer as large as the masters.
        """
        build = self._zero._build_compact_grad_partition_buffer
        kept: dict[int, tuple[Tensor, Any]] = {}

        def buffer_of(group: int) -> Any:
            if group not in kept:
                made = build(group)
                kept[group] = (made.flat_partition, made._view_specs)
                return made
            flat, places = kept[group]
            flat.zero_()
            views = []
            for offset, shape, is_padding in places:
                view = flat.narrow(0, offset, math.prod(shape)).view(shape)
                if is_padding:
                    view._zero_padding = True  # type: ignore[attr-defined]
                views.append(view)
            return GradPartitionBufferGroup(views, flat)

        self._zero._build_compact_grad_partition_buffer = buffer_of

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """Run the student without gradient or dropout (collective at stage 3)."""
        self._deepspeed.eval()
        try:
            return self._deepspeed(*arguments(batch))  # type: ignore[no-any-return]
        finally:
            self._deepspeed.train()

    # --- what pruning asks for (pruning.weights.WeightAccess) ---------------------------------------

    def part(self, name: str) -> Part | None:
        """Return this rank's part of a weight's fp32 master; None when it has none."""
        fragment = self.fragment(name)
        return Part(name, fragment.start, fragment.master) if fragment.length else None

    def gradient(self, name: str) -> Tensor | None:
        """Return this rank's part of a reduced gradient, flat, before clipping; None when it has none.

        A view of what the coming `step` reads: valid after the last micro-batch's backward only.
        """
        fragment = self.fragment(name)
        if not fragment.length:
            return None
        parameter: Any = self.parameters[name]
        if self.stage == 3:
            group = self._zero.grad_position[parameter.ds_id][0]
            gradients = self._zero.averaged_gradients[group]
            return gradients[self._place_in_group[parameter.ds_id]].view(-1)[: fragment.length]  # type: ignore[no-any-return]
        mapping = parameter._hp_mapping
        gradients = self._zero.averaged_gradients[mapping.param_group_index]
        flat = getattr(gradients, "flat_partition", None)
        if flat is not None:
            return flat.narrow(0, mapping.get_hp_fragment_address().start, fragment.length)  # type: ignore[no-any-return]
        return gradients[parameter._index_in_param_group].view(-1)  # type: ignore[no-any-return]

    @property
    def gradient_scale(self) -> float:
        """What the gradients are multiplied by until the step undoes it (fp16's loss scale), else 1."""
        return float(self._zero.loss_scale)

    def gradients_are_finite(self) -> bool:
        """Say whether no gradient of any parameter is NaN or infinite on any rank (collective)."""
        broken = torch.zeros(1, dtype=torch.int64, device=self.device)
        for name in self.parameters:
            gradient = self.gradient(name)
            if gradient is not None:
                broken += torch.count_nonzero(~torch.isfinite(gradient))
        return int(self.ranks.sum(broken)) == 0

    def working(self, name: str) -> tuple[int, Tensor]:
        """Return what this rank holds of the copy that forward uses: index of its first element, flat view."""
        parameter: Any = self.parameters[name]
        # Not `is_whole`: a forward pass that runs meanwhile gathers and frees what is not persistent.
        if self.stage < 3 or parameter.ds_persist:
            return 0, parameter.data.view(-1)
        fragment = self.fragment(name)
        return fragment.start, parameter.ds_tensor.data.view(-1)[: fragment.length]

    def mask_working_copies(self, masks: MaskSet) -> None:
        """Set pruned weights of the copies that forward uses to zero, in place."""
        for name in masks:
            parameter = self.parameters[name]
            if self.stage == 3:
                fragment = self.fragment(name)
                shard = parameter.ds_tensor.data[: fragment.length]  # type: ignore[attr-defined]
                masks.multiply(name, shard, fragment.start)
            if self.stage < 3 or is_whole(parameter):
                # Persistent small parameters keep a whole copy beside their shard (ZeRO-3): mask both,
                # or the next forward uses the stale one.
                masks.multiply(name, parameter.data)

    def zero_pruned(self, masks: MaskSet) -> None:
        """Set master and moments of pruned weights to zero, in place."""
        for name in masks:
            fragment = self.fragment(name)
            for tensor in (fragment.master, *fragment.moments.values()):
                masks.multiply(name, tensor, fragment.start)

    # --- partitioned state -----------------------------------------------------------------------

    def full_master(self, name: str) -> Tensor:
        """Return the whole fp32 master of a parameter on every rank (collective)."""
        fragment = self.fragment(name)
        whole = torch.zeros(self.shapes[name].numel(), dtype=torch.float32, device=self.device)
        whole[fragment.start : fragment.start + fragment.length] = fragment.master
        dist.all_reduce(whole)
        return whole.reshape(self.shapes[name])

    def fragment(self, name: str) -> Fragment:
        """Return this rank's fragment of a parameter."""
        if self.stage == 3:
            return self._fragment_of_stage_3(self.parameters[name], self.shapes[name].numel())
        return self._fragment_of_stages_1_and_2(self.parameters[name])

    def _fragment_of_stages_1_and_2(self, parameter: Any) -> Fragment:
        mapping = parameter._hp_mapping
        if mapping is None:
            return Fragment(0, 0, torch.empty(0, device=self.device), {})
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        place = mapping.get_hp_fragment_address()
        return self._fragment_at(flat, place.start, mapping.lp_fragment_address.start, place.numel)

    def _fragment_of_stage_3(self, parameter: Any, numel: int) -> Fragment:
        group, offset, size = self._zero.grad_position[parameter.ds_id]
        flat = self._zero.fp32_partitioned_groups_flat[group]
        start = size * dist.get_rank()
        # The last ranks' shards are padded up to equal size: what lies beyond the weight is not ours.
        length = max(0, min(size, numel - start))
        return self._fragment_at(flat, offset, start if length else 0, length)

    def _fragment_at(self, flat: Tensor, offset: int, start: int, length: int) -> Fragment:
        state = self._adam.state.get(flat, {})
        moments = {key: state[key].data.narrow(0, offset, length) for key in MOMENTS if key in state}
        return Fragment(start, length, flat.data.narrow(0, offset, length), moments)

    def fragments(self) -> Iterator[tuple[str, Fragment]]:
        """Yield this rank's fragments of all parameters, empty ones left out."""
        for name in self.parameters:
            fragment = self.fragment(name)
            if fragment.length:
                yield name, fragment

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps that Adam has counted (its bias correction depends on them)."""
        return max((int(state["step"]) for state in self._adam.state.values() if "step" in state), default=0)

    def create_moments(self, steps: int) -> None:
        """Give Adam zero moments and `steps` counted steps, so that a checkpoint can be read into them."""
        partitions = (
            self._zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else self._zero.single_partition_of_fp32_groups
        )
        for flat in partitions:
            counter = torch.tensor(
                float(steps), device=flat.device if self._adam.defaults["fused"] else "cpu"
            )
            self._adam.state[flat] = {
                "step": counter,
                **{key: torch.zeros_like(flat.data) for key in MOMENTS},
            }

    def load_working_copy(self, name: str, read: Callable[[int, int], Tensor]) -> None:
        """Overwrite what this rank holds of the copy that forward uses, cast to its precision.

        Args:
            name: the parameter.
            read: returns fp32 elements [start, start + length) of it, given start and length.
        """
        parameter = self.parameters[name]
        if self.stage == 3:
            fragment = self.fragment(name)
            shard = parameter.ds_tensor.data[: fragment.length]  # type: ignore[attr-defined]
            shard.copy_(read(fragment.start, fragment.length))
        if self.stage < 3 or is_whole(parameter):
            parameter.data.copy_(read(0, parameter.numel()).reshape(parameter.shape))

    def _restore_masters(self, originals: dict[str, Tensor]) -> None:
        # DeepSpeed casts the model first and copies the masters from the cast: in bf16 the low bits of
        # pre-trained weights would be lost before the first step.
        for name, fragment in self.fragments():
            part = originals[name].reshape(-1)[fragment.start : fragment.start + fragment.length]
            fragment.master.copy_(part)

    def loss_scale_state(self) -> dict[str, Any]:
        """Return the dynamic loss scaler's counters (fp16; constant elsewhere)."""
        scaler = self._zero.loss_scaler
        return {
            key: getattr(scaler, key)
            for key in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
            if hasattr(scaler, key)
        }

    def load_loss_scale_state(self, state: dict[str, Any]) -> None:
        """Continue with saved loss-scaler counters; those of a run in another precision mean nothing here."""
        if state.keys() == self.loss_scale_state().keys():
            for key, value in state.items():
                setattr(self._zero.loss_scaler, key, value)


class ShardedTeacher:
    """A frozen model of which every rank holds one ZeRO-3 shard; layers are gathered while they run."""

    def __init__(self, model: PretrainingModel, precision: Resolved, micro_size: int) -> None:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro_size,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        }
        if precision != "fp32":
            config[precision] = {"enabled": True}
        model.requires_grad_(False).eval()
        compile_nothing()
        load_optimizers()
        with quiet_warnings():
            self._deepspeed, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)
        self._deepspeed.eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Predictions:
        """Run the teacher; every rank must call at the same time."""
        return self._deepspeed(*arguments(batch))  # type: ignore[no-any-return]


def add_gradient(output: Tensor | None, source: Tensor) -> None:
    """Add a gradient to this rank's sum of them, whose precision may be higher.

    On a CPU a block at a time, converted in its cache: a third of what a whole copy, or torch's mixed addition, takes.
    """
    if output is None:
        return
    if output.device.type != "cpu" or output.dtype == source.dtype:
        output.add_(source)
        return
    blocks = (tensor.view(-1).split(BLOCK) for tensor in (output, source))
    for mine, more in zip(*blocks, strict=True):
        mine.add_(more.to(mine.dtype))


def compile_nothing() -> None:
    """Tell DeepSpeed that its shared-memory communication between CPU ranks cannot be built on this machine.

    It would compile it at its first start (a minute, with a C++ compiler and Python's headers, and a lock file that
    a killed rank leaves behind) for an all-reduce that only inference calls; training goes over gloo with or
    without it.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def load_optimizers() -> None:
    """Import the optimizers that DeepSpeed compares ours with, without torch's compiler.

    One of them (Muon) is decorated with `torch.compile`, which would import all of torch._inductor: a second of
    processor time on every rank, for what we never call.
    """
    name, before = "TORCHDYNAMO_DISABLE", os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ[name] = "1"
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def is_whole(parameter: nn.Parameter) -> bool:
    """Say whether a ZeRO-3 parameter is whole on this rank right now."""
    status = getattr(parameter, "ds_status", None)
    return status is not None and status.name == "AVAILABLE"


def adam(model: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """Build AdamW with two groups: matrices decay, biases and LayerNorm weights (vectors) do not."""
    decayed = [
        parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim >= 2
    ]
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=section.learning_rate,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        fused=True,
    )


class quiet_warnings(warnings.catch_warnings):  # noqa: N801 - used as a context manager, like its parent
    """Hide Python warnings of DeepSpeed's start (torch's renamed collectives) from the user."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
