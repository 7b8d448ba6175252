"""Converted configurations read by Accelerate and DeepSpeed; see scripts/check-configs."""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import get_scheduler

# Each: flags of launch, and what Accelerate's environment for the job has to hold.
ACCELERATE = [
    ("--num_processes 2", {}),
    ("--num_processes 1 --bf16", {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    (
        "--num_processes 8 --zero_stage 1 --gradient_accumulation_steps 4 --max_grad_norm 0.5",
        {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
            "ACCELERATE_GRADIENT_CLIPPING": "0.5",
        },
    ),
    (
        "--num_processes 8 --zero_stage 3 --fp16 --max_grad_norm 0.00001",
        {
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
            "ACCELERATE_MIXED_PRECISION": "fp16",
            "ACCELERATE_GRADIENT_CLIPPING": "1e-05",
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        },
    ),
    (
        "--num_processes 8 --zero_stage 2 --offload_optimizer_device nvme --offload_optimizer_nvme_path /mnt/fast",
        {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"},
    ),
    (
        "--num_processes 8 --distributed_type FSDP --gradient_checkpointing false",
        {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_ACTIVATION_CHECKPOINTING": "false",
        },
    ),
    (
        "--num_processes 8 --fsdp_version 2 --fsdp_reshard_after_forward false --fsdp_auto_wrap_policy SIZE_BASED_WRAP "
        "--fsdp_min_num_params 5000",
        {"FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "5000"},
    ),
    (
        "--num_processes 8 --fsdp_sharding_strategy SHARD_GRAD_OP --fsdp_backward_prefetch BACKWARD_POST",
        {"FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP", "FSDP_BACKWARD_PREFETCH": "BACKWARD_POST"},
    ),
    (
        "--num_processes 8 --distributed_type FSDP --parallelism_config_dp_replicate_size 2",
        {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"},
    ),
    (
        "--num_processes 8 --nnodes 2 --node_rank 1 --rdzv_endpoint node0:29500 --zero_stage 3",
        {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    ),
]

DEEPSPEED = [
    "--zero_stage 0",
    "--zero_stage 1 --bf16 --gradient_accumulation_steps 4",
    "--zero_stage 2 --fp16 --max_grad_norm 0.3 --offload_optimizer_device nvme --offload_optimizer_nvme_path /mnt/fast",
    "--zero_stage 3 --bf16 --reduce_dtype bfloat16 --max_steps 50 --warmup_steps 5 --learning_rate 1e-4",
    "--zero_stage 3 --max_steps 50 --warmup_ratio 0.1 --lr_scheduler_type cosine --adam_beta2 0.95 --weight_decay 0.1",
    "--zero_stage 1 --warmup_steps 5 --lr_scheduler_type constant_with_warmup",
    "--zero_stage 3 --num_processes 8 --fsdp_version 2 --fsdp_reshard_after_forward 2",
]


class Checker:
    """Converts with `launch`, reads with the others, and counts what differs."""

    def __init__(self, launch, folder):
        self.launch, self.folder, self.checked, self.wrong = launch, folder, 0, 0

    def run(self, line):
        """What launch prints for `config LINE`."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM_"))}
        done = subprocess.run([self.launch, "config", *line.split()], env=clean, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"error: launch config {line}: {done.stderr}")
        return done.stdout

    def compare(self, what, found, expected):
        self.checked += 1
        if found != expected:
            self.wrong += 1
            print(f"{what}: {found!r} in place of {expected!r}", file=sys.stderr)

    def accelerate(self, line, expected):
        """A file as Accelerate's launcher takes it, up to the environment of the job."""
        path = self.folder / "accelerate.yaml"
        path.write_text(self.run(f"convert --to accelerate {line}"))
        config = load_config_from_file(str(path))
        shown = {key["key"]: key["value"] for key in json.loads(self.run(f"show --json {line}"))["keys"]}
        self.compare(f"{line}: num_processes", config.num_processes, shown["num_processes"])
        arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
        arguments, _, _ = _validate_launch_command(arguments)
        self.compare(f"{line}: mixed_precision", arguments.mixed_precision, shown["mixed_precision"])
        if arguments.use_deepspeed:
            # As accelerate's own launch_command does.
            arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
            _, environment = prepare_deepspeed_cmd_env(arguments)
        else:
            environment = prepare_multi_gpu_env(arguments)
        for name, value in expected.items():
            self.compare(f"{line}: {name}", environment.get(name), value)

    def deepspeed(self, line):
        """A JSON as DeepSpeed reads it, each value beside launch's own."""
        from deepspeed.runtime.config import DeepSpeedConfig

        path = self.folder / "deepspeed.json"
        path.write_text(self.run(f"convert --to deepspeed {line}"))
        shown = {key["key"]: key["value"] for key in json.loads(self.run(f"show --json {line}"))["keys"]}
        config = DeepSpeedConfig(str(path))
        parameters = config.optimizer_params
        found = {
            "per_device_train_batch_size": config.train_micro_batch_size_per_gpu,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "max_grad_norm": config.gradient_clipping,
            "zero_stage": config.zero_optimization_stage,
            "learning_rate": parameters["lr"],
            "adam_beta1": parameters["betas"][0],
            "adam_beta2": parameters["betas"][1],
            "adam_epsilon": parameters["eps"],
            "weight_decay": parameters["weight_decay"],
        }
        for key, value in found.items():
            self.compare(f"{line}: {key}", value, shown[key])
        dtype = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        self.compare(f"{line}: reduce_dtype", dtype.get(config.communication_data_type), shown["reduce_dtype"])
        precision = {"bf16": config.bfloat16_config.enabled, "fp16": config.float16_config.enabled, "no": True}
        self.compare(f"{line}: mixed_precision", precision[shown["mixed_precision"]], True)
        if config.scheduler_name is not None:
            self.schedule(line, config, shown)

    def schedule(self, line, config, shown):
        """Every rate of DeepSpeed's schedule beside transformers'."""
        from deepspeed.runtime import lr_schedules

        total = shown["max_steps"] if shown["max_steps"] > 0 else 50
        warmup = config.scheduler_params["warmup_num_steps"]

        def rates(make):
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=shown["learning_rate"])
            scheduler = make(optimizer)
            rates = []
            for _ in range(total):
                optimizer.step()
                scheduler.step()
                rates.append(optimizer.param_groups[0]["lr"])
            return rates

        theirs = rates(lambda optimizer: getattr(lr_schedules, config.scheduler_name)(optimizer, **config.scheduler_params))
        ours = rates(lambda optimizer: get_scheduler(shown["lr_scheduler_type"], optimizer, warmup, total))
        # DeepSpeed's rates come a step later, and its cosine then goes a step ahead: at most that much may differ.
        far = max(abs(left - right) for left, right in zip(theirs[1:], ours[:-1])) / shown["learning_rate"]
        step = math.pi / 2 / (total - warmup)
        self.compare(f"{line}: rates (largest difference {far:.3g} of the highest)", far <= 1.001 * step, True)


def main():
    parser = argparse.ArgumentParser(prog="scripts/check-configs", description=__doc__)
    parser.add_argument("--launch", required=True, help="the program launch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(arguments.launch, Path(folder))
        for line, expected in ACCELERATE:
            checker.accelerate(line, expected)
        for line in DEEPSPEED:
            checker.deepspeed(line)
    print(f"{checker.checked - checker.wrong} values agree, {checker.wrong} differ")
    sys.exit(1 if checker.wrong else 0)


if __name__ == "__main__":
    main()
