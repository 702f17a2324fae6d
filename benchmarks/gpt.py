"""GPT against Hugging Face GPT-2 of the same sizes: training and generation, tokens per second, in one run.

    python benchmarks/gpt.py [--quick] [--threads 2] [--rounds 9]

writes results/gpt.json. Both nets are GPT-2 (learned positions, layer norm, GELU, biases, tied embeddings) with 65
symbols, in two sizes. Training is a whole step: forward, backward, update; for pofx the learner's step, with
its gradient norm and its guard. Generation samples a whole block from an empty prompt, with the cache of either.
``limit`` is what the multiplications alone would take at the speed of a large matrix product on this machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time

from timing import Results, race

SIZES = {"small": (4, 4, 128, 64, 12), "base": (6, 6, 384, 256, 16)}  # layers, heads, width, block, batch
SYMBOLS = 65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    import torch
    import transformers

    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    results = Results(
        args.quick, threads=args.threads, torch=torch.__version__, transformers=transformers.__version__,
        gemm_gflops=gemm(torch) / 1e9,
    )  # fmt: skip
    for name in ["small"] if args.quick else SIZES:
        compare(name, args.rounds, results)
    results.save()


def gemm(torch) -> float:
    """Operations per second of a large matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


def compare(name: str, rounds: int, results: Results) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from pofx.core.learner import Batch, Recipe
    from pofx.core.requests import StepByStep
    from pofx.families.sequence import Gpt, GptConfig
    from pofx.spaces import Text

    layers, heads, width, block, batch = SIZES[name]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(SYMBOLS, (batch, block + 1), generator=generator)

    space = Text("".join(map(chr, range(40, 40 + SYMBOLS))), has_eos=False, length=block - 1)
    config = GptConfig(
        layers=layers, n_heads=heads, width=width, block=block, positions="learned", norm="layer", mlp="gelu",
        bias="all", qk_norm=False, tied=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = Gpt(config, space)
        theirs = GPT2LMHeadModel(GPT2Config(
            vocab_size=SYMBOLS, n_positions=block, n_embd=width, n_layer=layers, n_head=heads,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None,
        ))  # fmt: skip
    learner = ours.learner(Recipe(lr=1e-3))
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-3, foreach=True)
    ours.train()
    theirs.train()

    def our_step() -> None:
        learner.step(Batch(tokens, total=batch), generator)

    def their_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        theirs(tokens[:, :-1], labels=tokens[:, :-1]).loss.backward()
        optimizer.step()

    count = sum(p.numel() for p in ours.net.parameters())
    per_token = 6 * count + 6 * layers * width * block  # forward and backward; half of the attention is masked
    limit = results.entries[0]["gemm_gflops"] * 1e9 / per_token
    times = race({"pofx": our_step, "hf": their_step}, rounds)
    report(results, "train", name, batch, batch * block, times, limit)

    theirs.eval()
    for n in (1, 32):

        def our_sample(n: int = n) -> None:
            ours.sample(n, generator=generator, sampler=StepByStep(length=block - 1))

        def their_sample(n: int = n) -> None:
            with torch.inference_mode():
                theirs.generate(
                    torch.zeros(n, 1, dtype=torch.long), attention_mask=torch.ones(n, 1, dtype=torch.long),
                    do_sample=True, top_k=0, max_new_tokens=block - 1, min_new_tokens=block - 1, use_cache=True,
                    pad_token_id=0, eos_token_id=None,
                )  # fmt: skip

        times = race({"pofx": our_sample, "hf": their_sample}, max(3, rounds // 2))
        report(results, "generate", name, n, n * (block - 1), times, None)


def report(
    results: Results, what: str, name: str, batch: int, tokens: int, times: dict[str, list[float]], limit: float | None
) -> None:
    rate = {who: tokens / statistics.median(t) for who, t in times.items()}
    entry = {f"{who}_tokens_per_s": r for who, r in rate.items()}
    ratios = sorted(b / a for a, b in zip(times["pofx"], times["hf"], strict=True))
    entry |= {"ratio": statistics.median(ratios), "ratio_lowest": ratios[0], "ratio_highest": ratios[-1]}
    if limit is not None:
        entry["share_of_gemm_limit"] = rate["pofx"] / limit
    results.emit(what=what, size=name, batch=batch, **entry)


if __name__ == "__main__":
    main()
