#!/usr/bin/env python3
"""Trains longcot-10m, longcot-mla or longcot-32k on generated problems (README.md beside this file).

train.py --model longcot-mla --seconds 1080 --workers 12 --out DIR [--resume] [--check]
"""
import argparse
import json
import math
import os
import sys
import time
from collections import namedtuple

import data
import problems

HERE = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.normpath(os.path.join(HERE, "..", "..", "models", "longcot-10m"))
# stages: part of the time up to which a stage lasts, and its highest level. hold: part of the time before the decay.
# cells: how many of problems.CELLS are drawn. start: a folder whose weights are the first ones.
Recipe = namedtuple("Recipe", "stages cells learning_rate hold start")
SCRATCH = Recipe([(0.01, 1), (0.03, 3), (0.25, 5), (1.0, 6)], problems.SHORT_CELLS, 2e-3, 0.45, None)
LONGER = [(0.05, 7), (0.14, 8), (0.36, 9), (1.0, 10)]
RECIPES = {
    "longcot-10m": SCRATCH,
    "longcot-mla": SCRATCH,
    "longcot-32k": Recipe(LONGER, len(problems.CELLS), 1e-3, 0.4, SHIPPED),
}
STARTED = time.monotonic()


def log(text):
    print(f"[{time.monotonic() - STARTED:7.1f}] {text}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description="Trains a longcot model.")
    parser.add_argument("--model", choices=tuple(RECIPES), default="longcot-mla")
    parser.add_argument("--seconds", type=float, default=1080, help="training time; the schedule follows it")
    parser.add_argument("--stop-after", type=float, help="save and end after so much of it; --resume goes on")
    parser.add_argument("--workers", type=int, default=12, help="processes that make data")
    parser.add_argument("--out", required=True, help="folder of the checkpoint, the log and the exported model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt where there is one")
    parser.add_argument("--check", action="store_true", help="choose kernels, compile, time 30 steps, then end")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens-per-step", type=int, default=131072)
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto", help="auto: on a GPU only")
    kernels = ("varlen_attn", "flash", "flex", "documents")
    parser.add_argument("--attention", choices=kernels, help="this kernel or none; else the first that agrees")
    parser.add_argument("--float32", action="store_true", help="float32 activations")
    parser.add_argument("--blocks", type=int, help="another number of blocks, for a small trial")
    parser.add_argument("--max-level", type=int, default=problems.LAST_LEVEL, help="highest level, for a small trial")
    parser.add_argument("--tasks", default=",".join(problems.LEVELS), help="tasks by name, for a small trial")
    parser.add_argument("--start", help="folder of a model of equal shape: its weights are the first ones; none: random")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--warm-up", type=int, default=150, help="steps")
    parser.add_argument("--save-every", type=float, default=60)
    parser.add_argument("--measure-every", type=float, default=40)
    parser.add_argument("--per-cell", type=int, default=12, help="held-out problems of each cell while training")
    parser.add_argument("--final-per-cell", type=int, default=20, help="problems of each cell after training")
    parser.add_argument("--greedy-seconds", type=float, default=60, help="greedy decoding after training; 0: none")
    options = parser.parse_args()
    recipe = RECIPES[options.model]
    options.start = recipe.start if options.start is None else options.start
    options.learning_rate = options.learning_rate or recipe.learning_rate
    return options


def top_level(part, options):
    stages = RECIPES[options.model].stages
    return min(options.max_level, next(level for end, level in stages if part < end or end == 1.0))


def cells_of(options, top):
    """Cells of the model and of the asked tasks, up to level `top`."""
    tasks = options.tasks.split(",")
    cells = enumerate(problems.CELLS[: RECIPES[options.model].cells])
    return [cell for cell, (task, level) in cells if level <= top and task in tasks]


def cell_weights(part, errors, options):
    """Documents drawn by cell: 0.35 + min(1, 2.5 x error of the cell), zero over the stage's level."""
    drawn = cells_of(options, top_level(part, options))
    return [0.35 + min(1.0, 2.5 * error) if cell in drawn else 0.0 for cell, error in enumerate(errors)]


def rate_at(part, step, options):
    """Learning rate: warm-up, constant for the recipe's `hold`, then linear to 1 %."""
    hold = RECIPES[options.model].hold
    decay = 1.0 if part < hold else 1.0 - 0.99 * min(1.0, (part - hold) / (1.0 - hold))
    return options.learning_rate * min(1.0, (step + 1) / options.warm_up) * decay


def load_model(path, device):
    """(model, checkpoint) of a checkpoint file."""
    import torch
    from model import Config, Decoder

    state = torch.load(path, map_location=device, weights_only=False)
    model = Decoder(Config(**state["config"]), getattr(torch, state["dtype"])).to(device)
    model.load_state_dict(state["model"])
    return model, state


class Trainer:
    """One training: model, optimizer, place in the schedule."""

    def __init__(self, options, source):
        import attention
        import torch
        from model import MODELS, Decoder

        self.torch, self.options, self.source, self.device = torch, options, source, options.device
        self.checkpoint = os.path.join(options.out, "checkpoint.pt")
        torch.manual_seed(options.seed)
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise SystemExit("[train] no CUDA device is there: --device cpu runs small trials")
            log(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
        dtype = torch.float32 if options.float32 or self.device == "cpu" else torch.bfloat16
        config = MODELS[options.model]
        if options.blocks:
            config = type(config)(**{**vars(config), "blocks": options.blocks})
        self.model = Decoder(config, dtype, options.seed)
        if options.start and options.start != "none":
            import export

            export.load(self.model, options.start)
            log(f"first weights: {options.start}")
        self.model.to(self.device)
        log(f"{options.model}: {sum(p.numel() for p in self.model.parameters()):,} parameters")
        shape = (config.heads, config.attention_kv_heads, config.key_dim)
        self.attend = attention.choose(*shape, self.device, dtype, log, options.attention)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.parameters = matrices + others
        fused = self.device == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=fused)
        self.step, self.tokens, self.elapsed = 0, 0, 0.0
        self.errors = [1.0] * len(problems.CELLS)

    def loss(self, batch):
        from evaluate import put

        return self.model.loss(*put(batch, self.device), self.attend)

    def compile(self, batch, packs):
        """Compiles the model's parts; keeps plain code where that fails or differs."""
        from attention import first_line
        from evaluate import exact_chains

        torch = self.torch

        def measure():
            self.optimizer.zero_grad(set_to_none=True)
            loss, _ = self.loss(batch)
            loss.backward()
            norm = torch.stack([p.grad.float().norm() for p in self.parameters]).norm()
            self.optimizer.zero_grad(set_to_none=True)
            return loss.item(), norm.item()

        plain = measure()
        if self.options.compile == "no" or (self.options.compile == "auto" and self.device == "cpu"):
            log(f"not compiled: loss {plain[0]:.5f}, gradient norm {plain[1]:.5f}")
            return
        try:
            self.model.compile_parts()
            compiled = measure()
            same = all(math.isfinite(b) and abs(a - b) <= 0.05 * abs(a) for a, b in zip(plain, compiled))
            log("compiled: loss {:.5f}, norm {:.5f}; plain: loss {:.5f}, norm {:.5f}".format(*compiled, *plain))
            exact_chains(self.model, self.attend, packs[:1], self.device)
        except Exception as error:  # Whatever a compiler raises: plain code does the same, slower.
            log(f"torch.compile: not usable here ({first_line(error)})")
            same = False
        if not same:
            log("plain code is used")
            self.model.plain_parts()

    def train_step(self, batch, part):
        torch = self.torch
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(part, self.step, self.options)
        loss, loads = self.loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The routing bias comes to rest with the learning rate, down to a tenth of its speed.
        decay = rate_at(part, self.options.warm_up, self.options) / self.options.learning_rate
        self.model.balance(loads, 1e-3 * max(0.1, decay))
        self.step += 1
        self.tokens += len(batch.ids)
        return loss.detach(), norm.detach(), [load.detach() for load in loads]

    def measure(self, packs):
        """Errors of held-out chains by cell; sets the cells' shares."""
        from evaluate import exact_chains, table

        result = exact_chains(self.model, self.attend, packs, self.device)
        for cell, (right, number) in result.items():
            self.errors[cell] = 1.0 - right / number
        log(table(f"held-out exact chains at step {self.step}", result))
        return result

    def save(self):
        """The checkpoint, and the model as it stands: a run that is cut off leaves both."""
        from export import export

        state = {
            "name": self.options.model,
            "config": vars(self.model.config),
            "dtype": str(self.model.dtype).split(".")[1],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "elapsed": self.elapsed,
            "errors": self.errors,
        }
        self.torch.save(state, self.checkpoint + ".tmp")
        os.replace(self.checkpoint + ".tmp", self.checkpoint)
        export(self.model, os.path.join(self.options.out, self.options.model), SHIPPED)

    def load(self):
        state = self.torch.load(self.checkpoint, map_location=self.device, weights_only=False)
        if state["config"] != vars(self.model.config):
            raise SystemExit(f"[train] {self.checkpoint} is of another model: use another --out")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("step", "tokens", "elapsed", "errors"):
            setattr(self, name, state[name])

    def run(self, packs):
        """Trains until `seconds` of training are used (True), or until `stop_after` in this process (False)."""
        torch, options = self.torch, self.options
        begun, before = time.monotonic(), self.elapsed
        logged = saved = measured = begun
        losses, tokens_logged, stage, norm = [], self.tokens, None, torch.zeros(())
        while True:
            now = time.monotonic()
            self.elapsed = before + now - begun
            part = self.elapsed / options.seconds
            if part >= 1 or (options.stop_after and now - begun >= options.stop_after):
                break
            if top_level(part, options) != stage:
                stage = top_level(part, options)
                log(f"levels 1 to {stage}")
                self.source.forget()
                self.source.set_weights(cell_weights(part, self.errors, options))
            loss, norm, loads = self.train_step(self.source.next(), part)
            losses.append(loss)
            if now - logged >= 5 or self.step == 10:
                mean = torch.stack(losses).mean().item()
                rate = (self.tokens - tokens_logged) / (time.monotonic() - logged)
                uneven = max((load.max() / load.mean()).item() for load in loads) if loads else 1.0
                log(
                    f"step {self.step} part {part:.3f} loss {mean:.5f} norm {norm.item():.3f} "
                    f"lr {rate_at(part, self.step, options):.2e} {rate / 1e6:.3f} M tokens/s "
                    f"total {self.tokens / 1e6:.0f} M backlog {self.source.backlog()} again {self.source.again}"
                    + (f" fullest expert x{uneven:.2f}" if loads else "")
                )
                losses, logged, tokens_logged = [], time.monotonic(), self.tokens
                if not math.isfinite(mean):
                    if not os.path.exists(self.checkpoint):
                        raise SystemExit("[train] the loss is not finite and there is no checkpoint")
                    log("the loss is not finite: back to the last checkpoint, with half the learning rate")
                    kept = self.elapsed
                    self.load()
                    self.elapsed, tokens_logged = kept, self.tokens
                    options.learning_rate *= 0.5
            if now - measured >= options.measure_every:
                measured = now
                self.measure(packs)
                self.source.set_weights(cell_weights(part, self.errors, options))
            if now - saved >= options.save_every and math.isfinite(norm.item()):
                saved = now
                self.save()
        if math.isfinite(norm.item()):
            self.save()
        log(f"trained: {self.step} steps, {self.tokens / 1e6:.1f} M tokens, {self.elapsed:.0f} s of training in all")
        return part >= 1


def check_speed(trainer):
    """Times 30 steps."""
    torch = trainer.torch
    for number in range(40):
        if number == 10:
            if trainer.device == "cuda":
                torch.cuda.synchronize()
            start, tokens = time.monotonic(), trainer.tokens
        loss, _, _ = trainer.train_step(trainer.source.next(), 0.1)
        if number % 10 == 9:
            log(f"check: step {number + 1} loss {loss.item():.4f} backlog {trainer.source.backlog()}")
    if trainer.device == "cuda":
        torch.cuda.synchronize()
        log(f"check: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most on the device")
    log(f"check: {(trainer.tokens - tokens) / (time.monotonic() - start) / 1e6:.3f} M tokens/s")


def finish(trainer, options):
    """Measures the trained model: the cheap measure first."""
    from evaluate import exact_chains, greedy, named, table

    trainer.model.plain_parts()
    cells = cells_of(options, options.max_level)
    examples = data.held_out(SHIPPED, options.seed, options.final_per_cell, cells, "final", options.tokens_per_step)
    packs = data.packs(examples, options.tokens_per_step)
    exact = exact_chains(trainer.model, trainer.attend, packs, options.device)
    log(table("exact chains, teacher-forced", exact))
    result = {
        "model": options.model,
        "seed": options.seed,
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "seconds": round(trainer.elapsed, 1),
        "exact": named(exact),
    }

    def write():
        with open(os.path.join(options.out, "result.json"), "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")

    write()
    if options.greedy_seconds > 0:
        tokens = data.Tokens(os.path.join(SHIPPED, "tokenizer.json"))
        deadline = time.monotonic() + options.greedy_seconds
        answers = greedy(trainer.model, examples, options.device, tokens, deadline=deadline, log=log)
        log(table("answers, greedy", answers))
        result["greedy"] = named(answers)
        write()


def main():
    options = arguments()
    os.makedirs(options.out, exist_ok=True)
    if not set(options.tasks.split(",")) <= set(problems.LEVELS):
        sys.exit(f"[train] --tasks {options.tasks}: the tasks are {', '.join(problems.LEVELS)}")
    # Before torch is loaded: the workers are forked from a process that has no device and no threads.
    source = data.Source(SHIPPED, options.seed, options.workers, options.tokens_per_step)
    weights = cell_weights(0.0, [1.0] * len(problems.CELLS), options)
    source.start(weights, f"{time.time_ns()}" if options.resume else "0")
    cells = cells_of(options, options.max_level)
    held = data.held_out(SHIPPED, options.seed, options.per_cell, cells, "watch", options.tokens_per_step)
    packs = data.packs(held, options.tokens_per_step)
    log(f"{len(held)} held-out problems in {len(packs)} packs")
    try:
        trainer = Trainer(options, source)
        if options.resume and os.path.exists(trainer.checkpoint):
            trainer.load()
            log(f"resumed at step {trainer.step}, {trainer.elapsed:.0f} s")
        trainer.compile(source.next(), packs)
        if options.check:
            check_speed(trainer)
            trainer.measure(packs)
            return
        trainer.measure(packs)  # Compiles what the measure needs, before the time starts.
        if trainer.run(packs):
            finish(trainer, options)
            log("done")
        else:
            log("stopped: the same command with --resume goes on")
    finally:
        source.stop()


if __name__ == "__main__":
    main()
