"""Specs: a constructor call as text or JSON, parsed without evaluation, built from known names only.

Text:  `convnet`, `convnet(width=32)`, `convnet:width=32,norm=group`, `simclr(views=views(crop=.3)) + .1*vicreg()`.
JSON:  {"name": "convnet", "args": {"width": 32}}; a sum is {"sum": [[1.0, {...}], [0.1, {...}]]}.
A name is a file of one of the part folders and means that file's one final class; other packages add names through
entry points (`modicum.trunks`, `modicum.objectives`, `modicum.modalities`). Nothing else can be named.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from modicum.core.errors import UserError, unknown

Spec = dict[str, Any]

FOLDERS = {
    "trunk": "modicum.nn.trunks",
    "objective": "modicum.objectives",
    "modality": "modicum.modalities",
    "encoder": "modicum.nn",
}
GROUPS = {"trunk": "modicum.trunks", "objective": "modicum.objectives", "modality": "modicum.modalities"}
ENCODERS = ["encoder", "pair"]
"""The modules of modicum.nn that hold a kind of encoder."""


def parse(text: str, what: str = "spec") -> Spec:
    """The spec written in `text`; UserError where it is not a call with literal arguments."""
    if not isinstance(text, str):
        raise UserError(f"{what} {text!r:.200}: wanted a text such as 'simclr(n=2)'")
    head, colon, tail = text.strip().partition(":")
    if colon and head.isidentifier():
        text = f"{head}({', '.join(_sugar(item, text) for item in tail.split(','))})"
    try:
        return _node(ast.parse(text.strip(), mode="eval").body, text)
    except UserError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or "too long"
        raise UserError(f"{what} '{text[:200]}' does not read: {reason}; wanted a call such as simclr(n=2)") from None


def _sugar(item: str, text: str) -> str:
    key, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"spec '{text}': '{item}' is not key=value; wanted name:key=value,key=value")
    try:
        ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        value = repr(value.strip())
    return f"{key.strip()}={value}"


def _node(node: ast.expr, text: str) -> Spec:
    match node:
        case ast.BinOp(op=ast.Add() | ast.Mult()):
            terms = _terms(node, text)
            return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else {"sum": terms}
        case ast.Name(id=name):
            return {"name": name, "args": {}}
        case ast.Call(func=ast.Name(id=name), args=given, keywords=keywords):
            args: dict[str, Any] = {str(i): _value(a, text) for i, a in enumerate(given)}
            for keyword in keywords:
                if keyword.arg is None:
                    raise UserError(f"spec '{text}': ** is not allowed; write the arguments out")
                if keyword.arg in args:
                    raise UserError(f"spec '{text}': argument {keyword.arg} is given twice")
                args[keyword.arg] = _value(keyword.value, text)
            return {"name": name, "args": args}
    raise UserError(f"spec '{text}': '{ast.unparse(node)}' is not a call with literal arguments (nothing is evaluated)")


def _terms(node: ast.expr, text: str) -> list[list[Any]]:
    """The weighted parts of a sum, flat: weights of bracketed sums are multiplied in."""
    match node:
        case ast.BinOp(op=ast.Add()):
            return [*_terms(node.left, text), *_terms(node.right, text)]
        case ast.BinOp(op=ast.Mult()):
            weight = node.left.value if isinstance(node.left, ast.Constant) else None
            if isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight):
                return [[weight * w, part] for w, part in _terms(node.right, text)]
            raise UserError(f"spec '{text}': wanted number*part, got '{ast.unparse(node)}'")
    return [[1.0, _node(node, text)]]


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _node(node, text)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        value = ...
    if not _is_plain(value):
        raise UserError(
            f"spec '{text}': '{ast.unparse(node)}' is not a literal (nothing is evaluated); "
            "wanted a number, 'text', True, None, a tuple of these, or a part with brackets: name()"
        )
    return value


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold the value."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def text_of(spec: Spec) -> str:
    """The spec as it would be written on the command line."""
    if "sum" in spec:
        return " + ".join(
            text_of(s) if w == 1 else f"{repr(w).removesuffix('.0')}*{text_of(s)}" for w, s in spec["sum"]
        )
    values = {k: text_of(v) if _is_spec(v) else repr(v) for k, v in spec["args"].items()}
    return f"{spec['name']}({', '.join(v if k.isdecimal() else f'{k}={v}' for k, v in values.items())})"


def _is_spec(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    if "sum" in value:
        terms = value["sum"]
        pairs = isinstance(terms, list | tuple) and all(isinstance(t, list | tuple) and len(t) == 2 for t in terms)
        return pairs and all(isinstance(w, int | float) and _is_spec(s) for w, s in terms)
    return isinstance(value.get("name"), str) and isinstance(value.get("args"), Mapping)


def names(kind: str) -> list[str]:
    """The names of a kind of part: files of its folder, and entry points of other packages."""
    if kind == "encoder":
        return ENCODERS
    package = importlib.import_module(FOLDERS[kind])
    own = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    return sorted({*own, *_foreign(kind)})


@cache
def _foreign(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=GROUPS[kind])}


@cache
def part(kind: str, name: str) -> type:
    """The class that `name` means among the parts of `kind`."""
    if name not in names(kind):
        raise unknown(kind, name, names(kind))
    if kind != "encoder" and name in _foreign(kind):
        return _foreign(kind)[name].load()
    module = importlib.import_module(f"{FOLDERS[kind]}.{name}")
    found = [c for c in vars(module).values() if inspect.isclass(c) and getattr(c, "__final__", False)]
    own = [c for c in found if c.__module__ == module.__name__]
    assert len(own) == 1, f"{module.__name__} must hold one @final class, the part; it has {[c.__name__ for c in own]}"
    return own[0]


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, without self."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


@dataclass(frozen=True)
class Make:
    """How the context of a build makes a nested part: `call(spec or None)` gives the object."""

    call: Callable[[Spec | None], Any]


def hinted(hints: Mapping[str, Any]) -> Make:
    """Options, such as those of views, as the data hints at them, under the user's own."""
    return Make(lambda given: {**hints, **(_tuples(given["args"]) if given else {})})


def build(kind: str, spec: Spec | str, **given: Any) -> Any:
    """The object a spec describes; `given` fills the arguments that the spec leaves to its context.

    A nested spec, or options written as a dictionary, is made by the context's `Make` of that argument where there is
    one, else from its own record. What the class has in `only_asked` the context does not fill in.
    """
    if isinstance(spec, str):
        spec = parse(spec, kind)
    if not _is_spec(spec):
        raise UserError(f"no {kind} can be made of {spec!r:.200}; wanted a name and its args")
    if "sum" in spec and kind != "objective":
        raise UserError(f"a sum cannot be used as {kind} here: '{text_of(spec)}'")
    if "sum" in spec:
        context = {k: v.call(None) if isinstance(v, Make) else v for k, v in given.items() if k != "encoder"}
        return part(kind, "combined")(given["encoder"], _tuples(spec["sum"]), context)
    cls = part(kind, spec["name"])
    wanted = arguments(cls)
    args = _named(kind, spec, [k for k in wanted if k not in given or isinstance(given[k], Make)], wanted)
    for key, value in args.items():
        maker = given.get(key)
        if isinstance(maker, Make) and isinstance(value, Mapping):
            args[key] = maker.call(dict(value) if _is_spec(value) else {"args": dict(value)})
        elif _is_spec(value):
            args[key] = _nested(key, value)
        else:
            args[key] = _tuples(value)
    _check(f"{kind} '{spec['name']}'", cls, args)
    for key, value in given.items():
        if key in wanted and key not in args and key not in getattr(cls, "only_asked", ()):
            args[key] = value.call(None) if isinstance(value, Make) else value
            _check_encoder(f"{kind} '{spec['name']}'", cls, key, args[key])
    _all_there(kind, spec, wanted, args)
    return cls(**args)


def resolve(kind: str, spec: Spec, context: tuple[str, ...]) -> dict[str, Any]:
    """The plain arguments of a spec by name, checked as `build` does; those of `context` are decided elsewhere."""
    cls = part(kind, spec["name"])
    wanted = {k: p for k, p in arguments(cls).items() if k not in context}
    args = {k: _tuples(v) for k, v in _named(kind, spec, list(wanted), arguments(cls)).items()}
    _check(f"{kind} '{spec['name']}'", cls, args)
    _all_there(kind, spec, wanted, args)
    return args


def _all_there(kind: str, spec: Spec, wanted: Mapping[str, inspect.Parameter], args: Mapping[str, Any]) -> None:
    missing = [k for k, p in wanted.items() if p.default is inspect.Parameter.empty and k not in args]
    if missing:
        raise UserError(f"{kind} '{spec['name']}' needs {', '.join(missing)}: write {spec['name']}({missing[0]}=...)")


def _named(kind: str, spec: Spec, positional: list[str], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name: positions are resolved against the constructor, unknown names refused."""
    args = {}
    for key, value in spec["args"].items():
        if key.isdecimal():
            if int(key) >= len(positional):
                raise UserError(f"{kind} '{spec['name']}' takes {len(positional)} arguments: {', '.join(positional)}")
            key = positional[int(key)]
        if key not in wanted:
            raise unknown(f"argument of {kind} '{spec['name']}'", key, positional)
        if key not in positional:
            raise UserError(
                f"{kind} '{spec['name']}': {key} is decided by the data and the other options; leave it out"
            )
        if key in args:
            raise UserError(f"{kind} '{spec['name']}': argument {key} is given twice")
        args[key] = value
    return args


def _nested(key: str, value: Spec) -> Any:
    if str(value.get("kind")) not in FOLDERS:
        raise UserError(f"argument {key} cannot be the part {text_of(value)} here")
    return build(value["kind"], value)


def _check(what: str, cls: type, args: Mapping[str, Any]) -> None:
    """Refuse arguments that the constructor's annotations do not allow."""
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    for key, value in args.items():
        hint = hints.get(key, Any)
        if not _fits(value, hint):
            given = f"a {type(value).__name__}" if kind_of(value) else repr(value)
            raise UserError(f"{what}: {key} wants {inspect.formatannotation(hint)}, got {given}")


def _check_encoder(what: str, cls: type, key: str, value: Any) -> None:
    """Refuse an encoder of several trunks where the constructor's annotation wants a plain one."""
    if kind_of(value) == "encoder" and not _fits(value, typing.get_type_hints(cls.__init__).get(key, Any)):  # type: ignore[misc]
        raise UserError(
            f"{what} needs an encoder of one trunk, such as convnet or mlp; '{type(value).__name__.lower()}' is none"
        )


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, h) for h in inner)
    if origin in (int, float):
        return isinstance(value, int if origin is int else int | float) and not isinstance(value, bool)
    if origin is tuple and inner and isinstance(value, tuple):
        wanted = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    return hint is Any or not isinstance(origin, type) or isinstance(value, origin)


def _tuples(value: Any) -> Any:
    """JSON knows lists only; constructors are called with tuples, which compare and hash."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def spec(kind: str, obj: Any) -> Spec:
    """The constructor call that makes `obj` again, as JSON: every argument is an attribute of the same name."""
    name = next((n for n in names(kind) if part(kind, n) is type(obj)), None)
    if name is None:
        raise UserError(
            f"a {type(obj).__name__} cannot be written to a run: it is no {kind} that has a name; register its class "
            f"as an entry point of the group {GROUPS.get(kind, 'modicum.trunks')}"
        )
    args = {}
    for key in arguments(type(obj)):
        value = getattr(obj, key)
        nested = kind_of(value)
        args[key] = spec(nested, value) if nested else value
    return {"kind": kind, "name": name, "args": args}


def kind_of(value: Any) -> str | None:
    """The kind of part an object is, by its base class; None for plain values."""
    from modicum.core.types import Input, Objective, Trunk

    for kind, base in (("trunk", Trunk), ("objective", Objective), ("modality", Input)):
        if isinstance(value, base):
            return kind
    return "encoder" if getattr(type(value), "kind", None) == "encoder" else None
