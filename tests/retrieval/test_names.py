"""Names from lists, tables, archives and sources; made-up ones; what is written about them."""

from __future__ import annotations

import csv
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import passband
from passband import catalog
from passband.bench.task import Data
from passband.data.names.functions import functions_in, functions_of
from passband.data.names.generated import DANGEROUS, generate
from passband.data.names.named import Named
from passband.data.names.parts import across, halves, held_out, of_users, within
from passband.data.names.readers import read
from passband.errors import DataError, PassbandWarning
from passband.parts.identifiers import split
from passband.retrieval.flags import Flags
from passband.retrieval.name_scores import score

C = r"""
/* int comment(void) { */
#include <stdio.h>
#define LOOP(a) do { \
   a(); } while (0)
static int __attribute__((unused)) one(int a) { if (a) { return '{'; } return 0; }
struct point { int x; int (*callback)(int); };
struct point two(struct point p) { return p; }
enum color { RED, GREEN };
static const struct point P = { 1, 0 };
int three(a, b)
  int a;
  char *b;
{ return a; }
#ifdef A
int four(int a) {
#else
int four(long a) {
#endif
  return 1; }
extern "C" { void prototype(void); void five(void) { } }
API(void) six(int x) GUARDED_BY(lock)
{ }
int values[] = { 1, 2, call(3) };
int (*pointer)(int) = 0;
#if 0
int never(void) {}
#else
int seven(void) { const char *s = "}{"; return 0; }
#endif
typedef struct { int a; } T;
T eight(void) { return (T){1}; }
"""
CPP = r"""
namespace a { namespace b {
template <typename T> class Foo : public Base<T> {
 public:
  Foo(int a) : a_(a), b_{a} { }
  int get() const { return a_; }
  bool operator==(const Foo& o) const { return true; }
  template <class U> auto map(U f) -> decltype(f(1)) { return f(1); }
 private:
  int a_ = 0; int b_{1};
  enum class E { A, B };
  struct In { void inner() noexcept { } };
};
} }
std::vector<std::function<int(int)>> make(int n = 3, std::vector<int> v = {}) { return {}; }
void Image::copyTo(Image& o) & { auto f = [](int x) { return x; }; }
class EXPORT(x) Q { void q() {} };
const char* raw() { return R"x( { ( )x"; }
"""


def names_of(source, suffix):
    return [function.name for function in functions_of(source, suffix)]


def test_functions_of_c():
    found = functions_of(C, ".c")
    assert [f.name for f in found] == [
        "one", "two", "three", "four", "five", "six", "seven", "eight",
    ]
    lines = C.split("\n")
    assert all(f.name in lines[f.line - 1] for f in found)


def test_functions_of_cpp():
    assert names_of(CPP, ".cpp") == [
        "Foo", "get", "map", "inner", "make", "copyTo", "q", "raw",
    ]


def test_functions_of_python():
    source = "def f():\n    def g(): pass\nclass A:\n    async def h(self): ...\n"
    assert names_of(source, ".py") == ["f", "g", "h"]
    assert names_of("def old(): print 'x'\n", ".py") == ["old"]  # no Python 3


@pytest.mark.parametrize("source", ["", "{", "}}}", "int f(", "#if\n#else\n#endif\n#endif", "a(b"])
def test_broken_sources_end(source):
    names_of(source, ".c")


def test_a_tree_without_sources(tmp_path):
    (tmp_path / "readme.txt").write_text("no code")
    with pytest.raises(DataError, match="has no sources"):
        functions_in(tmp_path)


# ---- readers -------------------------------------------------------------------------------------


def test_pairs_of_lists(tmp_path):
    (tmp_path / "A_benign.txt").write_text("get;\nset\nboth\nget\n\n")
    (tmp_path / "A_vulnerable.txt").write_text("both\ncopy\n")
    (tmp_path / "B_benign.txt").write_text("copy\nfoo bar\n")
    (tmp_path / "B_vulnerable.txt").write_text("move\n")
    named = read(tmp_path)
    assert named.names == ("get", "set", "get", "both", "copy", "copy", "move")
    assert named.vulnerable.tolist() == [False, False, False, True, True, False, True]
    assert named.projects == ("A",) * 5 + ("B",) * 2
    assert "1 other characters" in named.note
    assert "1 benign names are vulnerable ones as well" in named.note
    (tmp_path / "B_benign.txt").unlink()
    with pytest.raises(DataError, match=r"B_benign\.txt is missing"):
        read(tmp_path)


def test_a_table(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("name,label,project\nget,0,a\ncopy,vulnerable,a\nresize(int),1,b\n")
    assert read(path).names == ("get", "copy")
    assert "1 with a signature" in read(path).note
    assert read(path, strip_signatures=True).names == ("get", "copy", "resize")
    path.write_text("name,label\nget,maybe\n")
    with pytest.raises(DataError, match="line 2: label 'maybe'"):
        read(path)
    path.write_text("function,label\nget,1\n")
    with pytest.raises(DataError, match="no column 'name'"):
        read(path)


def test_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "six.zip", "w") as archive:
        archive.writestr("png/CVE-2011-1234_f.c", "int bad(void) { return 0; }")
        archive.writestr("png/good.c", "int good(void) { return 0; }")
        archive.writestr("png/notes.txt", "int no(void) {}")
    named = read(tmp_path / "six.zip")
    assert dict(zip(named.names, named.vulnerable.tolist(), strict=True)) == {
        "bad": True, "good": False,
    }
    assert named.projects == ("png", "png")


def test_wrong_lists(tmp_path):
    (tmp_path / "A_benign.txt").write_bytes(b"get\n\xff\n")
    (tmp_path / "A_vulnerable.txt").write_text("copy\n")
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        read(tmp_path)
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / "..")
    with pytest.raises(DataError, match="holds no labelled names"):
        read(tmp_path / "A_benign.txt")
    with pytest.raises(DataError, match="no usable names"):
        Named.of(["größe"], [])
    assert "c++filt" in Named.of(["get", "_ZN3foo3barEv()"], ["copy"]).note


def test_too_few_vulnerable_names_to_hold_some_out(tmp_path):
    (tmp_path / "A_benign.txt").write_text("\n".join(f"get_{c}" for c in "abcdefgh"))
    (tmp_path / "A_vulnerable.txt").write_text("copy\n")
    with pytest.raises(DataError, match="1 vulnerable names"):
        of_users(tmp_path)


# ---- made-up names -------------------------------------------------------------------------------


def test_made_up_names_are_as_asked_for():
    one, again, other = (generate(seed, names=300, positives=40, projects=3) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert len(set(one.names)) == 900
    owners = np.array(one.projects)
    assert [one.vulnerable[owners == p].sum() for p in dict.fromkeys(one.projects)] == [40] * 3


def test_a_few_words_carry_the_danger():
    """Words with the largest lift are few, and other ones in another project."""
    named = generate(0, names=3000, positives=200, projects=2)
    tops = []
    for project in dict.fromkeys(named.projects):
        part = named.take(np.flatnonzero(np.array(named.projects) == project))
        counts = {}
        for name, bad in zip(part.names, part.vulnerable, strict=True):
            for word in {w.lower() for w in split(name)}:
                both = counts.setdefault(word, [0, 0])
                both[int(bad)] += 1
        risky = {w for w, (no, yes) in counts.items() if yes >= 5 and yes > no / 4}
        share = np.mean([any(w.lower() in risky for w in split(n))
                         for n, bad in zip(part.names, part.vulnerable, strict=True) if bad])
        assert len(risky) <= DANGEROUS + 3
        assert share > 0.5
        tops.append(risky)
    assert not tops[0] & tops[1]


def test_no_name_is_in_both_parts():
    for train, test in (within(0, "smoke"), across(0, "smoke")):
        assert not set(train.names) & set(test.names)
        assert train.positives
        assert test.positives
    train, test = held_out(generate(0, names=100, positives=10), seed=0)
    assert (len(train), train.positives, len(test), test.positives) == (80, 8, 20, 2)


# ---- tasks and scores ----------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import average_precision_score, fbeta_score, roc_auc_score

    rng = np.random.default_rng(0)
    truth, values = rng.random(200) < 0.2, rng.random(200).round(1)
    flags = values > 0.6
    found = score(Flags(("a",) * 200, values, flags, ((),) * 200), truth)
    assert found["f2"] == pytest.approx(fbeta_score(truth, flags, beta=2))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, values))
    assert found["auc"] == pytest.approx(roc_auc_score(truth, values))
    assert found["flag_all_f2"] == pytest.approx(fbeta_score(truth, np.ones(200), beta=2))
    assert found["over_all"] == pytest.approx(found["f2"] / found["flag_all_f2"])


def test_a_user_trains_on_lists_and_scans_a_tree(tmp_path):
    train, _ = halves(1000, 100, 0)
    lists = tmp_path / "lists"
    lists.mkdir()
    for label, kind in ((True, "vulnerable"), (False, "benign")):
        names = [n for n, v in zip(train.names, train.vulnerable, strict=True) if v == label]
        (lists / f"mine_{kind}.txt").write_text("\n".join(names))
    result = passband.train(
        "featherweight", "dangerous-names", data=lists, runs=tmp_path / "runs", preset="smoke"
    )
    assert result.metrics["f2"] > 0
    word = passband.load(tmp_path / "runs" / result.folder).top_words(1)[0][0]
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "a.c").write_text(f"int plain(void) {{ }}\nint {word}(int x)\n{{ }}\n")
    (tree / "<b>.py").write_text("def other(): pass\n")
    written = passband.apply(tmp_path / "runs" / result.folder, tree, tmp_path / "out")
    assert [path.name for path in written] == ["flags.csv", "flags.json", "flags.html"]
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "name": word, "score": "1.0", "flag": "True", "words": word, "contributions": "1",
        "file": "inner/a.c", "line": "2",
    }
    assert [row["name"] for row in rows] == [word, "other", "plain"]
    assert len(json.loads(written[1].read_text())["functions"]) == 3
    page = written[2].read_text()
    assert "&lt;b&gt;.py" in page
    assert "<b>" not in page
    assert "http" not in page


def test_lists_of_names_are_flagged_too(tmp_path):
    train, _ = halves(100, 20, 0)
    system = passband.create("featherweight", "smoke")
    system.fit(Data(train=train))
    path = tmp_path / "names.txt"
    path.write_text(f"{train.names[0]}\n{train.names[1]}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PassbandWarning)
        written = system.apply_file(path, tmp_path)
    assert len(json.loads(written[1].read_text())["functions"]) == 2
    with pytest.raises(DataError, match="no list of names"):
        system.apply_file(tmp_path / "flags.html", tmp_path)


def test_tasks_are_in_the_catalog():
    for name in ("dangerous-names", "dangerous-names-across", "stdlib-names"):
        assert catalog.task(name).verb == "flag"
    task = catalog.task("dangerous-names")
    assert task.data(3, "smoke").test.fingerprint == task.data(3, "smoke").test.fingerprint
    assert task.data(3, "smoke").test.fingerprint != task.data(4, "smoke").test.fingerprint


def test_functions_of_an_hdf5_file_are_vulnerable_when_any_column_says_so(tmp_path: Path) -> None:
    import h5py

    sources = ["int copy_all(char *x) { return 0; }", "void tidy_up(void) { }",
               "static long Read2(int a)\n{\n  return a;\n}", "no function at all"]
    with h5py.File(tmp_path / "part.hdf5", "w") as file:
        file["functionSource"] = sources
        file["CWE-119"] = np.array([True, False, False, True])
        file["CWE-other"] = np.array([False, False, True, False])
    named = read(tmp_path / "part.hdf5")
    assert dict(zip(named.names, named.vulnerable, strict=True)) == {
        "copy_all": True, "tidy_up": False, "Read2": True,
    }
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["text"] = sources
    with pytest.raises(DataError, match="functionSource"):
        read(tmp_path / "other.h5")
