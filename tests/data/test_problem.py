"""The contract of a stated problem: what is refused, by name, and what equals what."""

import json

import numpy as np
import pytest

from passband.data.pde import Problem, read_problem
from passband.errors import ProblemError

LINE = {"box": {"x": (0, 1)}, "operator": {"xx": 1.0}, "boundary": 0.0}
SQUARE = {"box": {"x": (0, 1), "y": (0, 2)}, "operator": {"xx": 1.0, "yy": 1.0}, "boundary": 0.0}
X, Y = np.linspace(0, 1, 11), np.linspace(0, 2, 14)
XY = np.meshgrid(X, Y, indexing="ij")


def zero(*_):
    return 0.0


def with_nan(x, *_):
    return np.where(x > 0.4, np.nan, 1.0)


def raising(*_):
    raise KeyError("no such thing")


REFUSED = {
    # box
    "box is no mapping": (LINE, {"box": (0, 1)}, "box = "),
    "box is empty": (LINE, {"box": {}}, "box = "),
    "four axes": (LINE, {"box": dict.fromkeys("xyzt", (0, 1))}, "box = "),
    "long axis name": (LINE, {"box": {"xx": (0, 1)}}, "box axis 'xx'"),
    "axis is a number": (LINE, {"box": {1: (0, 1)}}, "box axis 1"),
    "box ends swapped": (LINE, {"box": {"x": (1, 0)}}, r"box\['x'\] = \(1.0, 0.0\)"),
    "box end infinite": (LINE, {"box": {"x": (0, np.inf)}}, r"box\['x'\]"),
    "box end is text": (LINE, {"box": {"x": ("a", 1)}}, r"box\['x'\]"),
    "box ends are three": (LINE, {"box": {"x": (0, 1, 2)}}, r"box\['x'\]"),
    # operator
    "operator is empty": (LINE, {"operator": {}}, "operator = "),
    "operator is no mapping": (LINE, {"operator": "xx"}, "operator = 'xx'"),
    "unknown letter": (LINE, {"operator": {"xx": 1, "t": 1}}, "operator key 't'"),
    "third order": (LINE, {"operator": {"xxx": 1}}, "'xxx' is a derivative of order 3"),
    "twice the same": (SQUARE, {"operator": {"xy": 1, "yx": 1, "xx": 1, "yy": 1}}, "'xy' twice"),
    "axis without derivative": (SQUARE, {"operator": {"xx": 1}}, "no derivative along axis 'y'"),
    "coefficient NaN": (LINE, {"operator": {"xx": np.nan}}, r"operator\['xx'\] has 1 NaN"),
    "coefficient complex": (LINE, {"operator": {"xx": 1j}}, r"operator\['xx'\] is complex"),
    "coefficient None": (LINE, {"operator": {"xx": None}}, r"operator\['xx'\] is a NoneType"),
    "coefficient text": (LINE, {"operator": {"xx": "1"}}, r"operator\['xx'\] is a str"),
    "coefficient ragged": (LINE, {"operator": {"xx": [[1], [1, 2]]}}, r"'xx'\] is a list"),
    "coefficient raises": (LINE, {"operator": {"xx": raising}}, r"operator\['xx'\].*KeyError"),
    # boundary
    "no boundary": (LINE, {"boundary": None}, "boundary is missing"),
    "empty boundary": (LINE, {"boundary": {}}, "boundary is empty"),
    "unknown face": (LINE, {"boundary": {"y": 0}}, "boundary key 'y'"),
    "unknown side": (LINE, {"boundary": {"x*": 0}}, r"boundary key 'x\*'"),
    "face twice": (LINE, {"boundary": {"x": 0, "x-": 0}}, "face 'x-' twice"),
    "one face of second order": (LINE, {"boundary": {"x-": 0}}, "too little along axis 'x': x-"),
    "no initial value": (
        SQUARE, {"operator": {"xx": 1, "y": 1}, "boundary": {"x": 0}}, "along axis 'y': none",
    ),
    "corner": (SQUARE, {"boundary": {"x": 0.0, "y": 1.0}}, "disagree by 1 where faces meet"),
    "boundary NaN": (SQUARE, {"boundary": {"x": with_nan, "y": 1.0}, }, r"boundary\['x\+'\] has"),
    "boundary None": (LINE, {"boundary": {"x": None}}, r"boundary\['x'\] is a NoneType"),
    "boundary complex": (LINE, {"boundary": {"x": 1j}}, r"boundary\['x'\] is complex"),
    # source
    "source NaN": (LINE, {"source": with_nan}, "source has .* the first at index"),
    "source infinite": (LINE, {"source": np.inf}, "source has 1 NaN or infinite"),
    "source None": (LINE, {"source": None}, "source is a NoneType"),
    "source text": (LINE, {"source": "sin(x)"}, "source is a str"),
    "source returns nothing": (LINE, {"source": lambda x: None}, "source gives .* object"),
    "source complex": (LINE, {"source": lambda x: np.exp(1j * x)}, "source is complex"),
    "source raises": (LINE, {"source": raising}, "source .*KeyError"),
    "source of wrong arguments": (LINE, {"source": lambda x, y: x}, "source .*TypeError"),
    "source of wrong shape": (LINE, {"source": lambda x: np.ones(3)}, "source .*ValueError"),
    # arrays
    "array without nodes": (LINE, {"source": np.ones(11)}, "source is an array but nodes is miss"),
    "face array without nodes": (SQUARE, {"boundary": {"x": np.ones(14), "y": 1}},
                                 r"boundary\['x-'\] is an array but nodes"),
    "array of another shape": (LINE, {"source": np.ones(10), "nodes": [X]},
                               r"source has shape \(10,\)"),
    "coefficient of another shape": (
        SQUARE, {"operator": {"xx": np.ones((14, 11)), "yy": 1}, "nodes": [X, Y]},
        r"operator\['xx'\] has shape \(14, 11\)",
    ),
    "face of another shape": (
        SQUARE, {"boundary": {"x": np.zeros(11), "y": 0}, "nodes": [X, Y]},
        r"boundary\['x-'\] has shape \(11,\)",
    ),
    "array NaN": (LINE, {"source": np.where(X > 0.9, np.nan, 1), "nodes": [X]},
                  r"source has 1 NaN .*index \(10,\)"),
    "array complex": (LINE, {"source": X * 1j, "nodes": [X]}, "source is complex"),
    "array corner": (SQUARE, {"boundary": {"x": np.ones(14), "y": np.zeros(11)}, "nodes": [X, Y]},
                     "disagree by 1"),
    # nodes
    "nodes of another number": (SQUARE, {"nodes": [X]}, "nodes has 1 axes"),
    "nodes decreasing": (LINE, {"nodes": [X[::-1]]}, "nodes of axis 'x'"),
    "nodes elsewhere": (LINE, {"nodes": [X + 1]}, "nodes of axis 'x' run from 1.0 to 2.0"),
    "nodes text": (LINE, {"nodes": [["a", "b"]]}, "nodes of axis 'x' is a list"),
    # nonlinear, exact
    "one function": (LINE, {"nonlinear": np.sin}, "nonlinear is not a pair"),
    "no derivative": (LINE, {"nonlinear": (np.sin, None)}, "nonlinear is not a pair"),
    "N raises": (LINE, {"nonlinear": (raising, zero)}, r"nonlinear, N\(u\), .*KeyError"),
    "dN raises": (LINE, {"nonlinear": (zero, raising)}, r"nonlinear, dN\(u\), .*KeyError"),
    "exact is a number": (LINE, {"exact": 3.0}, "exact is a float"),
    "exact NaN": (LINE, {"exact": with_nan}, "exact has"),
}


@pytest.mark.parametrize("base, change, words", REFUSED.values(), ids=REFUSED)
def test_what_is_not_well_stated_is_refused_by_name(base, change, words):
    Problem(**base)
    with pytest.raises(ProblemError, match=words) as caught:
        Problem(**{**base, **change})
    assert caught.value.expected, "the error says what would have been right"


def field(x, y):
    return np.sin(3 * x) * np.cos(2 * y) + 2


FORMS = {
    "callables": ({}, {"xx": lambda x, y: 1 + x * y, "yy": 2.0}, field, field),
    "arrays": ({"nodes": [X, Y]}, {"xx": 1 + XY[0] * XY[1], "yy": np.full((11, 14), 2.0)},
               field(*XY),
               {"x-": field(0, Y), "x+": field(1, Y), "y-": field(X, 0), "y+": field(X, 2)}),
    "lists": ({"nodes": [X.tolist(), Y.tolist()]},
              {"xx": (1 + XY[0] * XY[1]).tolist(), "yy": 2}, field(*XY).tolist(), field),
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays_callables_and_numbers_are_the_same_problem(form):
    extra, operator, source, boundary = FORMS[form]
    problem = Problem(SQUARE["box"], operator, source, boundary, **extra)
    on = problem.on([X, Y])
    np.testing.assert_allclose(on.source, field(*XY), rtol=1e-13)
    np.testing.assert_allclose(np.broadcast_to(on.terms["xx"], (11, 14)), 1 + XY[0] * XY[1])
    np.testing.assert_allclose(np.broadcast_to(on.terms["yy"], (11, 14)), 2.0)
    edge = np.zeros((11, 14), dtype=bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    np.testing.assert_array_equal(on.known, edge)
    np.testing.assert_allclose(on.values, np.where(edge, field(*XY), 0.0), rtol=1e-13)
    # Off the nodes: arrays are splines of fourth order, callables exact.
    points = np.random.default_rng(0).uniform((0, 0), (1, 2), (50, 2))
    off = [np.linspace(0, 1, 30), np.linspace(0, 2, 31)]
    np.testing.assert_allclose(problem.at(problem.source, points), field(*points.T), atol=2e-3)
    np.testing.assert_allclose(
        problem.on(off).source, field(*np.meshgrid(*off, indexing="ij")), atol=2e-3
    )
    on_face = np.column_stack([np.ones(50), points[:, 1]])
    np.testing.assert_allclose(problem.face_value("x+", on_face), field(1, points[:, 1]), atol=2e-3)


def test_resampling_is_of_eighth_order():
    off = [np.linspace(0, 1, 2001)]
    errors = []
    for n in (50, 100):
        x = np.linspace(0, 1, n)
        problem = Problem(**{**LINE, "source": np.sin(20 * x), "nodes": [x]})
        errors.append(np.abs(problem.on(off).source - np.sin(20 * off[0])).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(8, abs=1)


def test_tiny_boxes_are_resampled_too():
    """Tolerances follow the box: nodes a billionth apart are still different nodes."""
    x = np.linspace(0, 1e-9, 11)
    problem = Problem({"x": (0, 1e-9)}, {"xx": 1.0}, 1e9 * x, 0.0, nodes=[x])
    y = np.concatenate([[0], np.geomspace(1e-11, 1e-9, 10)])
    np.testing.assert_allclose(problem.on([y]).source, 1e9 * y, atol=1e-12)


def test_faces_axes_and_blind():
    problem = Problem({"x": (0, 1), "t": (0, 1)}, {"t": 1, "xx": -1}, boundary={"x": 0, "t-": 0},
                      exact=lambda x, t: 0 * x)
    assert (problem.axes, problem.dim, problem.faces) == ("xt", 2, ("x-", "x+", "t-"))
    assert problem.blind().exact is None and problem.blind().faces == problem.faces
    all_faces = Problem(**{**SQUARE, "boundary": None, "exact": field})
    assert all_faces.faces == ("x-", "x+", "y-", "y+") == all_faces.blind().faces
    with pytest.raises(ProblemError, match="no exact solution"):
        all_faces.blind().truth(np.zeros((1, 2)))


def test_mixed_derivatives_are_named_in_the_order_of_the_axes():
    problem = Problem(**{**SQUARE, "operator": {"xx": 1, "yx": 3, "yy": 1}})
    assert problem.on([X, Y]).terms == {"xx": 1.0, "xy": 3.0, "yy": 1.0}


# ---- files -----------------------------------------------------------------------------------


def write(path, **change):
    arrays = {"x1": X, "x2": Y, "f": field(*XY), "g1_lo": field(0, Y), "g1_hi": field(1, Y),
              "g2_lo": field(X, 0), "g2_hi": field(X, 2), **change}
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def test_npz_is_the_problem_it_states(tmp_path):
    operator = json.dumps({"xx": 2.0, "y": 1.0})
    path = write(tmp_path / "plate.npz", operator=operator, polynomial=[0.0, 0.0, 1.0], g2_hi=None)
    problem = read_problem(path)
    assert problem.name == "plate" and problem.faces == ("x-", "x+", "y-")
    assert problem.operator == {"xx": 2.0, "y": 1.0}
    u = np.array([0.5, 2.0])
    np.testing.assert_allclose(problem.nonlinear[0](u), u**2)
    np.testing.assert_allclose(problem.nonlinear[1](u), 2 * u)
    np.testing.assert_allclose(problem.on([X, Y]).source, field(*XY))


def test_npz_of_one_axis_defaults_to_the_laplacian(tmp_path):
    np.savez(tmp_path / "rod.npz", x1=X, f=np.ones(11), g1_lo=1.0, g1_hi=[2.0], axes="r")
    problem = read_problem(tmp_path / "rod.npz")
    assert problem.operator == {"rr": 1.0}
    np.testing.assert_allclose(problem.on([X]).values[[0, -1]], [1, 2])


TORN = {
    "no f": ({"f": None}, "lacks f"),
    "no second axis": ({"x2": None, "x3": Y}, "lacks x2"),
    "unknown name": ({"source": X}, "has unknown source"),
    "object array": ({"f": np.array([{"a": 1}], dtype=object)}, "can't be read"),
    "axes too long": ({"axes": "xyz"}, "axes in .* is 'xyz'"),
    "axes repeated": ({"axes": "xx"}, "axes in"),
    "operator no JSON": ({"operator": "xx + yy"}, "operator in .* is no JSON"),
    "operator a list": ({"operator": "[1, 2]"}, "operator = "),
    "polynomial text": ({"polynomial": "u^2"}, "polynomial is"),
    "complex source": ({"f": 1j * field(*XY)}, "source is complex"),
    "text source": ({"f": "sin(x)"}, "source is"),
    "empty axis": ({"x1": np.zeros(0)}, r"box\['x'\]"),
    "face of another shape": ({"g1_lo": X}, r"boundary\['x-'\] has shape"),
    "NaN": ({"f": np.full((11, 14), np.nan)}, "source has 154 NaN"),
}


@pytest.mark.parametrize("change, words", TORN.values(), ids=TORN)
def test_wrong_npz_is_named(tmp_path, change, words):
    with pytest.raises(ProblemError, match=words):
        read_problem(write(tmp_path / "p.npz", **change))


def test_pickles_are_never_opened(tmp_path):
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return opened.touch, ()

    with pytest.raises(ProblemError, match="can't be read"):
        read_problem(write(tmp_path / "p.npz", f=np.array([Trap()], dtype=object)))
    assert not opened.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 900, -30])
def test_torn_npz_is_refused(tmp_path, keep):
    path = write(tmp_path / "p.npz")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ProblemError, match=r"p\.npz can't be read"):
        read_problem(path)


def test_flipped_bytes_are_refused(tmp_path):
    """A damaged body: the checksum or the decompressor complains, in the middle of reading."""
    path = tmp_path / "p.npz"
    np.savez_compressed(path, x1=X, f=np.random.default_rng(0).random(11), g1_lo=0, g1_hi=0)
    body = bytearray(path.read_bytes())
    body[60:160] = bytes(100)
    path.write_bytes(body)
    with pytest.raises(ProblemError, match=r"p\.npz can't be read"):
        read_problem(path)


def test_a_single_array_is_no_npz(tmp_path):
    with (tmp_path / "p.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(ProblemError, match="can't be read"):
        read_problem(tmp_path / "p.npz")


SCRIPTS = {
    "raises": ("1 / 0", "stopped with ZeroDivisionError"),
    "exits": ("raise SystemExit(3)", "stopped with SystemExit"),
    "syntax": ("problem =", "stopped with SyntaxError"),
    "nothing": ("x = 1", "defines no Problem"),
    "wrong type": ("problem = {'xx': 1}", "defines no Problem"),
    "wrong problem": (
        "from passband.data.pde import Problem\nproblem = Problem({'x': (1, 0)}, {'xx': 1})", "box"
    ),
}


@pytest.mark.parametrize("text, words", SCRIPTS.values(), ids=SCRIPTS)
def test_wrong_scripts_are_named(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ProblemError, match=words):
        read_problem(path)


def test_script_is_read(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from passband.data.pde import Problem\n"
        "problem = Problem({'x': (0, 1)}, {'xx': 1.0}, source=-2.0, boundary=0.0)\n"
    )
    assert read_problem(path).name == "mine"


@pytest.mark.parametrize("name, words", [("p.csv", "ending '.csv'"), ("none.py", "no file")])
def test_other_files_are_refused(tmp_path, name, words):
    (tmp_path / "p.csv").touch()
    with pytest.raises(ProblemError, match=words):
        read_problem(tmp_path / name)
