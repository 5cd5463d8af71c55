"""Specs: the grammar, its round trip, that nothing is evaluated, and that only registered parts can be built."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, final

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modicum import testing
from modicum.core import spec as specs
from modicum.core.errors import UserError, need
from modicum.core.spec import build, names, parse, part, spec, text_of
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.encoder import Encoder


def call(name: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


GRAMMAR = {
    "convnet": call("convnet"),
    "  convnet ": call("convnet"),
    "convnet()": call("convnet"),
    "convnet(width=32, norm='group')": call("convnet", width=32, norm="group"),
    "convnet:width=32,norm=group": call("convnet", width=32, norm="group"),
    "convnet: width = 32 , norm = group": call("convnet", width=32, norm="group"),
    "mlp:dropout=.5,norm=None,over='set'": call("mlp", dropout=0.5, norm=None, over="set"),
    "mlp:width=-1": call("mlp", width=-1),
    "simclr(2, temperature=.1)": {"name": "simclr", "args": {"0": 2, "temperature": 0.1}},
    "simclr(views=views(crop=(.3, 1)))": call("simclr", views=call("views", crop=(0.3, 1))),
    "clip(image=convnet(), text=hf('DIR', freeze=True))": call(
        "clip", image=call("convnet"), text={"name": "hf", "args": {"0": "DIR", "freeze": True}}
    ),
    "a(x=(1, (2, 'b')), y=[1], z={'k': None})": call("a", x=(1, (2, "b")), y=[1], z={"k": None}),
    "a + b": {"sum": [[1.0, call("a")], [1.0, call("b")]]},
    "masked(ratio=.5) + .1*vicreg()": {"sum": [[1.0, call("masked", ratio=0.5)], [0.1, call("vicreg")]]},
    "2*a": {"sum": [[2.0, call("a")]]},
    "1*a": call("a"),
    "a + 2*(b + 3*c)": {"sum": [[1.0, call("a")], [2.0, call("b")], [6.0, call("c")]]},
    "a + (b + c)": {"sum": [[1.0, call("a")], [1.0, call("b")], [1.0, call("c")]]},
}


@pytest.mark.parametrize("text", GRAMMAR)
def test_grammar(text: str) -> None:
    assert parse(text) == GRAMMAR[text]
    assert parse(text_of(parse(text))) == GRAMMAR[text]


REFUSED = {
    "": "does not read",
    "a(": "does not read",
    "a b": "does not read",
    "a\0": "does not read",
    "a(x=)": "does not read",
    "a(1, x=2, 3)": "does not read",
    "__import__('os')": "unknown trunk '__import__'",
    "__import__('os').system('true')": "not a call with literal arguments (nothing is evaluated)",
    "os.system('true')": "not a call with literal arguments (nothing is evaluated)",
    "a.b": "not a call with literal arguments",
    "a()()": "not a call with literal arguments",
    "a[0]": "not a call with literal arguments",
    "lambda: 1": "is not key=value",
    "lambda x: 1": "not a call with literal arguments",
    "[a for a in (1,)]": "not a call with literal arguments",
    "(a := 1)": "not a call with literal arguments",
    "a if b else c": "not a call with literal arguments",
    "a - b": "not a call with literal arguments",
    "-a": "not a call with literal arguments",
    "not a": "not a call with literal arguments",
    "'a'": "not a call with literal arguments",
    "1": "not a call with literal arguments",
    "None": "not a call with literal arguments",
    "await a": "not a call with literal arguments",
    "mlp(width=__import__('os').getpid())": "nothing is evaluated",
    "mlp(width=[x for x in (1,)])": "is not a literal (nothing is evaluated)",
    "mlp(width=lambda: 1)": "is not a literal",
    "mlp(act=f'{1}')": "is not a literal",
    "mlp(width=width)": "is not a literal",
    "mlp(width=1 if True else 2)": "is not a literal",
    "mlp(width=2**99)": "is not a literal",
    "mlp(width=4*4)": "is not a literal",
    "mlp(width=a() + b())": "is not a literal",
    "mlp(width=(1).real)": "is not a literal",
    "mlp(width={1, 2})": "is not a literal",
    "mlp(width={[]: 1})": "is not a literal",
    "mlp(width={1: 2})": "is not a literal",
    "mlp(width=b'1')": "is not a literal",
    "mlp(width=1j)": "is not a literal",
    "mlp(width=...)": "is not a literal",
    "mlp(width=1e999)": "is not a literal",
    "mlp(width=1 .__class__)": "is not a literal",
    "mlp(*a)": "is not a literal",
    "mlp(**{'width': 1})": "** is not allowed; write the arguments out",
    "mlp(width=1, width=2)": "argument width is given twice",
    "mlp:width": "'width' is not key=value; wanted name:key=value,key=value",
    "mlp:": "is not key=value",
    "mlp:width=1) + b(x=1": "width wants int, got '1) + b(x=1'",
    "mlp:width=__import__('os')": "width wants int, got \"__import__('os')\"",
    "mlp:**a=1": "does not read",
    "a*mlp": "wanted number*part",
    "mlp*2": "wanted number*part",
    "True*mlp": "wanted number*part",
    "'x'*mlp": "wanted number*part",
    "-1*mlp": "wanted number*part",
    "1e999*mlp": "wanted number*part",
    "mlp + 1": "not a call with literal arguments",
    "mlp + convnet": "a sum cannot be used as trunk here: 'mlp() + convnet()'",
    "mlp(1, 2, 3, 4, 5, 6, 7)": "trunk 'mlp' takes 6 arguments: width, depth, over, norm, act, dropout",
    "mlp(8, width=8)": "argument width is given twice",
    "mlp(width=None)": "trunk 'mlp': width wants int, got None",
    "mlp(width=True)": "trunk 'mlp': width wants int, got True",
    "mlp(width=8.5)": "trunk 'mlp': width wants int, got 8.5",
    "mlp(width='8')": "trunk 'mlp': width wants int, got '8'",
    "mlp(norm=3)": "trunk 'mlp': norm wants str | None, got 3",
    "mlp(width=0)": "mlp wants width of at least 1, depth >= 0",
    "mlp(dropout=1)": "0 <= dropout < 1",
    "mlp(act='relo')": "unknown activation 'relo'; valid: relu,",
    "mlp(over='bag')": "unknown mlp over 'bag'; valid: ",
    "mlp(over='set', norm='batch')": "unknown norm for over='set' 'batch'; valid: ",
    "mlp(norm='butch')": "unknown norm 'butch'; valid: batch,",
    "mlp(width=mlp())": "argument width cannot be the part mlp() here",
    "convnet(kernel=4)": "an odd kernel and cells >= 0; got width=32, stages=3, blocks=1, stride=None, kernel=4",
    "convnet(stages=0)": "of at least 1",
    "+".join(["a"] * 5000): "does not read",
    "a(x=" + "-" * 5000 + "1)": "does not read",
    "a(" * 5000 + ")" * 5000: "does not read",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: t[:40])
def test_refused_with_words(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(UserError) as raised:
        build("trunk", text, dim=3, grid=(8, 8))
    assert REFUSED[text] in str(raised.value)
    assert not {m for m in set(sys.modules) - before if not m.startswith(("modicum", "torch", "unicodedata"))}


def test_unknown_names_and_keys_list_the_valid_ones_nearest_first() -> None:
    with pytest.raises(UserError, match=r"^unknown trunk 'convent'; valid: convnet, .*mlp"):
        build("trunk", "convent", dim=1, grid=(8, 8))
    with pytest.raises(UserError, match=r"^unknown objective 'SimCLR'; valid: simclr, "):
        part("objective", "SimCLR")
    with pytest.raises(UserError, match=r"^unknown argument of trunk 'mlp' 'widht'; valid: width, "):
        build("trunk", "mlp(widht=3)", dim=1, grid=(8,))
    with pytest.raises(UserError, match=r"^unknown image view 'crops'; valid: crop, "):
        zoo.images()[0].views(crops=1)
    with pytest.raises(UserError, match=r"^trunk 'mlp' needs dim, grid: write mlp\(dim=\.\.\.\)$"):
        build("trunk", "mlp")
    with pytest.raises(UserError, match=r"needs nosuchmodule: .* pip install 'modicum\[extra\]'"):
        need("nosuchmodule", "extra")


# Round trips

words = st.from_regex(re.compile(r"[a-z_][a-z0-9_]{0,6}", re.ASCII), fullmatch=True).filter(
    lambda w: w not in __import__("keyword").kwlist
)
plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
literals = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4).filter(lambda k: k not in ("sum", "name", "args")), inner, max_size=2)
    ),
    max_leaves=5,
)


def calls(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    positional = st.lists(values, max_size=2).map(lambda v: {str(k): x for k, x in enumerate(v)})
    keywords = st.dictionaries(words, values, max_size=3)
    return st.builds(lambda n, p, k: {"name": n, "args": {**p, **k}}, words, positional, keywords)


parts = calls(literals | calls(literals))
weights = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
sums = st.lists(st.tuples(weights, parts).map(list), min_size=2, max_size=4).map(lambda terms: {"sum": terms})


@settings(max_examples=80, deadline=None, derandomize=True)
@given(parts | sums)
def test_round_trip_of_any_spec(made: dict[str, Any]) -> None:
    assert parse(text_of(made)) == made
    assert text_of(parse(text_of(made))) == text_of(made)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=30) | st.text("abm(=,.)'\"*+-:1{}[]lp ", max_size=30))
def test_any_text_reads_or_is_the_users_mistake(text: str) -> None:
    try:
        made = parse(text)
    except UserError:
        return
    assert parse(text_of(made)) == made


@pytest.mark.parametrize("kind", ["trunk", "objective", "modality"])
def test_every_part_has_its_own_name_and_one_class(kind: str) -> None:
    for name in names(kind):
        assert part(kind, name).__module__.rpartition(".")[2] == name
        assert part(kind, name).__final__


# Tampering


def poisoned(dim: Any = 4, **extra: Any) -> dict[str, Any]:
    return {"kind": "trunk", "name": "mlp", "args": {"dim": dim, "grid": [6], **extra}}


POISON = [
    None, 5, "mlp(", [], {}, {"name": "mlp"}, {"args": {}}, {"name": 5, "args": {}}, {"name": ["mlp"], "args": {}},
    {"name": "mlp", "args": []}, {"sum": 1}, {"sum": [[1.0]]}, {"sum": [[1.0, poisoned()]]},
    {"sum": [["x", poisoned()]]},
    {"name": "os.system", "args": {"0": "true"}}, {"name": "os", "args": {}},
    {"name": "modicum.nn.trunks.mlp", "args": {}},
    {"name": "mlp.Mlp", "args": {}}, {"name": "mlp.__init__", "args": {}}, {"name": "__init__", "args": {}},
    {"name": "__class__", "args": {}}, {"name": "../modalities/images", "args": {}}, {"name": "_files", "args": {}},
    {"name": "simclr", "args": {}}, {"name": "Mlp", "args": {}}, {"name": "", "args": {}},
    poisoned(__class__="x"), poisoned(self=1), poisoned(_used="x"), poisoned(**{"0": 1, "9": 1}), poisoned(**{"²": 1}),
    poisoned({"name": "mlp", "args": {}}), poisoned({"kind": "os", "name": "system", "args": {}}),
    poisoned({"kind": "__class__", "name": "mlp", "args": {}}),
    poisoned({"kind": ["trunk"], "name": "mlp", "args": {}}),
    poisoned(poisoned()), poisoned({"kind": "modality", "name": "images", "args": {"size": 8}}),
    poisoned(act="__import__('os')"), poisoned(act={"x": 1}), poisoned("4"), poisoned(None), poisoned(grid=[["a"]]),
]  # fmt: skip


@pytest.mark.parametrize("bad", POISON, ids=lambda b: json.dumps(b, ensure_ascii=False)[:70])
def test_tampered_json_builds_nothing_else(bad: Any) -> None:
    before = set(sys.modules)
    with pytest.raises(UserError):
        build("trunk", json.loads(json.dumps(bad)))
    assert set(sys.modules) - before <= {m for m in sys.modules if m.startswith("modicum")}


def test_a_part_of_another_kind_is_refused_where_it_does_not_fit() -> None:
    row = next(r for r in zoo.OBJECTIVES if r.name == "supervised")
    objective = spec("objective", row.make())
    other = json.loads(json.dumps(objective))
    other["args"]["encoder"] = objective
    with pytest.raises(UserError, match=r"objective 'supervised': encoder wants .*Tower, got a Supervised"):
        build("objective", other)
    other["args"]["encoder"] = 7
    with pytest.raises(UserError, match=r"objective 'supervised': encoder wants .*Tower, got 7"):
        build("objective", other)


# Parts of other packages


@final
class Wide(Trunk):
    """One linear layer to `width` numbers a token: as a third party would write it."""

    def __init__(self, dim: int, grid: tuple[int, ...], width: int = 12) -> None:
        super().__init__()
        self.dim, self.grid, self.width = dim, tuple(grid), width
        self.can = frozenset({"padding", "any_length"})
        self.linear = nn.Linear(dim, width)
        self.dim_out, self.grid_out = width, self.grid

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens._replace(x=self.linear(tokens.x))

    def layers(self) -> Layers:
        return {"linear": [self.linear]}

    def decoder(self, code: int) -> nn.Module:
        t = 1
        for side in self.grid:
            t *= side
        return nn.Sequential(nn.Linear(code, t * self.dim), nn.Unflatten(1, (t, self.dim)))


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    point = importlib.metadata.EntryPoint("wide", f"{__name__}:Wide", "modicum.trunks")

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == "modicum.trunks" else []

    def clear() -> None:
        specs._foreign.cache_clear()
        specs.part.cache_clear()

    clear()
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    yield
    monkeypatch.undo()
    clear()


@pytest.mark.usefixtures("third_party")
def test_a_third_party_trunk_passes_the_contract_and_works() -> None:
    assert {"convnet", "mlp", "wide"} <= set(names("trunk"))
    testing.check_trunk(lambda: Wide(4, (6,)))
    made, batch = zoo.tables()
    encoder = Encoder.of(made, "wide:width=20")
    assert encoder(batch).pooled.shape == (12, 20)
    again = build("encoder", json.loads(json.dumps(spec("encoder", encoder))))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(batch).pooled, encoder(batch).pooled)
    testing.check_objective(zoo.objective("autoencoder(code=4)", "wide", zoo.tables), batch)


def test_without_its_package_a_third_party_trunk_is_unknown() -> None:
    with pytest.raises(UserError, match="unknown trunk 'wide'"):
        part("trunk", "wide")
