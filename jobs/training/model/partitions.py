"""This rank's part of the training state: DeepSpeed's flat fp32 partitions and Adam's moments, by parameter name.

DeepSpeed stores a rank's part of many parameters in few flat tensors, whose layout depends on the ZeRO stage.
`Partitions` describes every layout as a list of `Piece`s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from jobs.run.checkpoints import Slice

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A slice of a parameter, and its place in a flat partition."""

    slice: Slice
    flat: int  # number of the flat partition
    offset: int  # index of the slice's first element in the partition


@dataclass(frozen=True)
class Partitions:
    """The fp32 partitions of an engine's optimizer, and the pieces in them."""

    engine: Any  # deepspeed.DeepSpeedEngine
    flats: tuple[torch.Tensor, ...]  # (elements,) fp32 each, with padding; these are the optimizer's tensors
    pieces: tuple[Piece, ...]
    shapes: dict[str, tuple[int, ...]]  # shape of every trained parameter, in the model's order

    @classmethod
    def of(cls, engine: Any) -> Partitions:
        named = [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
        shapes = {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named}
        names = {id(parameter): name for name, parameter in named}
        zero = engine.optimizer
        if hasattr(zero, "fp32_partitioned_groups_flat"):  # ZeRO-3
            return cls(engine, tuple(zero.fp32_partitioned_groups_flat), tuple(_sharded(zero, names)), shapes)
        flats = getattr(zero, "single_partition_of_fp32_groups", None)
        if flats is None:  # ZeRO-1 in bf16
            flats = zero.fp32_groups_flat_partition
        return cls(engine, tuple(flats), tuple(_fragments(named)), shapes)

    def state(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Return the flat tensors of each of `jobs.run.checkpoints.KINDS`, with zeros for moments not yet created."""
        adam = self._adam.state
        moments = {
            kind: tuple(adam[flat][kind] if adam.get(flat) else torch.zeros_like(flat) for flat in self.flats)
            for kind in MOMENTS
        }
        return {"weight": self.flats, **moments}

    @torch.no_grad()
    def not_finite(self) -> list[str]:
        """Return the parameters of which this rank has a slice with a value that is NaN or infinite.

        The sum of such a slice is not finite either, and needs no memory.
        """
        sums = [self.flats[one.flat][one.offset : one.offset + one.slice.numel].sum() for one in self.pieces]
        finite = torch.stack(sums).isfinite().tolist() if sums else []
        return [one.slice.parameter for one, good in zip(self.pieces, finite, strict=True) if not good]

    def optimizer_step(self) -> int:
        """Return the number of updates that Adam has made."""
        states = [self._adam.state[flat] for flat in self.flats if self._adam.state.get(flat)]
        return int(states[0]["step"]) if states else 0

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return Adam's settings (betas, eps, weight_decay) and step for each parameter with a piece on this rank."""
        return {
            piece.slice.parameter: {
                "betas": list(group["betas"]),
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "step": int(self._adam.state[self.flats[piece.flat]].get("step", 0)),
            }
            for piece in self.pieces
            for group in [self._adam.param_groups[self._group_of(piece)]]
        }

    @torch.no_grad()
    def load(self, state: dict[str, tuple[torch.Tensor, ...]], optimizer_step: int) -> None:
        """Load flat tensors shaped as those of `state()`, and refresh the weights that the model computes with.

        Every rank must call it.
        """
        for number, flat in enumerate(self.flats):
            flat.data.copy_(state["weight"][number])
            adam = self._adam.state[flat]
            for kind in MOMENTS:
                if kind not in adam:
                    adam[kind] = torch.zeros_like(flat)
                adam[kind].copy_(state[kind][number])
            # DeepSpeed's Adam (offload) counts steps in an int, torch's fused one in a tensor beside the moments.
            own = type(self._adam).__module__.startswith("deepspeed")
            in_tensor = torch.tensor(optimizer_step, dtype=torch.float32, device=flat.device)
            adam["step"] = optimizer_step if own else in_tensor
        self._refresh()

    @torch.no_grad()
    def restart(self, weights: tuple[torch.Tensor, ...]) -> None:
        """Load flat weights shaped as `flats`, and reset the optimizer.

        Every rank must call it. Adam's moments are set to zero in place, so no memory is allocated.
        """
        for flat, kept in zip(self.flats, weights, strict=True):
            flat.data.copy_(kept)
            for name, value in (self._adam.state.get(flat) or {}).items():
                if isinstance(value, torch.Tensor):
                    value.zero_()
                else:
                    self._adam.state[flat][name] = 0
        self._refresh()

    def share_fp32_weights(self) -> None:
        """Let the optimizer update the model's weights directly, if these are fp32 shards of ZeRO-3.

        DeepSpeed makes a copy of them, which takes 4 bytes for each parameter of this rank. Without offload it means to
        avoid the copy, but it compares a `torch.device` with a device's name, and these are never equal.
        """
        zero = self.engine.optimizer
        if not hasattr(zero, "fp16_partitioned_groups_flat"):
            return
        for flat, computed in zip(self.flats, zero.fp16_partitioned_groups_flat, strict=True):
            if (flat.dtype, flat.device) == (computed.dtype, computed.device):
                flat.data = computed.data

    def free_gathered(self) -> None:
        """Free the whole weights that ZeRO-3 has gathered, and finish the gathering under way.

        DeepSpeed leaves both after a forward pass without a backward pass. The small weights that every rank keeps
        whole are freed too. Without ZeRO-3 this does nothing.
        """
        zero = self.engine.optimizer
        if hasattr(zero, "fp32_partitioned_groups_flat"):
            zero.parameter_offload.partition_all_parameters()

    def release(self) -> None:
        """Free the optimizer's states and the gradients. Afterwards neither training nor saving is possible."""
        for flat in self.flats:
            self._adam.state.pop(flat, None)
            flat.grad = None
            flat.data = torch.empty(0, dtype=flat.dtype, device=flat.device)
        zero = self.engine.optimizer
        if hasattr(zero, "grad_partitions_flat_buffer"):  # ZeRO-3
            zero.averaged_gradients.clear()
            for partition in zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values():
                partition.data = torch.empty(0, dtype=partition.dtype, device=partition.device)
            zero.grad_partitions_flat_buffer = None

    @property
    def _adam(self) -> Any:
        return self.engine.optimizer.optimizer

    def _group_of(self, piece: Piece) -> int:
        zero = self.engine.optimizer
        sub_groups = getattr(zero, "sub_group_to_group_id", None)
        return piece.flat if sub_groups is None else int(sub_groups[piece.flat])

    def _refresh(self) -> None:
        """Copy the fp32 weights to the tensors that the model computes with, as DeepSpeed does after a load."""
        zero = self.engine.optimizer
        if hasattr(zero, "fp32_partitioned_groups_flat"):
            self.free_gathered()  # otherwise these would be used instead of the new weights
            for number, flat in enumerate(self.flats):
                zero.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
                zero._unflatten_partitioned_parameters(number)
            if zero.persistent_parameters:  # small parameters, which every rank holds whole
                zero.persistent_parameters[0].partition(zero.persistent_parameters)
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        else:
            zero.update_lp_params()


def _sharded(zero: Any, names: dict[int, str]) -> Iterator[Piece]:
    """Yield the pieces of ZeRO-3, which cuts every parameter evenly. The last slices may be padded or empty."""
    for flat, group in enumerate(zero.fp16_groups):
        offset = 0
        for parameter in group:
            share = parameter.partition_numel()
            start = share * zero._get_param_partition_rank(parameter)
            numel = min(share, parameter.ds_numel - start)
            if numel > 0:
                yield Piece(Slice(names[id(parameter)], start, numel), flat, offset)
            offset += share


def _fragments(named: list[tuple[str, Any]]) -> Iterator[Piece]:
    """Yield the pieces of ZeRO-1 and 2, which concatenate whole parameters and cut the result."""
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is not None:
            start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            yield Piece(Slice(name, start, numel), mapping.param_group_index, mapping.hp_fragment_address.start)
