"""Train janus-tiny on CPU for a given time. Start with torchrun, one process per core.

The learning rate follows elapsed training time, not steps: a machine that slows down still finishes its cool-down.
A step that took longer than MAX_STEP_S, because the process was stopped or swapped out, counts as MAX_STEP_S.
"""

import argparse
import os
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .export import export
from .model import Model, ModelConfig
from .muon import Muon
from .registers import DEFAULT_WORKDIR, REGISTERS

MAX_STEP_S = 10.0
LOG_EVERY = 20
DEAD_LOAD = 0.05  # an expert with less than this share of its even load counts as dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    seed: int = 7
    batch_tokens: int = 8192
    length: int = 256
    cooldown_length: int = 512
    warmup: float = 0.01  # shares of the time budget
    cooldown: float = 0.45
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.1
    adam_lr: float = 3e-3
    adam_betas: tuple[float, float] = (0.9, 0.95)
    balance_weight: float = 0.012

    def rate(self, progress: float) -> float:
        """Learning-rate factor: warm up, stay, then fall linearly to zero."""
        return min(1.0, (progress + 1e-3) / self.warmup, max(0.0, 1 - progress) / self.cooldown)

    def window(self, progress: float) -> int:
        return self.length if progress < 1 - self.cooldown else self.cooldown_length


class Batches:
    """Shuffled non-overlapping windows of one token row; every epoch cuts the row at another offset."""

    def __init__(self, tokens: np.ndarray, seed: int, rank: int, world: int) -> None:
        self._tokens, self._rank, self._world = tokens, rank, world
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Begin a first epoch of another random order."""
        self._seed = seed
        self.epoch, self._length, self._starts = -1, 0, np.empty(0, dtype=np.int64)

    def next(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """This rank's share of the next global batch: inputs and targets [batch / world, length]."""
        if length != self._length or len(self._starts) < batch:
            self.epoch, self._length = self.epoch + 1, length
            rng = np.random.default_rng([self._seed, self.epoch])
            starts = np.arange(rng.integers(length), len(self._tokens) - length - 1, length)
            self._starts = rng.permutation(starts)
        taken, self._starts = self._starts[:batch], self._starts[batch:]
        rows = np.stack([self._tokens[s : s + length + 1] for s in taken[self._rank :: self._world]])
        windows = torch.from_numpy(rows.astype(np.int64))
        return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def heldout_losses(model: Model, workdir: Path, max_windows: int = 24) -> dict[str, float]:
    """Mean loss per register over windows of full context, and their mean weighted by tokens."""
    context, batch = model.config.context, 8
    total, windows, losses = 0.0, 0, {}
    for register in REGISTERS:
        tokens = torch.from_numpy(np.load(workdir / f"{register}.heldout.npy").astype(np.int64))
        rows = tokens.unfold(0, context + 1, context)[:max_windows]
        parts = [(len(part), model(part[:, :-1], part[:, 1:])[0].item()) for part in rows.split(batch)]
        register_sum = sum(n * loss for n, loss in parts)
        losses[register] = register_sum / len(rows)
        total, windows = total + register_sum, windows + len(rows)
    return {"all": total / windows} | losses


def optimizers(model: Model, recipe: Recipe) -> tuple[Muon, torch.optim.Optimizer]:
    """Muon on attention and expert matrices, AdamW on the embedding, routers and norms."""
    blocks = list(model.blocks)
    matrices = [(block.moe.gate_up, 2) for block in blocks] + [(block.moe.down, 1) for block in blocks]
    for name in ("q_proj", "o_proj", "k_proj", "v_proj"):
        matrices += [(getattr(block.attention, name), 1) for block in blocks]
    in_muon = {id(parameter) for parameter, _ in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_muon]
    muon = Muon(matrices, momentum=recipe.muon_momentum, weight_decay=recipe.muon_weight_decay)
    adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=recipe.adam_betas, weight_decay=0.0, fused=True)
    return muon, adam


def flatten_gradients(model: Model) -> Tensor:
    """Make every gradient a view of one buffer, so that ranks average it in one call. The last element is a clock."""
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()) + 1)
    offset = 0
    for parameter in model.parameters():
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return flat


@dataclass(slots=True)
class Progress:
    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0


class Trainer:
    """Model, optimizers and data of one rank, and the step that advances them."""

    def __init__(self, recipe: Recipe, workdir: Path, budget_s: float) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.recipe, self.workdir, self.budget_s = recipe, workdir, budget_s
        torch.manual_seed(recipe.seed)
        self.model = Model(ModelConfig())
        self.muon, self.adam = optimizers(self.model, recipe)
        self.flat = flatten_gradients(self.model)
        self.progress = Progress()
        tokens = np.concatenate([np.load(workdir / f"{register}.train.npy") for register in REGISTERS])
        self.batches = Batches(tokens, recipe.seed, self.rank, self.world)
        self._step_started = time.monotonic()

    @property
    def done(self) -> bool:
        return self.progress.elapsed_s >= self.budget_s

    @property
    def fraction(self) -> float:
        return self.progress.elapsed_s / self.budget_s

    def step(self) -> tuple[float, Tensor]:
        """One optimizer step on all ranks; this rank's loss and expert shares [layers, experts]."""
        recipe, rate = self.recipe, self.recipe.rate(self.fraction)
        length = recipe.window(self.fraction)
        self.flat.zero_()
        loss, balance, shares = self.model(*self.batches.next(recipe.batch_tokens // length, length))
        (loss + recipe.balance_weight * balance).backward()
        now = time.monotonic()
        self.flat[-1] = min(now - self._step_started, MAX_STEP_S)
        self._step_started = now
        dist.all_reduce(self.flat)
        self.flat /= self.world
        self.muon.step(recipe.muon_lr * rate)
        self.adam.param_groups[0]["lr"] = recipe.adam_lr * rate
        self.adam.step()
        self.progress.step += 1
        self.progress.tokens += recipe.batch_tokens
        self.progress.elapsed_s += self.flat[-1].item()
        return loss.item(), shares

    @property
    def _checkpoint(self) -> Path:
        return self.workdir / f"checkpoint.rank{self.rank}.pt"  # per rank: each holds its part of Muon's momentum

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.buffers,
            "adam": self.adam.state_dict(),
            "progress": asdict(self.progress),
        }
        scratch = self._checkpoint.with_suffix(".tmp")
        torch.save(state, scratch)
        scratch.replace(self._checkpoint)

    def resume(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.buffers = state["muon"]
        self.adam.load_state_dict(state["adam"])
        self.progress = Progress(**state["progress"])
        self.batches.reseed(self.recipe.seed + self.progress.step)


class Log:
    """Averages over LOG_EVERY steps, printed by rank 0."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._reset()

    def _reset(self) -> None:
        config = self._trainer.model.config
        self._loss, self._shares = 0.0, torch.zeros(config.layers, config.experts)
        self._since, self._tokens = time.monotonic(), self._trainer.progress.tokens

    def add(self, loss: float, shares: Tensor) -> None:
        self._loss += loss / LOG_EVERY
        self._shares += shares / LOG_EVERY
        trainer, now = self._trainer, self._trainer.progress
        if now.step % LOG_EVERY:
            return
        if trainer.rank == 0:
            load = self._shares * trainer.model.config.experts
            speed = (now.tokens - self._tokens) / (time.monotonic() - self._since)
            print(
                f"step {now.step} min {now.elapsed_s / 60:.1f} epoch {trainer.batches.epoch} "
                f"tokens {now.tokens / 1e6:.2f}M loss {self._loss:.3f} lr x{trainer.recipe.rate(trainer.fraction):.2f} "
                f"{speed:.0f} tok/s load max {load.max():.2f} dead {(load < DEAD_LOAD).sum()}",
                flush=True,
            )
        self._reset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=DEFAULT_WORKDIR)
    parser.add_argument("--minutes", type=float, default=75.0, help="training time, cool-down included")
    parser.add_argument("--save-every", type=float, default=8.0, help="minutes between checkpoints and exports")
    parser.add_argument("--export", type=Path, action="append", default=[], help="model directory to keep up to date")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(hours=6))
    trainer = Trainer(Recipe(), args.workdir, args.minutes * 60)
    if args.resume:
        trainer.resume()
    pids: list[int] = [0] * trainer.world
    dist.all_gather_object(pids, os.getpid())
    if trainer.rank == 0:
        (args.workdir / "pids").write_text("".join(f"{pid}\n" for pid in pids))

    log = Log(trainer)
    next_save_s = trainer.progress.elapsed_s + args.save_every * 60
    while not trainer.done:
        log.add(*trainer.step())
        if trainer.progress.elapsed_s < next_save_s and not trainer.done:
            continue
        next_save_s += args.save_every * 60
        trainer.save()
        if trainer.rank == 0:
            heldout = heldout_losses(trainer.model, args.workdir)
            print("held out " + " ".join(f"{name} {loss:.3f}" for name, loss in heldout.items()), flush=True)
            for directory in args.export:
                export(trainer.model.state_dict(), trainer.model.config, args.workdir / "tokenizer.json", directory)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
