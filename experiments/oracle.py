"""What is the best any pruning could do? Trains every sub-network of small networks, and measures searches against it.

A network of 5 and 5 masks has 961 usable sub-networks. Each is cut out of a trained parent, trained for a session and
scored; tables of the smallest networks, and the regret of searches replayed on them, come out. It goes on where it was
interrupted.

    python experiments/oracle.py --tier small
    python experiments/oracle.py --tier cpu --kinds ablation one-shot --parents 3 --out runs/oracle
    python experiments/oracle.py --report runs/oracle
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from protocol import (
    Pictures,
    Recipe,
    SelectorName,
    Setup,
    fill_in,
    in_a_sentence,
    load_data,
    make_selector,
    problems_of,
    refuse,
    set_up,
)


Kind = Literal["ablation", "one-shot", "equal", "path", "scratch"]
Tier = Literal["small", "cpu", "full"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Which sub-networks of which parents are trained, and how."""

    pictures: Annotated[Pictures, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Pictures)
    tier: Tier = "small"
    """small: 3+3 masks, minutes. cpu: 5+5 masks, minutes for a parent. full: 5+5, long sessions, for a GPU."""
    kinds: tuple[Kind, ...] = ("ablation", "one-shot")
    """ablation: not trained. one-shot: a short session. equal: one for every mask removed. path: masks leave one after
    another, the best ones of every size go on. scratch: every shape from fresh weights, the first session on top."""
    out: Path | None = None
    """Output folder, in which a study goes on if there is one. Default: runs/oracle-<tier>-<task>."""
    parents: int = 1
    """Trained networks, of this many seeds."""
    seed: int = 0
    """Of the first parent."""
    replicates: int = 1
    """Orders of the data in which every sub-network is trained: two tell how reliable a table is."""
    max_size: int | None = None
    """Only sub-networks of at most so many masks: small ones decide what the smallest is. Replay needs them all."""
    beam: int = 4
    """With path: networks of every size that go on."""
    draws: int = 3
    """With scratch: fresh starts of every shape."""
    widths: tuple[int, ...] | None = None
    """Masks of each prunable layer. Default: 5 5; 3 3 in tier small."""
    kernel: int = 5
    """Kernel size, odd."""
    form: Literal["compact", "masked"] | None = None
    """Train sub-networks cut out (a program for every shape) or masked (one for all). Default: compact where the
    CPU computes, except in tier small."""
    thresholds: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
    """Shares of the reference score, in the report."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Recipe)
    report: Path | None = None
    """Only write the report of the study in this folder."""
    quiet: bool = False
    """Print nothing but errors."""


# What a tier changes: of the pictures, the recipe (over the preset "quick") and the network.
TIERS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "small": ({"size": 64}, {"crop": 32, "first_steps": 1200, "steps": 100}, (3, 3)),
    "cpu": ({"size": 128}, {"crop": 48, "first_steps": 800, "steps": 300}, (5, 5)),
    "full": ({}, {"crop": 128, "batch": 3, "first_steps": 10_000, "steps": 2_000}, (5, 5)),
}
NETWORKS_AT_ONCE = 128  # on a GPU


def resolve(config: Config) -> tuple[Config, Recipe]:
    """Fills in what was not given, from the tier and the preset, and checks it all before any work is done."""
    pictures, recipe, widths = TIERS[config.tier]
    plain = Pictures()
    chosen = {name: value for name, value in pictures.items() if getattr(config.pictures, name) == getattr(plain, name)}
    given = {name: value for name, value in dataclasses.asdict(config.recipe).items() if value is not None}
    source = dataclasses.replace(config.pictures, **chosen)
    filled = fill_in(Recipe(**{**recipe, **given}), "quick", source)
    config = dataclasses.replace(config, pictures=source, widths=widths if config.widths is None else config.widths)
    counts = {name: getattr(config, name) for name in ("parents", "replicates", "beam", "draws")}
    problems = [
        *problems_of(source, filled),
        (min(counts.values()) < 1, f"{', '.join(counts)} must be at least 1"),
        (min(config.widths, default=0) < 1, f"--widths is {config.widths}: give one number or more, each at least 1"),
        (sum(config.widths) > 14, f"--widths is {config.widths}: that many masks cannot be enumerated"),
        (config.kernel < 1 or config.kernel % 2 == 0, f"--kernel is {config.kernel}: use an odd size"),
        (filled.first_steps < 1, "--first-steps must be at least 1"),
        (not all(0 < each <= 1 for each in config.thresholds), "--thresholds are shares in (0, 1]"),
    ]
    refuse("oracle.py", problems)
    return config, filled


# The study


@dataclasses.dataclass(frozen=True)
class Study:
    """A setup, the ledger its rows go to, and how sub-networks are trained."""

    config: Config
    setup: Setup
    ledger: Any
    masked: bool
    together: int
    show: Any
    clock: dict[str, float] = dataclasses.field(default_factory=lambda: {"evaluation": 0.0})

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.config.widths or ()

    @property
    def steps(self) -> int:
        return self.setup.recipe.steps

    @functools.cached_property
    def whole(self) -> str:
        from maskprune import alive

        return alive.full(self.sizes)

    @functools.cached_property
    def train(self) -> Any:
        import maskprune

        # Their number at once is fixed, so that no result depends on what else there is to train.
        population = maskprune.make_population(self.setup.step, self.setup.task.draw, at_once=self.together)
        return maskprune.train_many(population, self.setup.task.data)

    def evaluate(self, state: Any) -> dict[str, float]:
        began = time.perf_counter()
        found = self.setup.task.evaluate(state)
        self.clock["evaluation"] += time.perf_counter() - began
        return found

    def model(self, shape: tuple[int, ...]) -> Any:
        import maskprune

        return maskprune.models.fcn(shape, kernel=self.config.kernel, initial=self.setup.recipe.initial)

    def network(self, params: Any, alive: str) -> Any:
        """A network from saved parameters, cut out or masked as this study does it."""
        import maskprune

        if not self.masked:
            return maskprune.init_network(params, self.model(maskprune.alive.shape(alive)).groups)
        whole = maskprune.init_network(params, self.setup.model.groups)
        return maskprune.subsets.cut(whole, alive, masked=True)

    def try_all(self, key: Any, jobs: list[Any], steps: Any, label: str) -> Iterator[list[Any]]:
        from maskprune import subsets

        if not jobs:
            return
        began, judged, done = time.perf_counter(), self.clock["evaluation"], 0
        self.show.start(label, len(jobs))
        for piece in subsets.train_each(
            key,
            jobs,
            train=self.train,
            evaluate=self.evaluate,
            optimizer=self.setup.optimizer,
            steps=steps,
            together=self.together,
        ):
            yield piece
            done += len(piece)
            self.show.move(done)
        self.show.end()
        spent, judging = time.perf_counter() - began, self.clock["evaluation"] - judged
        self.show.say(f"{label}: {done} in {spent:.1f} s, {spent / done:.3f} s each, {judging / spent:.0%} evaluation")

    def row(self, found: Any, *, parent: int, kind: str, replicate: int = 0, **more: Any) -> dict[str, Any]:
        """A row of the ledger, from a `Tried`."""
        from maskprune import alive

        shape = alive.shape(found.alive)
        return {
            "parent": parent,
            "kind": kind,
            "replicate": replicate,
            "alive": found.alive,
            "masks": sum(shape),
            "shape": list(shape),
            "multiply_adds": self.multiply_adds(shape),
            "score": found.metrics["score"] if found.finite else float("nan"),
            "relative_rmse": found.metrics["relative_rmse"],
            "steps": found.steps,
            "seconds": round(found.seconds, 4),
            **more,
        }

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        import jax

        import maskprune

        return maskprune.models.multiply_adds(jax.eval_shape(self.model(shape).init, jax.random.key(0)))

    def missing(self, wanted: list[str], **where: Any) -> list[str]:
        done = {row["alive"] for row in self.ledger.find(**where)}
        return [alive for alive in wanted if alive not in done]


def keys_of(seed: int) -> tuple[Any, Any]:
    """For a start, and for everything that is done with it."""
    import jax

    return tuple(jax.random.split(jax.random.key(seed)))


def trained_parent(study: Study, seed: int) -> Any:
    """The network of a seed: trained once, kept in a file, and always read from there. Notes what it scores."""
    import jax

    import maskprune

    path = study.ledger.path.parent / "parents" / f"seed-{seed}.npz"
    start_key, work_key = keys_of(seed)
    one = lambda key, state, share: study.train([key], [state], steps=study.setup.recipe.first_steps, share=share)[0]
    if not path.exists():
        study.show.say(f"training the parent of seed {seed}")
        start = maskprune.train_start(start_key, study.setup.start, one, trouble=study.setup.task.trouble)
        about = {"seed": seed, "steps": start.steps, "redrawn": list(start.redrawn)}
        maskprune.models.save(path, start.state.network.params, about=about)
    network = maskprune.init_network(maskprune.models.load(path)[1], study.setup.model.groups)
    for kind, steps in (("parent", 0), ("control", study.steps)):
        for replicate in range(study.config.replicates if steps else 1):
            if not study.ledger.find(parent=seed, kind=kind, replicate=replicate):
                key, jobs = jax.random.fold_in(work_key, replicate), [(study.whole, lambda: network)]
                for piece in study.try_all(key, jobs, steps, f"seed {seed}, {kind}"):
                    study.ledger.add(study.row(each, parent=seed, kind=kind, replicate=replicate) for each in piece)
    return network


def score_masks(study: Study, seed: int, network: Any) -> None:
    """What every selector says of the parent's masks."""
    import jax
    import numpy as np

    key = jax.random.fold_in(keys_of(seed)[1], 2**20)
    for name in get_args(SelectorName):
        if not study.ledger.find(parent=seed, kind="selector", selector=name):
            found = jax.jit(make_selector(name, study.setup))(key, network, study.setup.sample(name))
            scores = [np.asarray(found[group.name], float).tolist() for group in network.groups]
            study.ledger.add([{"parent": seed, "kind": "selector", "selector": name, "scores": scores}])


def try_subsets(study: Study, seed: int, network: Any, kind: str, replicate: int) -> None:
    """All sub-networks of a parent: not trained, in one session, or in one for every mask removed."""
    import jax

    from maskprune import alive, subsets

    wanted = alive.every(study.sizes, most=study.config.max_size)
    todo = study.missing(wanted, parent=seed, kind=kind, replicate=replicate)
    masked = study.masked or kind == "ablation"  # untrained, it is not worth a program for every shape
    jobs = [(each, functools.partial(subsets.cut, network, each, masked=masked)) for each in todo]
    gone = lambda each: sum(study.sizes) - alive.count(each)
    steps = {"ablation": 0, "one-shot": study.steps, "equal": lambda each: study.steps * gone(each)}[kind]
    key = jax.random.fold_in(keys_of(seed)[1], replicate)
    for piece in study.try_all(key, jobs, steps, f"seed {seed}, {kind}, order {replicate}"):
        study.ledger.add(study.row(each, parent=seed, kind=kind, replicate=replicate) for each in piece)


def try_paths(study: Study, seed: int, network: Any, replicate: int) -> None:
    """Masks leave one after another; of every size the best sets go on, each with its best weights."""
    import jax

    import maskprune
    from maskprune import alive, subsets

    key, kind = jax.random.fold_in(keys_of(seed)[1], replicate), {"parent": seed, "kind": "path"}
    beam = [(study.whole, network)]
    folder = study.ledger.path.parent / "beams"
    file = lambda size, rank: folder / f"seed-{seed}-order-{replicate}-masks-{size}-{rank}.npz"
    for size in range(sum(study.sizes) - 1, len(study.sizes) - 1, -1):
        if not study.ledger.find(**kind, replicate=replicate, masks=size, last=True):
            steps = [(before, alive.without(before, mask), net) for before, net in beam for mask in alive.removable(before)]
            steps.sort(key=lambda step: (alive.shape(step[1]), step[1]))
            of = lambda before: None if study.masked else before
            jobs = [
                (after, functools.partial(subsets.cut, net, after, of=of(before), masked=study.masked))
                for before, after, net in steps
            ]
            pieces = study.try_all(key, jobs, study.steps, f"seed {seed}, path, {size} masks")
            found = [each for piece in pieces for each in piece]
            kept = best_of(found, study.config.beam)
            for rank, number in enumerate(kept):
                maskprune.models.save(file(size, rank), found[number].state.network.params)
            rows = [
                study.row(each, **kind, replicate=replicate, before=step[0], rank=rank_in(kept, number), last=False)
                for number, (each, step) in enumerate(zip(found, steps, strict=True))
            ]
            rows[-1]["last"] = True  # a level without it was cut short
            known = {(row["before"], row["alive"]) for row in study.ledger.find(**kind, replicate=replicate, masks=size)}
            study.ledger.add(row for row in rows if (row["before"], row["alive"]) not in known)
        rows = study.ledger.find(**kind, replicate=replicate, masks=size)
        chosen = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])
        load = lambda rank, size=size: maskprune.models.load(file(size, rank))[1]
        beam = [(row["alive"], study.network(load(row["rank"]), row["alive"])) for row in chosen]


def best_of(found: list[Any], width: int) -> list[int]:
    """The numbers of the best networks, one of each set of masks."""
    worth = lambda number: found[number].metrics["score"] if found[number].finite else -1.0
    best: dict[str, int] = {}
    for number in sorted(range(len(found)), key=worth, reverse=True):
        best.setdefault(found[number].alive, number)
    return list(best.values())[:width]


def rank_in(kept: list[int], number: int) -> int | None:
    return kept.index(number) if number in kept else None


def try_scratch(study: Study, draw: int) -> None:
    """Every shape from fresh weights: the first session, and what a one-by-one search would have spent since."""
    import jax

    import maskprune
    from maskprune import alive

    start_key, work_key = keys_of(draw)
    wanted = [alive.first(study.sizes, shape) for shape in alive.shapes(study.sizes, most=study.config.max_size)]
    todo = study.missing(wanted, parent=draw, kind="scratch")
    trained: dict[str, Any] = {}

    def fresh(each: str) -> Any:
        model = study.model(alive.shape(each))
        return maskprune.init_network(model.init(start_key), model.groups)

    first, matched = study.setup.recipe.first_steps, lambda each: study.steps * (sum(study.sizes) - alive.count(each))
    for each in todo:
        label = f"scratch {draw}, shape {alive.shape(each)}"
        for piece in study.try_all(start_key, [(each, functools.partial(fresh, each))], first, label):
            trained = {found.alive: found for found in piece}
        jobs = [(each, lambda each=each: trained[each].state.network)]
        for piece in study.try_all(jax.random.fold_in(work_key, 0), jobs, matched, f"{label}, matched"):
            whole = [found._replace(steps=found.steps + first, finite=found.finite and trained[each].finite) for found in piece]
            study.ledger.add(study.row(found, parent=draw, kind="scratch") for found in whole)


def carry_out(study: Study) -> None:
    """Everything that is missing, one parent after another."""
    config = study.config
    orders = range(config.replicates)
    tasks: dict[str, Callable[..., None]] = {"path": try_paths}
    for seed in range(config.seed, config.seed + config.parents):
        network = trained_parent(study, seed)
        score_masks(study, seed, network)
        for kind in config.kinds:
            for replicate in orders if kind not in ("ablation", "scratch") else range(kind == "ablation"):
                task = tasks.get(kind, functools.partial(try_subsets, kind=kind))
                task(study, seed, network, replicate=replicate)
    if "scratch" in config.kinds:
        for draw in range(config.draws):
            try_scratch(study, draw)


def about(config: Config, recipe: Recipe, study: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """What the study is. Under "config" whatever decides the rows there are; more rows may be asked for later."""
    from maskprune import record

    deciding = {name: getattr(config, name) for name in ("tier", "widths", "kernel", "beam")}
    pictures = {name: value if value is None else str(value) for name, value in dataclasses.asdict(config.pictures).items()}
    return {
        "config": {**deciding, **study, "pictures": pictures, "recipe": dataclasses.asdict(recipe)},
        "pictures": [dataset.source, dataset.summary()],
        "score": "macro soft F1 over all evaluation pictures",
        "versions": record.versions(),
        "device": record.device(),
    }


def run(config: Config, recipe: Recipe, out: Path, show: Any) -> None:
    """Does what is missing of the study in `out`."""
    import jax

    import maskprune

    on_cpu = jax.default_backend() == "cpu"
    form = config.form or ("compact" if on_cpu and config.tier != "small" else "masked")
    together = 1 if on_cpu else NETWORKS_AT_ONCE
    with in_a_sentence("oracle.py"):
        dataset = load_data(config.pictures, show.counting("pictures"))
        facts = about(config, recipe, {"form": form, "together": together}, dataset)
        ledger = maskprune.Ledger.open(out / "rows.jsonl", facts)
    show.say("\n".join((dataset.source, dataset.summary(), *dataset.notes)))
    model = maskprune.models.fcn(config.widths, kernel=config.kernel, initial=recipe.initial)
    carry_out(Study(config, set_up(dataset, model, recipe), ledger, form == "masked", together, show))


def main(config: Config) -> Path:
    """Carries out a study, or goes on with it, and writes its report. Returns the page."""
    from maskprune.display import Display

    with Display(quiet=config.quiet) as show:
        if config.report is None:
            config, recipe = resolve(config)
            out = config.out or Path("runs") / f"oracle-{config.tier}-{config.pictures.task}"
            run(config, recipe, out, show)
        else:
            out = config.report
        import oracle_report

        with in_a_sentence("oracle.py"):
            page = oracle_report.write(out, config.thresholds)
        show.say(f"Report: {page}")
    return page


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except KeyboardInterrupt:
        print("oracle.py: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
