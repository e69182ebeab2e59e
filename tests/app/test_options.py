"""Every bad value of every program is refused in one sentence, before anything is read or written."""

import contextlib
import dataclasses
import importlib
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskprune.app import options
from maskprune.app.protocol import Pictures, Recipe


EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def module_of(program):
    """What stands behind a command, or behind a file in `experiments`."""
    return importlib.import_module({"minimize": "maskprune.app.minimizing"}.get(program, program))


# Of every program that trains on pictures: {option: values that are wrong}.
PICTURES = {
    "--task": ("sobell", ""),
    "--data": ("gone", "a-file", "a\0b", "x" * 5000, "broken.npz"),
    "--inputs": ("gone", "a-file"),
    "--size": ("0", "-1", "1000000000"),
    "--split-seed": ("-1", "4294967296"),
    "--limit": ("-1", "0", "1"),
    "--level": ("0.5",),  # without --task threshold
    "--task threshold --level": ("nan", "-0.1", "1.1"),
    "--task pairs --inputs a-folder --targets": ("gone", "a-file"),
    "--task pairs --inputs a-folder": ("",),  # without --targets
    "--task pairs --inputs a-folder --targets a-folder --data": ("a-folder",),
    "--learning-rate": ("nan", "0", "-1", "inf", "word"),
    "--batch": ("0", "-3", "1000000000", "1.5"),
    "--crop": ("0", "-1", "12", "257", "1000000000"),
    "--border 0 --crop": ("8",),  # below the receptive field
    "--border": ("-1", "32", "1000000000"),
    "--ceiling": ("nan", "0", "-1"),
    "--first-steps": ("0", "-1", "10000000000"),
    "--steps": ("0", "-1", "10000000000"),
    "--final-steps": ("-1", "10000000000"),
    "--selector": ("cosine-most",),
    "--strategy": ("greedy",),
    "--optimizer": ("sgd",),
    "--initial": ("zeros",),
    "--seed": ("-1", "4294967296", "100000000000000000000"),
    "--widths": ("", "0", "5 -5", "1000000000", "100000 100000", " ".join(["1"] * 65)),
    "--kernel": ("4", "0", "-1", "1001"),
    "--out": ("a-file", "a-file/below", "a\0b", "x" * 300, "y/" + "x" * 300),
    "--no-such-option": ("1",),
}
STUDY = PICTURES | {
    "--networks": ("0", "-1", "10000000000"),
    "--seed 4294967295 --networks": ("2",),
    "--at-once": ("0", "-1", "1000000000"),
    "--preset": ("slow",),
}
SHARES = ("0", "-0.5", "1.5", "2", "nan", "inf", "")
BAD = {
    "minimize": PICTURES
    | {
        "--preset": ("slow",),
        "--threshold": ("0", "2", "nan", "inf", "-1", "word"),
        "--loss": ("l2",),
        "--objective": ("time",),
        "--count": ("0", "-1"),
        "--candidates": ("0", "-1", "1000000000"),
        "--early": ("1", "-0.1", "nan"),
        "--repair": ("all",),
        "--replicas": ("0", "-1", "1000000000"),
        "--seed 4294967295 --replicas": ("2",),
        "--min-enabled": ("0", "-1", "5", "1000000000"),
        "--max-rounds": ("-1",),
        "--max-steps": ("-1",),
        "--max-seconds": ("-1", "nan"),
        "--target-masks": ("0", "-1"),
        "--candidates 1 --stagnation": ("0", "1", "nan", "-1"),
        "--stagnation": ("0.1",),  # beside the candidates of --strategy auto
        "--candidates 1 --racing": ("",),
        "--strategy beam --minimize-layers": ("",),
        "--save-every": ("-1", "nan"),
        "--resume": ("gone", "a-file", "a\0b", "x" * 5000),
        "--resume a-folder --threshold": ("0.5",),
        "--repeat": ("gone", "a-folder"),
        "--resume a-folder --repeat": ("a-folder",),
        "--start-from": ("gone.npz", "a-folder", "a\0b"),
        "--start-from broken.npz --widths": ("3",),
    },
    "oracle": {name: values for name, values in PICTURES.items() if "--border 0" not in name and name != "--border"}
    | {
        "--tier": ("huge",),
        "--border": ("-1", "16"),
        "--kinds": ("", "all"),
        "--parents": ("0", "-1", "10000000000"),
        "--replicates": ("0", "-1"),
        "--max-size": ("0", "-1"),
        "--beam": ("0",),
        "--draws": ("0", "-1"),
        "--selectors": ("best",),
        "--widths": ("", "0", "8 8"),
        "--thresholds": SHARES,
        "--report": ("gone", "a-file", "a-folder"),
        "--report a-folder --thresholds": ("2",),
    },
    "searches": {
        "--oracle": ("", "gone", "a-file", "a-folder"),
        "--oracle ledger --thresholds": SHARES,
        "--oracle ledger --strategies": ("", "greedy"),
        "--oracle ledger --sessions": ("-1",),
        "--oracle ledger --parents": ("0", "-1"),
        "--oracle ledger --out": ("a-file",),
    },
    "strategies": STUDY
    | {
        "--strategies": ("", "best"),
        "--thresholds": SHARES,
        "--tasks": ("pairs", "sobell", "sobel pairs"),
        "--tasks threshold sobel --level": ("0.5",),  # right for the first task only
    },
    "correlations": STUDY | {"--replicates": ("0", "-1"), "--selectors": ("", "best")},
    "grid": STUDY | {"--threshold": ("0", "2", "nan"), "--widths": ("0", "65 65")},
    "repairs": STUDY | {"--threshold": ("0", "2", "nan")},
    "reset": STUDY,
    "worth": STUDY,
    "digits": {
        "--methods": ("", "best"),
        "--seeds": ("0", "-1"),
        "--share": ("0", "1", "nan", "inf"),
        "--rounds": ("0", "-1"),
        "--epochs": ("1 1", "-1 1 1", "1 1 10000000000"),
        "--batch": ("0", "2000"),
        "--learning-rate": ("nan", "0", "inf"),
        "--widths": ("0 1 1", "1 1", "1 1 1000000000"),
        "--blocks": ("0", "1000000000"),
        "--timings": ("0", "-1"),
        "--out": ("a-file",),
    },
}
CASES = [
    (program, f"{option} {value}")
    for program, wrong in BAD.items()
    for option, values in wrong.items()
    for value in values
    if program in ("minimize", "oracle") or option not in PICTURES or (value == values[0] and program == "strategies")
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to start programs in."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "a-folder").mkdir()
    (folder / "ledger").mkdir()
    for name in ("a-file", "broken.npz", "ledger/rows.jsonl"):
        (folder / name).write_text("nothing")
    return folder


def refused(program, words):
    """What a program says about a command line. Its pictures cannot be read."""
    module = module_of(program)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as caught:
        arguments = [word for word in words.split(" ") if word]
        module.main(tyro.cli(module.Config, args=arguments, prog=f"{program}.py"))
    return caught.value.code, said.getvalue()


@pytest.mark.parametrize(("program", "words"), CASES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(CASES)])
def test_a_bad_value_is_refused_before_any_work(program, words, place, monkeypatch):
    monkeypatch.chdir(place)
    for work in ("data.make_dataset", "data.make_pairs", "models.fcn", "Ledger.open", "Ledger.read"):
        monkeypatch.setattr(f"maskprune.{work}", None)
    if program == "digits":
        monkeypatch.setattr("digits.load_digits", None)
    before = sorted(place.rglob("*"))
    code, said = refused(program, words)
    assert code == 2 and "Traceback" not in said
    option = [word for word in words.split(" ") if word.startswith("--")][-1]
    own = said.startswith((f"{program}.py: ", f"{program}: "))
    assert option in said or option.removeprefix("--") in said or (own and "--candidates 1" in said), said
    assert not own or (said.count("\n") == 1 and said.endswith(".\n")), said
    assert sorted(place.rglob("*")) == before


def test_the_table_holds_every_option():
    """What is not in the table has no wrong value: switches, and names that only choose."""
    free = {"--quiet", "--reverse", "--standardize", "--control", "--flips", "--deterministic", "--scratch",
            "--targets", "--form", "--retry", "--reference", "--preset", "--selectors"}  # fmt: skip
    for program, wrong in BAD.items():
        words = " ".join(wrong)
        for name in options_of(module_of(program).Config):
            assert f"--{name.replace('_', '-')}" in words or f"--{name.replace('_', '-')}" in free, (program, name)


def options_of(config):
    for field in dataclasses.fields(config):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(made):
            yield from options_of(type(made))
        else:
            yield field.name


OUTSIDE = [
    ["experiments/minimize.py", "--out", "{place}/a-file", "--data", "{place}/a-folder"],
    ["experiments/worth.py", "--crop", "8", "--border", "0"],
    ["experiments/findings.py", "--out", "x"],
    ["-m", "maskprune", "apply", "{place}/gone.npz", "{place}/a-file", "out.png"],
    ["-m", "maskprune", "export", "{place}/a-file", "out", "--formats"],
]


@pytest.mark.parametrize("command", OUTSIDE, ids=lambda command: " ".join(command[:3]))
def test_as_a_user_sees_it(command, place, tmp_path):
    words = [word.format(place=place) for word in command]
    words = [str(EXPERIMENTS.parent / word) if word.startswith("experiments/") else word for word in words]
    before = sorted(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not list(tmp_path.iterdir()) and sorted(place.rglob("*")) == before


# Random configurations

ODD = [-(2**63), -1, 0, 1, 2, 3, 5, 7, 64, 2**31, 2**32, 10**9, 10**30]
whole = st.sampled_from(ODD)
real = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 0.5, 1.0, 2.0, 1e300])
path = st.sampled_from([Path(), Path("gone"), Path(__file__), EXPERIMENTS, Path("/"), Path("a\0b"), Path("x" * 5000)])
BY_TYPE = {
    "int": whole,
    "float": real,
    "Path": path,
    "bool": st.booleans(),
    "tuple[int, ...]": st.lists(whole, max_size=3).map(tuple),
    "tuple[float, ...]": st.lists(real, max_size=3).map(tuple),
    "tuple[Path, ...]": st.lists(path, max_size=2).map(tuple),
}


def changes(kind):
    """Some fields of a configuration with odd values of their own type; None where that is allowed."""
    odd = {}
    for field in dataclasses.fields(kind):
        plain = str(field.type).removesuffix(" | None").removesuffix(" | Unset")
        if plain in BY_TYPE:
            odd[field.name] = BY_TYPE[plain] | st.none() if plain != field.type else BY_TYPE[plain]
    if not odd:
        return st.just({})
    return st.lists(st.sampled_from(sorted(odd)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: odd[name] for name in names})
    )


def resolving(name):
    """`resolve(config)` of a program, and a strategy of configurations."""
    module = module_of(name)
    pictures = changes(Pictures).map(lambda odd: Pictures(**odd))
    recipe = changes(Recipe).map(lambda odd: Recipe(**odd))
    if name in ("minimize", "oracle"):
        make = lambda own, pictures, recipe: module.Config(**{"pictures": pictures, "recipe": recipe, **own})
        return module.resolve, st.builds(make, changes(module.Config), pictures, recipe)
    if name == "searches":
        make = lambda own: module.Config(**{"oracle": (), **own})
        return lambda config: options.refuse("searches.py", module.problems(config)), changes(module.Config).map(make)
    if name == "digits":
        return lambda config: options.refuse("digits.py", module.problems(config)), changes(module.Config).map(
            lambda own: module.Config(**own)
        )
    from maskprune.app import studies

    make = lambda own, common, pictures, recipe: module.Config(
        options=studies.Options(**{"pictures": pictures, "recipe": recipe, **common}), **own
    )
    more = getattr(module, "problems", ())
    resolve = lambda config: studies.resolve(name, config, module.SIZES, more)
    return resolve, st.builds(make, changes(module.Config), changes(studies.Options), pictures, recipe)


def check_fuzzed(name, examples):
    resolve, configurations = resolving(name)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(configurations)
    def check(config):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                resolve(config)
            except SystemExit as end:
                assert end.code == 2 and said.getvalue() == f"{end}\n"
                assert (
                    "--" in str(end) and str(end).startswith((f"{name}.py: ", f"{name}: ")) and str(end).endswith(".")
                )

    check()


@pytest.mark.parametrize("name", BAD)
def test_any_configuration_is_resolved_or_refused(name):
    check_fuzzed(name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_any_configuration_is_resolved_or_refused_at_length(name):
    check_fuzzed(name, 5000)


@given(st.integers() | st.none(), st.integers(), st.integers())
@example(None, 1, 0)
def test_a_whole_number_is_refused_outside_its_range_only(value, least, most):
    wrong, sentence = options.whole("--number", value, least, most)
    assert wrong == (value is not None and (value < least or value > most))
    assert "--number" in sentence
