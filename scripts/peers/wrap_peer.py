"""The peers: how each wraps transformers' model, each with the settings that were fastest for it on a CPU."""

import contextlib

import torch

ADAM = {"betas": (0.9, 0.95), "eps": 1e-8}


def decayed_groups(model, weight_decay):
    """As transformers' Trainer, and Zerofold: matrices decay (embeddings and head too), norm weights do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


class TorchPeer:
    """What DDP and FSDP2 share: torch's fused AdamW, and clipping by the norm of the whole gradient."""

    def __init__(self, wrapped, job):
        self.wrapped, self.accumulation, self.max_grad_norm = wrapped, job["accumulation"], job["max_grad_norm"]
        groups = decayed_groups(wrapped, job["weight_decay"])
        self.optimizer = torch.optim.AdamW(groups, lr=job["learning_rate"], fused=True, **ADAM)

    def backward(self, loss):
        (loss / self.accumulation).backward()

    def finish_step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.wrapped.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


class Ddp(TorchPeer):
    """DistributedDataParallel. bf16 is autocast over float32 weights, as in transformers' Trainer; gradients are float32,
    and micro-batches before the last one do not send any (no_sync)."""

    def __init__(self, model, job):
        self.bf16 = job["dtype"] == "bf16"
        super().__init__(
            torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False), job
        )
        self.pending = contextlib.ExitStack()

    def loss(self, ids, last):
        # no_sync has to cover forward and backward; it is left before the next micro-batch.
        self.pending.close()
        if not last:
            self.pending.enter_context(self.wrapped.no_sync())
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.wrapped(input_ids=ids, labels=ids, use_cache=False).loss


class Fsdp2(TorchPeer):
    """fully_shard on each decoder layer and the rest; float32 masters, gradients reduced in float32 after every
    micro-batch (they stay sharded, which is what stages 2 and 3 are for)."""

    def __init__(self, model, job, keep=False, compiled=False):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dtype = torch.bfloat16 if job["dtype"] == "bf16" else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for layer in model.model.layers:
            if compiled:
                layer.compile()
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=not keep)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        for module in [*model.model.layers, model]:
            module.set_force_sum_reduction_for_comms(True)  # Gloo has no mean
        self.keep = keep
        super().__init__(model, job)

    def loss(self, ids, last):
        if self.keep:  # gathered once per step, released at its end
            self.wrapped.set_reshard_after_backward(last)
        return self.wrapped(input_ids=ids, labels=ids, use_cache=False).loss


class DeepSpeed:
    """ZeRO 1, 2 or 3. In bf16 its weights are rounded to bfloat16 before the masters are made of them, and gradients
    are sent in bfloat16. torch's fused AdamW took no more processor time than DeepSpeed's own CPUAdam."""

    def __init__(self, model, job, stage):
        import deepspeed

        optimizer = torch.optim.AdamW(
            decayed_groups(model, job["weight_decay"]), lr=job["learning_rate"], fused=True, **ADAM
        )
        config = {
            "train_micro_batch_size_per_gpu": job["batch"],
            "gradient_accumulation_steps": job["accumulation"],
            "gradient_clipping": job["max_grad_norm"],
            "bf16": {"enabled": job["dtype"] == "bf16"},
            "zero_optimization": {"stage": stage},
            "zero_allow_untrusted_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

    def loss(self, ids, last):
        return self.engine(input_ids=ids, labels=ids, use_cache=False).loss

    def backward(self, loss):
        self.engine.backward(loss)
        self.engine.step()

    def finish_step(self):
        return float(self.engine.get_global_grad_norm())


PEERS = {
    "ddp": Ddp,
    "fsdp2": Fsdp2,
    "fsdp2-keep": lambda model, job: Fsdp2(model, job, keep=True),
    "fsdp2-compiled": lambda model, job: Fsdp2(model, job, compiled=True),
    "zero1": lambda model, job: DeepSpeed(model, job, 1),
    "zero2": lambda model, job: DeepSpeed(model, job, 2),
    "zero3": lambda model, job: DeepSpeed(model, job, 3),
}
