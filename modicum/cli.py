"""The command line: one command a verb, made from the verb's own signature: parse, call, print."""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modicum.core.errors import UserError
from modicum.core.version import VERSION
from modicum.diagnostics._finding import Finding
from modicum.report.finding import finite
from modicum.training.run import Run
from modicum.verbs._common import console
from modicum.verbs.demo import demo
from modicum.verbs.diagnose import commands
from modicum.verbs.finetune import finetune
from modicum.verbs.generate import generate
from modicum.verbs.listing import listing
from modicum.verbs.pretrain import pretrain
from modicum.verbs.report import report
from modicum.verbs.use import embed, predict, reconstruct

app = typer.Typer(
    help="Deep learning from a modicum of labels.",
    pretty_exceptions_enable=False,
    add_completion=False,
)

HELP = {
    "run": "A run's folder (for finetune also an encoder's spec such as convnet, trained from scratch).",
    "data": "A path (folder, CSV, Parquet, .txt, .npy, .npz, IDX) or a built-in name such as digits.",
    "objective": "The objective's spec, such as simclr(n=4); modicum list objectives.",
    "encoder": "The encoder's spec, such as convnet(width=32); modicum list encoders.",
    "epochs": "Passes over the rows.",
    "steps": "Updates (instead of --epochs for pretrain; of every training for finetune).",
    "batch": "Rows a step.",
    "lr": "The highest learning rate.",
    "limit": "Use this many rows only, drawn at random.",
    "size": "Image side in pixels; default from the data, at most 224.",
    "columns": "What columns of a table are, where not as found: age:numeric,zip:categorical,joined:date,notes:drop "
    "(quantile and zscore are numeric with that scaling).",
    "tokenizer": "How text becomes tokens: bpe (default) or wordpiece, trained on the rows, or a tokenizer.json.",
    "label": "The label column; NAME:classes or NAME:numbers decides its kind.",
    "pairs": "A table with the columns a, b (ids of rows) and similar (1 or 0), for --objective pairs.",
    "triplets": "A table with the columns anchor, positive, negative (ids of rows), for --objective triplet.",
    "group": "A column whose rows must not be divided between training and test (a patient, a plate).",
    "split": "A column that says train or test; a column named split is used unasked.",
    "test": "Rows for testing, elsewhere.",
    "transductive": "Let pre-training see the test rows (without labels); every table then says so.",
    "skip_bad": "Go on without rows that cannot be read, and list them: in the report, or in a .skipped.csv beside -o.",
    "save_every": "Steps between resumable states; default every 30 seconds.",
    "resume": "Continue this run where it was killed.",
    "out": "The new run's folder.",
    "output": "Where to write the result.",
    "n": "How many rows.",
    "prompt": "How texts begin; for series, a file of those to forecast.",
    "length": "At most this many tokens; default what the encoder takes.",
    "temperature": "Below 1 likelier rows, above 1 stranger ones; 0 the likeliest token each time.",
    "top_k": "Draw among the K likeliest tokens; 0 among all.",
    "top_p": "Draw among the likeliest tokens that together have this probability.",
    "method": "scratch, probe, propagate, top:K, lp-ft, lora[:R] or full: what is shipped (default lp-ft of a run); "
    "more after commas are measured beside it.",
    "labels_per_class": "An experiment with this many labelled rows a class.",
    "labels": "An experiment with this many labelled rows.",
    "seeds": "Repeats, each with its own labelled rows, seed or split.",
    "measure": "Measure FLOPs, rates and memory of encoders on this machine.",
    "loss": "What is decomposed: squared, cross-entropy, zero-one, several with commas between, or all.",
    "splits": "Disjoint parts of the training rows to train on, each for itself.",
    "label_noise": "The share of the training labels that is redrawn at random.",
    "workers": "Processes that share the training of many models.",
    "kind": "objectives, encoders, datasets or methods.",
    "seed": "The seed of everything random.",
    "device": "auto, cpu or cuda.",
    "force": "Replace what is there.",
}
SHORT = {"output": ["-o", "--output"], "n": ["-n"]}


def _kind(annotation: Any) -> Any:
    """What the command line reads for an argument: numbers and switches as they are, everything else as text."""
    options = set(typing.get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}
    plain = next((k for k in (bool, int, float) if k in options), str)
    return plain | None if type(None) in options else plain


def verb(name: str, function: Callable[..., Any], app: typer.Typer = app) -> None:
    """Make the command `name` of a verb; every command also takes --json."""
    hints = typing.get_type_hints(function)
    parameters, words = [], HELP | getattr(function, "options", {})
    for key, parameter in inspect.signature(function).parameters.items():
        asked = parameter.default is inspect.Parameter.empty
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            info: Any = typer.Argument(help=words[key])
        else:
            info = typer.Option(*SHORT.get(key, ["--" + key.replace("_", "-")]), help=words[key])
        kind = _kind(hints[key]) if asked or parameter.default is not None else _kind(hints[key] | None)
        parameters.append(parameter.replace(annotation=Annotated[kind, info]))
    switch = typer.Option("--json", help="Print one JSON object last on stdout; logs go to stderr.")
    parameters.append(
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, switch])
    )

    def call(as_json: bool, **arguments: Any) -> None:
        try:
            result = function(**arguments)
        except UserError as error:
            console.print(f"error: {error}", style="red")
            raise typer.Exit(2) from None
        show(result, as_json, arguments)

    # Paragraphs are wrapped by the terminal, not where the source was.
    call.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name)(call)


def show(result: Any, as_json: bool, arguments: dict[str, Any]) -> None:
    """Print what a verb returned, for people or for programs."""
    if as_json:
        print(json.dumps(summary(result, arguments)))
    elif isinstance(result, Run):
        results = result.read_json("results.json")
        if results:
            stdout().print(contest_table(results))
        print(result.path / "report.html")
    elif isinstance(result, Finding):
        print(f"{result.folder}/report.html")
    elif isinstance(result, list):
        stdout().print(list_table(result))
    elif isinstance(result, pa.Table) and arguments["output"] is None:
        for row in result.to_pylist():
            print("\t".join(map(str, row.values())))
    else:
        print(arguments.get("output") or result)


def stdout() -> Console:
    """Names from the data are printed as they are: no markup, no emoji."""
    return Console(markup=False, emoji=False, highlight=False)


def summary(result: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a verb returned, as one JSON object."""
    if isinstance(result, Run):
        rows = result.metrics()
        out = {
            "run": str(result.path),
            "report": str(result.path / "report.html"),
            "seconds": result.spec.get("seconds"),
        }
        return out | {"metrics": rows[-1] if rows else None, "results": result.read_json("results.json")}
    if isinstance(result, Finding):
        found = {"name": result.name, "words": result.words, "facts": result.facts, "rows": result.rows}
        return finite(found) | {"report": f"{result.folder}/report.html"}
    if isinstance(result, pa.Table):
        if arguments["output"] is None:
            return {"items": result.to_pylist()}
        return {"output": str(arguments["output"]), "rows": result.num_rows, "columns": result.column_names}
    return {"items": result} if isinstance(result, list) else {"output": str(result)}


def contest_table(results: dict[str, Any]) -> Table:
    """The contestants, best first."""
    counts = f"{results['test_rows']:,} test rows, {results['labels']:,} labels, {results['seeds']} repeats"
    title = f"{results['score']} on {counts}"
    words = f"{results['verdict']}\n{results['protocol']}"
    out = Table(title=title, caption=words, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=0)
    away = f"- {results['reference']}"
    also = results.get("also", [])
    wide = stdout().width >= 110  # else the intervals of what is measured besides are left to the report
    measured = [column for name in also for column in (name, "95 % interval")[: 1 + wide]]
    for column in ("contestant", results["score"], "95 % interval", *measured, away, "95 % interval", "s"):
        out.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for row in sorted(results["contestants"], key=lambda r: -r["mean"]):
        cells = [row["name"], f"{row['mean']:.3f}", f"[{row['low']:.3f}, {row['high']:.3f}]"]
        for name in map(str.lower, also):
            cells += [f"{row[name]:.4g}", f"[{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"][: 1 + wide]
        cells += ["", ""]
        if versus := row.get("versus"):
            cells[-2:] = [f"{versus['mean']:+.3f}", f"[{versus['low']:+.3f}, {versus['high']:+.3f}]"]
        style = "bold" if row["kind"] == "pretrained" else None
        out.add_row(*cells, f"{row['seconds']:.1f}", style=style)
    return out


FACTS: dict[str, Callable[[Any], str]] = {
    "parameters": "{:,} parameters".format,
    "on": "on {}".format,
    "flops": lambda v: f"{v / 1e6:,.1f} MFLOPs",
    "forward": "{:,.0f} samples/s forward".format,
    "training": "{:,.0f} forward and backward".format,
    "memory": lambda v: f"{v / 1e6:,.1f} MB",
}
"""How what rows of a list may hold beside their name, words and arguments is said."""


def list_table(rows: list[dict[str, Any]]) -> Table:
    """The parts under the names of their kinds: a name, and beside it what it is, its arguments and its facts."""
    out = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    out.add_column(no_wrap=True)
    out.add_column(overflow="fold")
    for k, row in enumerate(rows):
        if not k or row["kind"] != rows[k - 1]["kind"]:
            out.add_row(Text(("\n" if k else "") + row["kind"], "bold underline"))
        facts = [say(row[key]) for key, say in FACTS.items() if row.get(key) not in (None, "", [])]
        out.add_row(Text(row["name"], "bold"), Text(row["what"]))
        for line in (row["arguments"], ", ".join(facts), f"can: {', '.join(row['can'])}" if row.get("can") else ""):
            if line:
                out.add_row("", Text(line, "dim"))
    return out


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(VERSION)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo, "pretrain": pretrain, "finetune": finetune, "predict": predict, "embed": embed,
    "reconstruct": reconstruct, "generate": generate, "report": report, "list": listing,
}  # fmt: skip
for _name, _function in VERBS.items():
    verb(_name, _function)

diagnose = typer.Typer(help="Why it generalises, and what would help most: one question a command.")
app.add_typer(diagnose, name="diagnose")
for _name, _function in commands().items():
    verb(_name, _function, diagnose)


def main() -> None:
    """Run the command line: exit 0 when done, 2 for the user's mistakes, 1 for ours."""
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = lambda message, *_, **__: console.print(f"warning: {message}", style="yellow")
    sys.argv[0] = str(Path(sys.argv[0]).with_name("modicum"))
    app()
