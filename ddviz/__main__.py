"""Commands: `train`, with the parameters of notebooks/train.ipynb, also under torchrun; tables of finished runs."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist

from ddviz import ablation, grids, iterations
from ddviz.errors import InputError
from ddviz.recipe import Recipe
from ddviz.records import write_atomically
from ddviz.report import search, with_table, zoo_table
from ddviz.training import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends with one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m ddviz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train a base classifier", allow_abbrev=False)
    trainer.set_defaults(run=_train)
    for field in fields(Recipe):
        kind = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type}
        trainer.add_argument(f"--{field.name}", default=field.default, help=f"default {field.default!r}", **kind)  # type: ignore[arg-type]
    for name, (made, said) in _TABLES.items():
        table = commands.add_parser(name, help=f"print the table of {said} in a folder")
        table.add_argument("folder", type=Path)
        into = "a file to put it into, between <!-- table: FOLDER'S NAME --> and end"
        table.add_argument("--into", type=Path, help=into)
        table.set_defaults(run=_table, made=made)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except InputError as error:
        if _first_process():
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _train(given: argparse.Namespace) -> None:
    recipe = Recipe(**{field.name: getattr(given, field.name) for field in fields(Recipe)})
    with _processes():
        training = train(recipe)
    last = training.history[-1]
    if _first_process():
        print(
            f"\n{training.weights}: {last.clean_accuracy:.1%} of test images right, {last.noisy_accuracy:.1%} under "
            f"noise, {training.seconds:.0f} s"
        )


def _zoo_table(folder: Path) -> str:
    found = search(folder)
    for told in found.left_out:
        print(f"left out: {told}", file=sys.stderr)
    return zoo_table(found.runs)


_TABLES: dict[str, tuple[Callable[[Path], str], str]] = {
    "table": (_zoo_table, "finished runs"),
    "solvers": (lambda folder: ablation.both_tables(ablation.read(folder)), "finished runs by solver"),
    "iterations": (lambda folder: iterations.table(iterations.read(folder)), "finished runs by steps of Algorithm 1"),
    "grid": (lambda folder: grids.table(grids.read(folder)), "finished runs of grid search and its rivals"),
}


def _table(given: argparse.Namespace) -> None:
    table = given.made(given.folder)
    if given.into is None:
        print(table)
    else:
        write_atomically(given.into, with_table(given.into.read_text(encoding="utf-8"), given.folder.name, table))


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did: one a GPU, or any number on CPUs."""
    if not dist.is_torchelastic_launched():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
