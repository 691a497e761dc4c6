"""Models that cannot be had (one line, exit code 1) or that misbehave (an `error` or a warning on the report, never `survived`)."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from end_to_end.asking import PLAN, Ask, Behaving, Command, Reported, Write, codes, one_line, statuses
from rbench.data import load
from rbench_results.store import Store

# --- a user's file ----------------------------------------------------------------------------------------------------------------------

FILES = {  # text of the file: exit code, what the line holds
    "does not parse": ("def model(:\n", 1, "line 1"),
    "is no text": ("\0\1\2", 1, "net.py"),
    "raises when read": ("raise RuntimeError('no\\nluck')", 1, "RuntimeError: no luck"),
    "imports what is not there": ("import no_such_module", 1, "no_such_module"),
    "exits when read": ("import sys; sys.exit(0)", 1, "SystemExit"),
    "never ends reading": ("def f(): f()\nf()", 1, "RecursionError"),
    "lacks the name": ("def other(): ...", 2, "other"),
    "raises": ("def model(): raise KeyError('weights')", 1, "KeyError"),
    "exits": ("import sys\ndef model(): sys.exit()", 1, "SystemExit"),
    "wants arguments": ("def model(path, depth): ...", 1, "path"),
    "gives None": ("def model(): pass", 1, "NoneType"),
    "gives a class": ("from torch import nn\ndef model(): return nn.Linear", 1, "type"),
    "is a string": ("model = 'resnet'", 1, "str"),
}

NETS = {
    "another shape": ("nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))", "1×8×8"),
    "another size": ("nn.Sequential(nn.Flatten(), nn.Linear(784, 10))", "1×8×8"),
    "too few classes": ("nn.Sequential(nn.Flatten(), nn.Linear(64, 9))", "9 classes"),
    "too many classes": ("nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))", "1000 classes"),
    "one output": ("nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))", "(16,)"),
    "images": ("nn.Identity()", "(16, 1, 8, 8)"),
    "a list": ("Of(lambda x: [x])", "list"),
    "whole numbers": ("Of(lambda x: x.flatten(1)[:, :10].long())", "int64"),
    "half the rows": ("Of(lambda x: x.flatten(1)[:8, :10])", "(8, 10)"),
    "an exit": ("Of(lambda x: exit(0))", "SystemExit"),
    "an endless recursion": ("Of(lambda x: (f := lambda: f())())", "RecursionError"),
}

OF = """
from torch import nn
class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x):
        return self.function(x)
"""


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("text", "code", "hint"), FILES.values(), ids=FILES)
def test_a_file_that(text: str, code: int, hint: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(text)
    one_line(ask(model=f"{tmp_path / 'net.py'}:model"), code, hint)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("net", "hint"), NETS.values(), ids=NETS)
def test_a_factory_that_returns_a_module_for(net: str, hint: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"{OF}\ndef model(): return {net}")
    one_line(ask(model=f"{tmp_path / 'net.py'}:model"), 1, "net.py:model", hint)


@pytest.mark.usefixtures("untouched")
def test_a_file_that_is_not_there_or_not_one(ask: Ask, means: str, tmp_path: Path) -> None:
    one_line(ask(model=tmp_path / "nowhere.py:model"), 2, "nowhere.py")
    one_line(ask(model=tmp_path / "nowhere.py"), 2, "FILE.py:FACTORY")
    (tmp_path / "folder.py").mkdir()
    one_line(ask(model=f"{tmp_path / 'folder.py'}:model"), 2, "folder.py")
    one_line(ask(model=means.removesuffix("make")), 2, "make")  # names what it defines
    one_line(ask(model=means, dataset=None), 2, "--dataset")


# --- a model that misbehaves ------------------------------------------------------------------------------------------------------------

NOT_FINITE = {
    "always": "return self.net(x) * NAN",
    "infinite": "return self.net(x) / 0",
    "one class only": "return self.net(x).index_fill(1, torch.tensor([7]), NAN)",
    "off the clean images": "return self.net(x).where(~off(x), NAN)",
    "infinite off the clean images": "return self.net(x).where(~off(x), -NAN.__class__('inf'))",
}


RAND = "autoattack(version=rand, batch=20)"


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize(
    ("body", "plan"),
    [(body, PLAN) for body in NOT_FINITE.values()]
    + [(NOT_FINITE["off the clean images"], plan) for plan in ("apgd", "plan(pgd(steps=2), slide(steps=2))", RAND)],
    ids=[*NOT_FINITE, "apgd", "two attacks", "an attack of another library"],
)
def test_nan_is_an_error_and_never_robust(body: str, plan: str, report: Reported) -> None:
    found = report(body, plan=plan, n=20)
    assert found["counts"]["survived"] == found["counts"]["broken"] == 0
    assert found["counts"]["error"] > 0
    assert (found["robust"]["accuracy"], found["robust"]["n"]) == (0, 20)  # none dropped
    assert "errors" in codes(found)
    assert all("NaN" in row["reason"] for row in found["verdicts"] if row["status"] == "error")


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("plan", [PLAN, RAND])
def test_nan_that_only_the_referee_meets_is_an_error_too(plan: str, report: Reported) -> None:
    """Finite wherever a gradient is followed: the search claims falls, and the referee gets no numbers to confirm them."""
    hidden = "return self.net(x) if torch.is_grad_enabled() else self.net(x).where(~off(x), NAN)"
    found = report(hidden, plan=plan, threat="linf(eps=0.2)", n=20)
    calm = report(plan=plan, threat="linf(eps=0.2)", n=20, results=None)
    assert found["counts"]["broken"] == 0 < calm["counts"]["broken"] / 2 < found["counts"]["error"]
    if plan != RAND:  # there one row's fall draws other noise for the next
        fell = ["error" if status == "broken" else status for status in statuses(calm)]
        assert statuses(found) == fell


def test_warnings_stand_on_the_page_of_the_run_and_in_its_table(report: Reported, command: Command, tmp_path: Path) -> None:
    found = report(NOT_FINITE["always"])
    page = " ".join(html.unescape(Path(found["site"]).read_text()).split())
    table = command("show", "latest", "--results", tmp_path / "results").stdout
    assert {"nan", "errors", "input-range"} <= codes(found)
    for warning in found["warnings"]:
        assert warning["text"] in page
        assert warning["text"][:60] in table
    assert "60 error" in table


@pytest.mark.usefixtures("no_site")
def test_nan_of_some_images_leaves_the_others_alone(report: Reported) -> None:
    found, calm = report("return self.net(x).where(x[:, 0, 4, 4:5] < 0.9, NAN)"), report(results=None)
    bright = load("digits", n=60).x[:, 0, 4, 4]
    for row, other, value in zip(found["verdicts"], calm["verdicts"], bright.tolist(), strict=True):
        if value >= 0.9:
            assert row["status"] == "error"
        elif value < 0.79:  # out of the adversary's reach
            assert row["status"] == other["status"]
        else:
            assert row["status"] in ("error", other["status"])
    assert "errors" in codes(found)


CRASHES = {
    "raises": "raise ValueError('too bright')",
    "exits": "sys.exit(3)",
    "returns a row too few": "return self.net(x)[1:]",
    "returns a class too many": "return torch.cat([self.net(x), 1e3 + self.net(x)[:, :1]], 1)",
    "returns a class too few": "return self.net(x)[:, :9]",
    "returns nothing": "return None",
    "asserts on the device": "assert False",
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize(
    ("body", "plan"),
    [(body, PLAN) for body in CRASHES.values()] + [(CRASHES["exits"], "autoattack(version=rand, batch=60)")],
    ids=[*CRASHES, "under an attack of another library"],
)
def test_a_model_that_fails_on_some_images_is_asked_about_the_others(body: str, plan: str, report: Reported) -> None:
    found = report(
        f"if (x[:, 0, 4, 4] > 0.95).any() and self.calls > 4:\n    {body}\nreturn self.net(x)", plan=plan, threat="linf(eps=0.01)"
    )
    calm = report(plan=plan, threat="linf(eps=0.01)", results=None)
    bright = load("digits", n=60).x[:, 0, 4, 4] > 0.95  # grey levels 15/16 and 1: the adversary moves none across
    assert 0 < sum(bright) < 60
    for row, other, touched in zip(found["verdicts"], calm["verdicts"], bright.tolist(), strict=True):
        assert row["status"] in (("error", "misclassified") if touched else (other["status"],))
    assert "errors" in codes(found)


@pytest.mark.parametrize("plan", [RAND, "foolbox:LinfPGD(steps=3, batch=20)"])
@pytest.mark.parametrize("body", ["raise ValueError('no\\nluck')", "sys.exit(0)", "raise MemoryError()", "return self.net(x)[1:]"])
def test_a_model_that_fails_inside_another_library_gives_errors(body: str, plan: str, report: Reported) -> None:
    """Such an attack runs on whole blocks, so nobody can say which image was at fault: all of the block have an error, none survives."""
    found = report(f"if off(x).any() and self.calls > 4:\n    {body}\nreturn self.net(x)", plan=plan)
    assert found["counts"]["survived"] + found["counts"]["broken"] == 0
    assert found["counts"]["error"] > 0
    assert plan.partition("(")[0].partition(":")[0] in next(row["reason"] for row in found["verdicts"] if row["status"] == "error")


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("after", [4, 6, 9, 10])
def test_a_model_that_fails_for_good_in_the_middle_ends_with_errors(after: int, report: Reported) -> None:
    found = report(f"if self.calls > {after}:\n    raise RuntimeError('CUDA error: an illegal memory access')\nreturn self.net(x)")
    assert found["counts"]["survived"] + found["counts"]["broken"] == 0
    assert found["counts"]["error"] > 0
    assert "illegal memory access" in " ".join(warning["text"] for warning in found["warnings"])


@pytest.mark.usefixtures("no_site")
def test_a_failure_in_the_backward_pass_alone(report: Reported) -> None:
    found = report("""
        class Fragile(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.bad = self.calls > 6
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                if ctx.bad:
                    raise ValueError("backwards")
                return grad
        return self.net(Fragile.apply(x))
    """)
    assert found["counts"]["survived"] == 0
    assert any("backwards" in (row["reason"] or "") for row in found["verdicts"])


SUSPICIOUS = {
    "probabilities": ("return self.net(x).softmax(1)", "probabilities"),
    "a random model": ("return self.net(x + 0.02 * torch.randn_like(x))", "random"),
    "double logits": ("return self.net(x).double()", "dtype"),
    "an image that it overwrites": ("return self.net(x.mul_(1.0))", "in-place"),
    "grey levels 0..255": ("return self.net(x / 255 - 1)", "input-range"),
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize(("body", "code"), SUSPICIOUS.values(), ids=SUSPICIOUS)
def test_what_is_suspicious_is_said_and_still_evaluated(body: str, code: str, report: Reported) -> None:
    found = report(body)
    assert found["counts"]["unanswered"] == 0
    if code != "in-place":  # x * 1.0 is x: nothing to be seen
        assert code in codes(found)


@pytest.mark.usefixtures("no_site")
def test_a_random_model_may_go_on_where_it_stopped(report: Reported) -> None:
    """Its answers to the probe differ each time; that is said, and is no reason to take it for another model."""
    body = "return self.net(x + 0.1 * torch.randn_like(x))"
    first, second = report(body, n=20), report(body, n=40)
    assert "random" in codes(first) & codes(second)
    assert second["model_digest"] == first["model_digest"]
    assert statuses(second)[:20] == statuses(first)


@pytest.mark.usefixtures("no_site")
def test_a_model_on_double_or_in_train_mode_gives_the_same_statuses(report: Reported, model_file: Write) -> None:
    calm = statuses(report())
    double = report(model=model_file("def model(): return make().double()"), results=None)
    assert (statuses(double), "dtype" in codes(double)) == (calm, True)
    text = "def model(): return nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1, eps=1e-12, affine=False), make()).train()"
    trained = report(model=model_file(text), results=None)
    assert (statuses(trained), "train-mode" in codes(trained)) == (calm, True)


SHORT = {
    "torch": "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
    "the allocator on a CPU": "RuntimeError('[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can\\'t allocate memory')",
    "python": "MemoryError()",
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_short_memory_narrows_the_batch_and_changes_no_status(error: str, report: Reported) -> None:
    found = report(f"if len(x) > 32:\n    raise {error}\nreturn self.net(x)", threat="union(linf(eps=0.1), l2(eps=0.6))")
    assert statuses(found) == statuses(report(threat="union(linf(eps=0.1), l2(eps=0.6))", results=None))
    assert "memory" in codes(found)
    assert any("32 rows" in warning["text"] for warning in found["warnings"])


@pytest.mark.usefixtures("no_site")
def test_memory_for_nothing_is_an_error_per_image(report: Reported) -> None:
    found = report("if self.calls > 5:\n    raise MemoryError('all gone')\nreturn self.net(x)")
    assert found["counts"]["survived"] == 0
    assert any("out of memory" in (row["reason"] or "") for row in found["verdicts"])


@pytest.mark.usefixtures("no_site")
def test_a_model_without_a_gradient_is_one_line_under_a_plan_that_needs_one(behaving: Behaving, ask: Ask, tmp_path: Path) -> None:
    one_line(ask(model=behaving("return self.net(x).detach()")), 1, "no gradient")
    with Store.open(tmp_path / "results", create=False) as store:
        assert [run.state for run in store.runs()] == ["failed"]
    done = ask(model=behaving("return self.net(x).detach()"), plan="grid", threat="rotation-translation(degrees=10, shift=1)")
    assert (done.returncode, done.stderr) == (0, "")
