from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from specs import errors, one

from hpc.batch import check
from hpc.batch.kinds import CONTRACT
from hpc.batch.spec import KINDS, StageBlock, fingerprint, settings_of, text
from hpc.data.units import Bytes, Seconds
from hpc.train.settings.data import Shape

REQUIRED = {"steps": 2000, "batch": 8, "shapes": (Shape(frames=33, height=64, width=64, batch=8),)}
"""Values of fields without a default; of those that are not here a name will do."""


class Inner(msgspec.Struct, frozen=True):
    batch: int = 1
    prompt: str = "p"


class Contract:
    CODE, PHASES, OBJECTS, INPUT_SUFFIXES = "code", ("map",), (".x",), ()
    VERSION, SECONDS_PER_GIB, NEUTRAL = 1, 1.0, ("inner.batch", "note")


class Own(Contract, msgspec.Struct, frozen=True):
    """A stage of somebody else's, with every type that settings may have."""

    note: str | None = None
    inner: Inner = Inner()
    sizes: tuple[int, int] = (1, 2)
    factors: list[float] = msgspec.field(default_factory=lambda: [0.5])
    limits: dict[str, Seconds] = msgspec.field(default_factory=dict)
    either: int | Seconds | None = None
    cache: Bytes | None = None

    def __post_init__(self) -> None:
        if self.sizes[0] > self.sizes[1]:
            raise ValueError("sizes: the first must not be larger")
        if self.note == "silly":
            raise ValueError("don't be silly")


class Greedy(Contract, msgspec.Struct, frozen=True):
    needs: str = ""


class Bare(msgspec.Struct, frozen=True):
    CODE = "x"


OWN = "name: t\ninputs: in\noutput: out\nstages:\n  own: {kind: 'KIND'}\n".replace("KIND", f"{__name__}:Own")


def test_stages_of_ones_own(tmp_path: Path) -> None:
    spec = one(tmp_path, OWN, "stages.own.sizes=[3, 4]", "stages.own.limits={a: 2m}", "stages.own.either=90s",
               "stages.own.factors=[1, 2.5]", "stages.own.cache=1GiB")  # fmt: skip
    own = spec.stages["own"].settings
    assert own == Own(
        sizes=(3, 4), limits={"a": Seconds(120)}, either=Seconds(90), factors=[1, 2.5], cache=Bytes(1 << 30)
    )
    assert isinstance(own.sizes, tuple) and isinstance(own.limits["a"], Seconds)
    (tmp_path / "again").mkdir()
    assert one(tmp_path / "again", text(spec)).hash == spec.hash

    neutral = one(tmp_path, OWN, "stages.own.note=x", "stages.own.inner.batch=9")
    assert fingerprint(neutral, "own") == fingerprint(one(tmp_path, OWN), "own")
    assert fingerprint(one(tmp_path, OWN, "stages.own.inner.prompt=q"), "own") != fingerprint(neutral, "own")

    found = errors(tmp_path, OWN, "stages.own.sizes=[1]", "stages.own.limits={a: 2}", "stages.own.either=often",
                   "stages.own.inner=[]")  # fmt: skip
    assert "override 1: stages.own.sizes: 1 values given, 2 are needed" in found
    assert "override 2: stages.own.limits.a: 2 is not a duration" in found
    assert "override 3: stages.own.either: 'often' is not a whole number, a duration such as" in found
    assert "override 4: stages.own.inner: a list is not a mapping of keys to values" in found
    found = errors(tmp_path, OWN, "stages.own.sizes=[2, 1]")
    assert found == "override 1: stages.own.sizes: the first must not be larger"
    assert errors(tmp_path, OWN, "stages.own.note=silly") == "DIR/x.yaml:5: stages.own: don't be silly"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere.at:X", "cannot be imported: No module named 'nowhere' (is nowhere.at installed, or on PYTHONPATH?)"),
        (f"{__name__}:Nothing", f"{__name__} has no msgspec.Struct Nothing with the settings of a stage"),
        (f"{__name__}:OWN", f"{__name__} has no msgspec.Struct OWN with the settings of a stage"),
        (f"{__name__}:Bare", "lacks the class variables PHASES, OBJECTS, INPUT_SUFFIXES, VERSION, NEUTRAL, "),
        (f"{__name__}:Greedy", "has settings that every stage has: rename needs"),
        ("curate:clips:x", "no such kind: did you mean curate.clips?"),
        ("3", "3 is not the kind of the stage"),
    ],
)
def test_kinds_that_cannot_be(tmp_path: Path, kind: str, message: str) -> None:
    quoted = kind if kind == "3" else f"'{kind}'"
    assert message in errors(tmp_path, OWN.replace(f"'{__name__}:Own'", quoted))


def test_every_kind_keeps_the_contract() -> None:
    assert "CODE" in CONTRACT and "PHASES" in CONTRACT
    for kind, struct in KINDS.items():
        assert hasattr(struct, "parts") or all(hasattr(struct, name) for name in CONTRACT), kind
        assert not set(StageBlock.__struct_fields__) & set(struct.__struct_fields__), kind
        required = [field.name for field in msgspec.structs.fields(struct) if field.required]
        made = struct(**{name: REQUIRED.get(name, "/somewhere") for name in required})
        assert settings_of(kind, check.plain(made)) == made
        assert settings_of(kind, msgspec.json.decode(msgspec.json.encode(made, enc_hook=check.plain))) == made
