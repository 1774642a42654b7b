"""What Megatron-LM does, by Megatron-core's classes: a GPTModel, its optimizer, its checkpoints; see harness.run."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from growth import Architecture
from pretrain import families
from pretrain.data.samples import part
from pretrain.engine.cpu import adapt
from pretrain.layout import Layout
from tests.distributed import ranks

BETAS, EPS, DECAY, RATE = (0.9, 0.95), 1e-8, 0.1, 1e-2
METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


def arguments(arch: Architecture, layout: Layout) -> dict[str, Any]:
    """Those of a run of Megatron-LM with this model, as far as they say what the model is."""
    form = families.of(arch.family).megatron
    assert form is not None
    return {
        **form.arguments(arch),
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.virtual if layout.virtual > 1 else None,
        "params_dtype": torch.float32,
        "save": "/checkpoints/gpt",
        "lr": RATE,
    }


class Run:
    """A GPTModel of Megatron-core with its local layers under tensor parallelism, and its FP32Optimizer."""

    def __init__(self, arch: Architecture, tp: int) -> None:
        from megatron.core import parallel_state, tensor_parallel
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.optimizer import OptimizerConfig, _get_param_groups
        from megatron.core.optimizer.optimizer import FP32Optimizer
        from megatron.core.transformer import TransformerConfig

        adapt()
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
        tensor_parallel.get_cuda_rng_tracker().fork = lambda *_: contextlib.nullcontext()
        s = arch.sizes
        config = TransformerConfig(
            num_layers=s["layers"],
            hidden_size=s["hidden"],
            num_attention_heads=s["heads"],
            num_query_groups=s["kv_heads"],
            kv_channels=s["head_dim"],
            ffn_hidden_size=s["ffn"],
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            normalization="RMSNorm",
            layernorm_epsilon=arch.scalars["norm_eps"],
            tensor_model_parallel_size=tp,
            use_cpu_initialization=True,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bias_dropout_fusion=False,
            gradient_accumulation_fusion=False,
            masked_softmax_fusion=False,
            apply_rope_fusion=False,
            persist_layer_norm=False,
        )
        torch.manual_seed(0)
        self.arch, self.layout = arch, Layout.make(s["layers"], tp=tp)
        self.model = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=s["vocab"],
            max_sequence_length=ranks.SEQ_LEN,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
        )
        settings = OptimizerConfig(optimizer="adam", lr=RATE, weight_decay=DECAY, clip_grad=0.0)
        groups = _get_param_groups([self.model], settings, None)
        for group in groups:  # as Megatron-LM's scheduler does at each step
            group["weight_decay"] = DECAY * group["wd_mult"]
        adam = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
        own = torch.tensor
        with mock.patch("torch.tensor", lambda *args, device=None, **how: own(*args, **how)):  # its scale is on cuda
            self.optimizer = FP32Optimizer(adam, settings, _with_zeros)

    def train(self, data: list[Any]) -> list[float]:
        """The loss of one step for each batch."""
        losses = []
        for batch in data:
            self.optimizer.zero_grad()
            inputs = batch["inputs"]
            mask = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).triu(1)[None, None]
            position = torch.arange(inputs.shape[1]).expand_as(inputs)
            loss = self.model(inputs, position, mask, labels=batch["labels"]).mean()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def sharded(self, iteration: int, loading: bool = False) -> dict[str, Any]:
        """The state as Megatron-LM hands it to dist_checkpointing."""
        state: dict[str, Any] = {
            "model": self.model.sharded_state_dict(metadata=METADATA),
            "args": argparse.Namespace(**arguments(self.arch, self.layout)),
            "checkpoint_version": 3.0,
            "iteration": iteration,
        }
        state["optimizer"] = self.optimizer.sharded_state_dict(state, is_loading=loading, metadata=METADATA)
        return state

    def save(self, root: Path, iteration: int) -> None:
        """As torch_dist, with the file that names the newest."""
        from megatron.core import dist_checkpointing

        folder = root / f"iter_{iteration:07d}"
        if dist.get_rank() == 0:
            folder.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(self.sharded(iteration), str(folder))
        if dist.get_rank() == 0:
            (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))

    def load(self, root: Path) -> int:
        """What the newest checkpoint in torch_dist holds, as Megatron-LM loads it; its iteration."""
        from megatron.core import dist_checkpointing

        newest = int((root / "latest_checkpointed_iteration.txt").read_text())
        loaded = dist_checkpointing.load(self.sharded(newest, loading=True), str(root / f"iter_{newest:07d}"))
        self.model.load_state_dict(loaded["model"])
        self.optimizer.load_state_dict(loaded["optimizer"])
        for group in self.optimizer.param_groups:  # of the schedule, as above
            group.update(lr=RATE, weight_decay=DECAY * group["wd_mult"])
        return newest

    def values(self) -> list[Any]:
        """Every weight with its moments and its step, in the order of the model."""
        states = [(p, self.optimizer.optimizer.state[p]) for p in self.model.parameters()]
        return [
            (p.detach().numpy(), s["exp_avg"].numpy(), s["exp_avg_sq"].numpy(), float(s["step"])) for p, s in states
        ]

    def save_legacy(self, root: Path, iteration: int) -> None:
        """As each rank's own file, which Megatron-LM calls the format torch."""
        folder = root / f"iter_{iteration:07d}" / f"mp_rank_{dist.get_rank():02d}"
        folder.mkdir(parents=True)
        state = {
            "args": argparse.Namespace(**arguments(self.arch, self.layout)),
            "checkpoint_version": 3.0,
            "iteration": iteration,
            "model": self.model.state_dict_for_save_checkpoint(),
            "optimizer": self.optimizer.state_dict(),
            "rng_state": [
                {"random_rng_state": (3, (1, 2), None), "np_rng_state": __import__("numpy").random.get_state()}
            ],
        }
        torch.save(state, folder / "model_optim_rng.pt")


def _with_zeros(adam: torch.optim.Optimizer, *_: Any) -> None:
    for group in adam.param_groups:
        for p in group["params"]:
            adam.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def loaded_and_trained(arch: Architecture, tp: int, root: str, before: int, after: int) -> Any:
    """(what a run of Megatron-core has loaded, the losses of its next steps)."""
    run = Run(arch, tp)
    run.load(Path(root))
    values = [tuple(x.copy() if hasattr(x, "copy") else x for x in each) for each in run.values()]
    return values, run.train(ranks.batches(arch, before + after)[before:])


def trained_and_saved(arch: Architecture, tp: int, before: int, after: int, root: str) -> list[float]:
    """Trains, saves in both formats, trains on: the losses of the steps after."""
    run = Run(arch, tp)
    data = ranks.batches(arch, before + after)
    run.train(data[:before])
    run.save(Path(root) / "torch_dist", before)
    run.save_legacy(Path(root) / "torch", before)
    return run.train(data[before:])


def zero_trained_and_saved(arch: Architecture, tp: int, stage: int, before: int, after: int, root: str) -> list[float]:
    """As above under DeepSpeed's ZeRO, saved by DeepSpeed itself with what Megatron-DeepSpeed gives it to keep."""
    from types import SimpleNamespace

    import deepspeed
    from megatron.core import parallel_state

    from pretrain.engine.zero import _mpu

    run = Run(arch, tp)
    dp, dp_rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    groups = [{**group, "params": list(group["params"])} for group in run.optimizer.param_groups]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)
    config = {
        "train_micro_batch_size_per_gpu": ranks.GLOBAL_BATCH // dp,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
    }
    args = SimpleNamespace(device_rank=0)
    engine, *_ = deepspeed.initialize(
        args=args, model=run.model, optimizer=adam, mpu=_mpu(), config=config, dist_init_required=False
    )
    losses = []
    for number, batch in enumerate(ranks.batches(arch, before + after)):
        if number == before:
            state = {"args": argparse.Namespace(**arguments(arch, run.layout)), "iteration": before}
            engine.save_checkpoint(root, client_state={**state, "checkpoint_version": 3.0})
        here = part(batch, dp_rank, dp)
        inputs = here["inputs"]
        mask = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).triu(1)[None, None]
        position = torch.arange(inputs.shape[1]).expand_as(inputs)
        loss = engine(inputs, position, mask, labels=here["labels"]).mean()
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean, group=parallel_state.get_data_parallel_group())
        losses.append(mean.item() / dp)
    return losses[before:]


def imported_and_trained(arch: Architecture, how: dict[str, Any], path: str, before: int, after: int) -> list[float]:
    """The losses of an engine of ours that goes on from an imported checkpoint."""
    import growth
    from pretrain.checkpoint import Reader
    from pretrain.engine.engine import Adam, Engine
    from pretrain.engine.shards import fill, publish
    from pretrain.state import State

    adam = Adam(BETAS, EPS, DECAY, clip=0.0)
    layout = ranks.layout(arch, how)
    engine = Engine(arch, layout, ranks.FP32, adam, seq_len=ranks.SEQ_LEN, micro_batch=ranks.MICRO_BATCH)
    with Reader(Path(path)) as reader:
        fill(engine, growth.identity(arch), reader)
        publish(engine, State.from_reader(reader))
    return [loss for loss, _ in ranks.train(engine, ranks.batches(arch, before + after)[before:])]


def save_ranks(arch: Architecture, how: dict[str, Any], half: bool, root: str) -> Any:
    """A run of ours under a layout, saved here, and as each rank of Megatron-LM saves the same model: what it owns."""
    engine = ranks.engine_for(arch, how)
    ranks.begin(engine)
    ranks.train(engine, ranks.batches(arch, 2))
    layout = engine.layout
    pp_rank, _, tp_rank = layout.coordinates(dist.get_rank())
    names = [f"model{i}" for i in range(layout.virtual)] if layout.virtual > 1 else ["model"]
    dtype = torch.bfloat16 if half else torch.float32
    models = {
        name: {
            key: value.to(dtype) for key, value in chunk.state_dict_for_save_checkpoint().items() if value is not None
        }
        for name, chunk in zip(names, engine.chunks, strict=True)
    }
    full = {o.parameter.name: o for o in engine.owned}
    listed = [p for p, _ in engine.parameters]
    groups = [[p for p in listed if len(p.shape) > 1], [p for p in listed if len(p.shape) == 1]]
    ids = {p.name: i for i, p in enumerate(part for group in groups for part in group)}
    inner = {
        "state": {
            ids[p.name]: {k: getattr(full[p.name], k).clone().view(p.shape) for k in ("exp_avg", "exp_avg_sq")}
            for p in listed
        },
        "param_groups": [
            {"params": [ids[p.name] for p in group], "wd_mult": decay, "step": 2, "betas": BETAS}
            for group, decay in zip(groups, (1.0, 0.0), strict=True)
        ],
    }
    masters = [[full[p.name].weight.clone().view(p.shape) for p in group] for group in groups]
    for group in masters:
        for tensor in group:
            tensor.tensor_model_parallel = True  # type: ignore[attr-defined]
    state = {
        "args": argparse.Namespace(**arguments(arch, layout)),
        "checkpoint_version": 3.0,
        "iteration": 2,
        **models,
        "optimizer": {"optimizer": inner, "fp32_from_fp16_params": masters} if half else inner,
    }
    name = f"mp_rank_{tp_rank:02d}" + (f"_{pp_rank:03d}" if layout.pp > 1 else "")
    folder = Path(root) / "iter_0000002" / name
    folder.mkdir(parents=True)
    torch.save(state, folder / "model_optim_rng.pt")
    return ranks.collected(engine)
