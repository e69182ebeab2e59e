"""The work of `oracle.py`: parents, their sub-networks, and the rows that both leave in a ledger.

Whatever is in the ledger is not done again, and no result depends on what else there is to do, so that a study that was
interrupted ends with the rows of one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from maskprune.app.setup import Setup, make_selector


CHUNK = 500  # steps of a dispatch at most


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A setup, the ledger its rows go to, and how sub-networks are trained."""

    config: Any
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
        from maskprune.lab import mask_sets

        return mask_sets.full(self.sizes)

    @functools.cached_property
    def train(self) -> Any:
        import maskprune

        # Their number at once is fixed, so that no result depends on what else there is to train. A short session is
        # one dispatch: between two of them the host costs as much as a hundred steps of a small network.
        options = {"chunk": min(self.steps, CHUNK), "at_once": self.together}
        population = maskprune.make_population(self.setup.step, self.setup.task.draw, **options)
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
            return maskprune.init_network(params, self.model(maskprune.lab.mask_sets.shape(alive)).groups)
        whole = maskprune.init_network(params, self.setup.model.groups)
        return maskprune.lab.subnetworks.cut(whole, alive, masked=True)

    @functools.cache  # noqa: B019  (a study lives as long as the program)
    def selector(self, name: str) -> Any:

        return make_selector(name, self.setup)

    def try_all(self, key: Any, jobs: list[Any], steps: Any, label: str) -> Iterator[list[Any]]:
        from maskprune.lab import subnetworks

        if not jobs:
            return
        began, judged, done = time.perf_counter(), self.clock["evaluation"], 0
        self.show.start(label, len(jobs))
        for piece in subnetworks.train_each(
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
        if done > 1:
            self.show.say(
                f"{label}: {done} in {spent:.1f} s, {spent / done:.3f} s each, {judging / spent:.0%} evaluation"
            )

    def row(self, found: Any, *, parent: int, kind: str, replicate: int = 0, **more: Any) -> dict[str, Any]:
        """A row of the ledger, from a `Tried`."""
        from maskprune.lab import mask_sets

        shape = mask_sets.shape(found.alive)
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
    for name in study.config.selectors:
        if not study.ledger.find(parent=seed, kind="selector", selector=name):
            found = study.selector(name)(key, network, study.setup.sample(name))
            scores = [np.asarray(found[group.name], float).tolist() for group in network.groups]
            study.ledger.add([{"parent": seed, "kind": "selector", "selector": name, "scores": scores}])


def try_subsets(study: Study, seed: int, network: Any, kind: str, replicate: int) -> None:
    """All sub-networks of a parent: not trained, in one session, or in one for every mask removed."""
    import jax

    from maskprune.lab import mask_sets, subnetworks

    wanted = mask_sets.every(study.sizes, most=study.config.max_size)
    todo = study.missing(wanted, parent=seed, kind=kind, replicate=replicate)
    masked = study.masked or kind == "ablation"  # untrained, it is not worth a program for every shape
    jobs = [(each, functools.partial(subnetworks.cut, network, each, masked=masked)) for each in todo]
    gone = lambda each: sum(study.sizes) - mask_sets.count(each)
    steps = {"ablation": 0, "one-shot": study.steps, "equal": lambda each: study.steps * gone(each)}[kind]
    key = jax.random.fold_in(keys_of(seed)[1], replicate)
    for piece in study.try_all(key, jobs, steps, f"seed {seed}, {kind}, order {replicate}"):
        study.ledger.add(study.row(each, parent=seed, kind=kind, replicate=replicate) for each in piece)


def try_paths(study: Study, seed: int, network: Any, replicate: int) -> None:
    """Masks leave one after another; of every size the best sets go on, each with its best weights."""
    import jax

    import maskprune
    from maskprune.lab import mask_sets, subnetworks

    key, kind = jax.random.fold_in(keys_of(seed)[1], replicate), {"parent": seed, "kind": "path"}
    beam = [(study.whole, network)]
    folder = study.ledger.path.parent / "beams"
    file = lambda size, rank: folder / f"seed-{seed}-order-{replicate}-masks-{size}-{rank}.npz"
    for size in range(sum(study.sizes) - 1, len(study.sizes) - 1, -1):
        if not study.ledger.find(**kind, replicate=replicate, masks=size, last=True):
            steps = [
                (before, mask_sets.without(before, mask), net)
                for before, net in beam
                for mask in mask_sets.removable(before)
            ]
            steps.sort(key=lambda step: (mask_sets.shape(step[1]), step[1]))
            of = lambda before: None if study.masked else before
            jobs = [
                (after, functools.partial(subnetworks.cut, net, after, of=of(before), masked=study.masked))
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
            known = {
                (row["before"], row["alive"]) for row in study.ledger.find(**kind, replicate=replicate, masks=size)
            }
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
    from maskprune.lab import mask_sets

    start_key, work_key = keys_of(draw)
    wanted = [
        mask_sets.first(study.sizes, shape) for shape in mask_sets.shapes(study.sizes, most=study.config.max_size)
    ]
    todo = study.missing(wanted, parent=draw, kind="scratch")

    def fresh(each: str) -> Any:
        model = study.model(mask_sets.shape(each))
        return maskprune.init_network(model.init(start_key), model.groups)

    first, matched = (
        study.setup.recipe.first_steps,
        lambda each: study.steps * (sum(study.sizes) - mask_sets.count(each)),
    )
    for each in todo:
        label = f"scratch {draw}, shape {mask_sets.shape(each)}"
        ((start,),) = study.try_all(start_key, [(each, functools.partial(fresh, each))], first, label)
        jobs = [(each, lambda network=start.state.network: network)]
        ((after,),) = study.try_all(jax.random.fold_in(work_key, 0), jobs, matched, label)
        whole = after._replace(steps=start.steps + after.steps, finite=start.finite and after.finite)
        study.ledger.add([study.row(whole, parent=draw, kind="scratch")])


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
