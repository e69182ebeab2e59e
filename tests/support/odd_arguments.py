"""Valid arguments of every public function, by name, and odd values to put in their place: see test_strict.py."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskprune as mp
from maskprune.report.display import Display


@functools.cache
def world():
    model = mp.models.fcn((3, 2), kernel=3)
    params = model.init(jax.random.key(0))
    network = mp.init_network(params, model.groups)
    optimizer = optax.sgd(0.1)
    state = mp.init_state(network, optimizer)
    rng = np.random.default_rng(0)
    pictures = rng.uniform(0.1, 0.9, (2, 12, 12, 1)).astype(np.float32)
    grey = rng.integers(0, 256, (4, 16, 16)).astype(np.uint8)
    sides = [mp.data.Split(grey[at : at + 2, ..., None], grey[at : at + 2, ..., None], ("a", "b")) for at in (0, 2)]
    dataset = mp.data.Dataset(*sides, "sobel", False, "here", {}, (), "0" * 8)
    task = mp.picture_task(model.apply, dataset, border=2, batch=2, crop=12, sample=2)
    report = mp.SessionReport(np.zeros(2, np.float32), True, "", 0.0)
    step = mp.make_train_step(task.loss, optimizer)
    many = lambda keys, states, *, steps=1, share=1.0, rate=1.0, times=1: [(each, report) for each in states]
    table = mp.lab.regret.Table({"11": 1.0, "10": 0.9, "01": 0.5}, {"11": 2.0, "10": 1.0, "01": 1.0})
    rules = mp.Rules()
    chosen = mp.choose(network, {"conv1": [0]})
    return {
        "key": jax.random.key(1),
        "apply": model.apply,
        "params": params,
        "groups": model.groups,
        "network": network,
        "optimizer": optimizer,
        "state": state,
        "inputs": [jnp.asarray(pictures)],
        "chosen": chosen,
        "masks": {"conv1": [0]},
        "model": model,
        "dataset": dataset,
        "task": task,
        "loss": task.loss,
        "residuals": task.residuals,
        "batch": (jnp.asarray(pictures), jnp.asarray(pictures)),
        "step": step,
        "draw": task.draw,
        "data": task.data,
        "train": many,
        "evaluate": lambda state: {"score": 1.0},
        "selector": mp.select.sequential(),
        "name": "conv1",
        "init": model.init,
        "output": jnp.asarray(pictures),
        "target": jnp.asarray(pictures),
        "table": table,
        "required": 0.7,
        "alive": "11",
        "scores": {"conv1": np.ones(3), "conv2": np.ones(2)},
        "small": params,
        "plan": mp.make_plan(model.groups, network.enabled),
        "batches": lambda progress: jnp.int32(1),
        "path": Path("out.csv"),
        "calls": [lambda: 1],
        "enabled": network.enabled,
        "found": None,
        "session": mp.make_session(step, task.draw, chunk=2),
        "population": mp.make_population(step, task.draw, chunk=2),
        "states": [state, state],
        "progress": jnp.float32(0.5),
        "schedule": mp.optim.cosine,
        "report": report,
        "rules": rules,
        "size": mp.record.fcn_size,
        "activations": lambda params, batch: model.activations(params, batch[0]),
        "curvature": lambda network, batch: (
            mp.curvature.gauss_newton(task.residuals, network, batch, examples=2).matrix
        ),
        "sizes": [2, 1],
        "shape": [1, 1],
        "flags": [[True, False], [True]],
        "mask": 0,
        "trouble": lambda state: "",
        "whole": "11",
        "jobs": [lambda train: 1],
        "steps": 3,
        "improvement": 0.1,
        "patience": 2,
        "lengths": mp.Lengths(0, 1, 0),
        "group": model.groups["conv1"],
        "tree": params,
        "view": mp.strategies.View(state, rules, scores=lambda network: []),
        "saving": lambda flags: flags,
        "source": None,
        "function": lambda picture: picture,
        "border": 0,
        "pictures": jnp.asarray(pictures),
        "sums": np.ones((2, 6)),
        "metrics": {"score": 1.0},
        "kernel": jnp.ones((3, 3, 1, 2)),
        "folder": Path("folder"),
        "rows": [{"a": 1}],
        "trained": params,
        "fresh": params,
        "new": "conv1/*",
    }


@functools.cache
def own():
    """{function: its arguments that differ from the world's}."""
    w = world()
    one = lambda key, state, *rest, **options: (state, w["report"])
    rounds = functools.partial(
        mp.minimize, w["key"], w["state"], train=one, evaluate=w["evaluate"], optimizer=w["optimizer"],
        selector=w["selector"], limits=mp.Limits(rounds=1),
    )  # fmt: skip
    last = list(rounds())[-1]
    found = mp.Outcome(w["network"], w["state"], [], 1, 1.0, "done")
    values = jnp.asarray(w["output"])
    scores = {"11": 1.0, "10": 0.9, "01": 0.5}
    trial = mp.lab.table_search.Trial("11", 1, "10", 0.9, 0.7, True, 1.0)
    show = Display(quiet=True)
    archive = Path("pictures.npz")
    group = mp.Group("g", 2, (mp.Slice("w", 3, (0, 1), "out"),))
    square = mp.init_network({"w": jnp.ones((3, 3, 2, 2))}, mp.Groups((group,)))
    return {
        "freeze": {"chosen": w["chosen"], "leaves": ["conv1/*"]},
        "thaw": {"chosen": w["chosen"], "leaves": "conv1/*"},
        "init_network": {"fixed": ["conv1/*"]},
        "select_statistics": {"state": {"mean": jnp.zeros(2)}, "batch": {"mean": jnp.ones(2)}},
        "shrink": {"apply": lambda params, x: w["apply"](params, x)},
        "bypass": {"network": square, "name": "g"},
        "picture_task": {"border": 2, "batch": 2, "crop": 12},
        "conv2d": {"inputs": w["output"]},
        "conv.conv2d": {"inputs": w["output"]},
        "conv.finish": {"outputs": values, "bias": jnp.ones(1), "relu": True},
        "curvature.shift": {"step": jnp.zeros(mp.curvature.flatten(w["network"]).vector.shape)},
        "export": {"path": Path("network.safetensors")},
        "export_saved": {"network": Path("network.npz"), "formats": ["safetensors"]},
        "load_arrays": {"path": Path("network.safetensors")},
        "load_program": {"path": Path("network.onnx")},
        "Slice": {"leaf": "a", "axis": 0, "labels": (0,), "role": "out"},
        "Group": {"size": 1, "slices": ()},
        "Groups": {"groups": ()},
        "minimize": {"train": one, "limits": mp.Limits(rounds=1)},
        "search": {"draw": lambda key: w["state"], "show": show, "selector": lambda network: w["selector"]},
        "summarize": {"found": found},
        "write_outcome": {"found": found, "result": {"final_score": 1.0}, "folder": Path("folder")},
        "unstack": {"states": mp.stack(w["states"])},
        "train_start": {"draw": lambda key: w["state"], "train": one},
        "worth.worth": {"train": one, "alteration": mp.disable},
        "data.make_dataset": {"target": mp.data.sobel(), "source": archive, "size": 8, "cache": None, "workers": 1},
        "data.make_pairs": {"inputs_dir": Path("."), "targets_dir": Path("."), "size": 8, "cache": None, "workers": 1},
        "data.find_pictures": {"root": Path(".")},
        "data.read_picture": {"path": Path("picture.png")},
        "data.Target": {"name": "mine", "binary": False},
        "losses.picture_total": {"values": values},
        "metrics.f1_of": {"error": np.ones(2), "overlap": np.ones(2)},
        "models.load": {"path": Path("network.npz")},
        "models.save": {"path": Path("saved.npz")},
        "strategies.chain": {"plans": [mp.strategies.one_by_one]},
        "record.history_row": {"found": last, "spent": 1},
        "record.final_row": {"number": 1, "reason": "", "held_score": 0.5, "spent": 1},
        "record.write_json": {"path": Path("out.json"), "value": {"a": 1}},
        "record.time_inference": {"networks": [(w["apply"], w["params"])], "repeats": 1},
        "regret.Table": {"scores": scores, "costs": dict.fromkeys(scores, 1.0)},
        "regret.front": {"scores": scores},
        "regret.front_gap": {"found": {1: 0.5}},
        "regret.anytime": {"held": [(0.0, 2)], "best": 1.0, "horizon": 2.0},
        "regret.agreement": {"scores": [1.0, 2.0], "truth": [2.0, 3.0]},
        "regret.ceiling": {"measured": np.ones((2, 3))},
        "table_search.replay": {"policy": mp.lab.table_search.sequential, "reference": 1.0},
        "table_search.found": {"trials": [trial]},
        "table_search.course": {"trials": [trial]},
        "table_search.shuffled": {"seed": 0},
        "table_search.by_scores": {"scores": [[1.0, 2.0]]},
        "select.ensemble": {"selectors": [w["selector"]]},
        "select.information": {"targets": lambda batch: batch[1][..., 0]},
        "subnetworks.cut": {"alive": "110 10"},
        "subnetworks.train_each": {"jobs": [("111 11", lambda: w["network"])], "steps": 1},
        "testing.check_selector": {"compiled": False, "network": square},
        "curvature.hessian": {"network": square, "loss": lambda params, batch: jnp.sum(params["w"] ** 2)},
        "curvature.jacobian": {"network": square, "residuals": lambda params, batch: jnp.ravel(params["w"])},
        "curvature.gauss_newton": {"network": square, "residuals": lambda params, batch: jnp.ravel(params["w"])},
        "time_calls": {"repeats": 1},
    }


POOL = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": np.nan,
    "inf": np.inf,
    "10**12": 10**12,
    "10**30": 10**30,
    "a word": "nonsense",
    "empty": "",
    "bytes": b"x",
    "an object": object(),
    "[]": [],
    "{}": {},
    "a function": lambda *args, **options: None,
    "[None]": [None],
    "[-1]": [-1],
    "[nan]": [np.nan],
    "twice": ["a", "a"],
    "unknown group": {"nope": [0]},
    "out of range": {"conv1": [99]},
    "negative mask": {"conv1": [-1]},
    "mask twice": {"conv1": [0, 0]},
    "flags of another shape": {"conv1": np.ones(9, bool)},
    "counts": {"conv1": np.ones(3, int)},
    "scalar": np.float32(1),
    "no numbers": np.zeros(0, np.float32),
    "integers": np.zeros((3, 7), np.int32),
    "nans": np.full((2, 12, 12, 1), np.nan, np.float32),
    "texts": np.array(["a"]),
    "five axes": jnp.zeros((1, 1, 1, 1, 1)),
    "half": jnp.ones((2, 12, 12, 1), jnp.float16),
    "wide": jnp.ones((2, 12, 12, 3)),
    "gone": Path("gone.npz"),
    "zero byte": Path("a\0b"),
    "long": "x" * 5000,
    "tuple": (1, 2),
    "complex": 1j,
}
