"""Wrong arguments: a ValueError that names the argument and says what came, before anything runs."""

from __future__ import annotations

import numba
import numpy as np
import pytest

import gflow
import gflow.margins

X, Y = np.ones((4, 3)), np.ones((4, 2))
A, y = np.ones((5, 2, 3)), np.ones(5)
M, MASK = np.ones((2, 3)), np.array([[1, 0, 1], [0, 1, 0]])
PROBLEM = gflow.Problem(X, Y)
MODEL = gflow.DeepLinear((3, 2, 2))
THETA0 = np.full(MODEL.size, 0.1)
SCALAR = gflow.DeepLinear((1, 1, 1))
PREDICTOR, SIGNS = gflow.DeepLinear((3, 1)), np.ones(4)
LABELLED = gflow.Problem(X, SIGNS, "logistic")
UNIT = gflow.Problem.factorization([[1.0]])


def broken(array, value):
    out = np.array(array, dtype=float)
    out.flat[1] = value
    return out


def flow(**changes):
    return gflow.flow(**{"model": MODEL, "problem": PROBLEM, "theta0": THETA0, "t": 1.0, **changes})


def by_loss(**changes):
    arguments = {
        "model": PREDICTOR,
        "problem": LABELLED,
        "theta0": np.full(3, 0.1),
        "t": 4.0,
        "clock": "loss",
    }
    return gflow.flow(**{**arguments, **changes})


def descend(**changes):
    arguments = {"model": MODEL, "problem": PROBLEM, "theta0": THETA0, "step_size": 0.1, "n_steps": 3}
    return gflow.descend(**{**arguments, **changes})


def many(**changes):
    arguments = {"model": MODEL, "problem": PROBLEM, "thetas": np.tile(THETA0, (3, 1)), "t": 1.0}
    return gflow.ensemble(**{**arguments, **changes})


def relu_descend(**changes):
    model = gflow.TwoLayerReLU(3, 2, 2, slope=0.2)
    return descend(model=model, theta0=model.init(), **changes)


@numba.njit
def good_gradient(t, theta, data, dims, work, out):
    out[:] = theta


@numba.njit
def gradient_that_returns(t, theta, data, dims, work, out):
    return theta.sum()


@numba.njit
def gradient_of_five(t, theta, data, dims, out):
    out[:] = theta


@numba.njit
def gradient_of_matrices(t, theta, data, dims, work, out):
    out[:] = theta @ np.ones((2, 2)) @ theta.T @ "no"


def plain_gradient(t, theta, data, dims, work, out):
    out[:] = theta


class Own:
    size = 2

    def __init__(self, gradient):
        self.gradient = gradient

    def kernel_arguments(self, problem):
        return [], [], 0


def own(gradient):
    return lambda: gflow.flow(Own(gradient), None, [1.0, 2.0], 1.0)


def continued(**changes):
    start = gflow.flow(MODEL, PROBLEM, THETA0, 1.0)
    return flow(**{"theta0": None, "t": 2.0, "start": start, **changes})


NAN, INF = np.nan, np.inf
CASES = {
    # problems: argument named first, then what came
    "X of one axis": (lambda: gflow.Problem(np.ones(4), Y), "X", r"\(4,\)"),
    "X of three axes": (lambda: gflow.Problem(np.ones((4, 3, 1)), Y), "X", r"\(4, 3, 1\)"),
    "X empty": (lambda: gflow.Problem(np.ones((0, 3)), np.ones((0, 2))), "X", r"\(0, 3\)"),
    "X without columns": (lambda: gflow.Problem(np.ones((4, 0)), Y), "X", r"\(4, 0\)"),
    "X of text": (lambda: gflow.Problem([["a", "b"]], Y), "X", "'a'"),
    "X ragged": (lambda: gflow.Problem([[1.0, 2.0], [3.0]], Y), "X", r"\[3\.0\]"),
    "X complex": (lambda: gflow.Problem(X * 1j, Y), "X", "not real"),
    "X of NaN": (lambda: gflow.Problem(broken(X, NAN), Y), "X", r"X\[0, 1\] is nan"),
    "X of inf": (lambda: gflow.Problem(broken(X, -INF), Y), "X", r"X\[0, 1\] is -inf"),
    "Y of three axes": (lambda: gflow.Problem(X, np.ones((4, 2, 1))), "Y", r"\(4, 2, 1\)"),
    "Y scalar": (lambda: gflow.Problem(X, 1.0), "Y", r"\(\)"),
    "Y of other length": (lambda: gflow.Problem(X, np.ones((5, 2))), "Y", "X has 4, Y has 5"),
    "Y of NaN": (lambda: gflow.Problem(X, broken(Y, NAN)), "Y", r"Y\[0, 1\] is nan"),
    "loss unknown": (lambda: gflow.Problem(X, Y, loss="hinge"), "loss", "'hinge'"),
    "loss no text": (lambda: gflow.Problem(X, Y, loss=2), "loss", "2"),
    "factor 0": (lambda: gflow.Problem(X, Y, factor=0.0), "factor", "0.0"),
    "factor -1": (lambda: gflow.Problem(X, Y, factor=-1), "factor", "-1"),
    "factor NaN": (lambda: gflow.Problem(X, Y, factor=NAN), "factor", "nan"),
    "factor text": (lambda: gflow.Problem(X, Y, factor="half"), "factor", "'half'"),
    "factor of factorization": (lambda: gflow.Problem.factorization(M, factor=0), "factor", "0"),
    "factor of completion": (lambda: gflow.Problem.completion(M, MASK, factor=-0.5), "factor", "-0.5"),
    "factor of sensing": (lambda: gflow.Problem.sensing(A, y, factor=INF), "factor", "inf"),
    "weight_decay < 0": (lambda: gflow.Problem(X, Y, weight_decay=-0.1), "weight_decay", "-0.1"),
    "weight_decay NaN": (lambda: gflow.Problem(X, Y, weight_decay=NAN), "weight_decay", "nan"),
    "M of one axis": (lambda: gflow.Problem.factorization(np.ones(3)), "M", r"\(3,\)"),
    "M of NaN": (lambda: gflow.Problem.factorization(broken(M, NAN)), "M", r"M\[0, 1\] is nan"),
    "A of two axes": (lambda: gflow.Problem.sensing(np.ones((5, 3)), y), "A", r"\(5, 3\)"),
    "A of inf": (lambda: gflow.Problem.sensing(broken(A, INF), y), "A", r"A\[0, 0, 1\] is inf"),
    "y of two axes": (lambda: gflow.Problem.sensing(A, np.ones((5, 1))), "y", r"\(5, 1\)"),
    "y of other length": (lambda: gflow.Problem.sensing(A, np.ones(4)), "y", "A has 5, y has 4"),
    "y of NaN": (lambda: gflow.Problem.sensing(A, broken(y, NAN)), "y", r"y\[1\] is nan"),
    "mask of other shape": (lambda: gflow.Problem.completion(M, np.ones((3, 2))), "mask", r"\(3, 2\)"),
    "mask of 0.5": (lambda: gflow.Problem.completion(M, 0.5 * MASK), "mask", "0.5"),
    "mask of nothing": (lambda: gflow.Problem.completion(M, 0 * MASK), "mask", "none"),
    "M observed as NaN": (
        lambda: gflow.Problem.completion(broken(M, NAN), 1 + 0 * MASK), "M", r"M\[0, 1\] is nan"),
    "Y ragged": (lambda: gflow.Problem(X, [[1.0], [1.0, 2.0]]), "Y", r"\[1\.0, 2\.0\]"),
    "Y complex": (lambda: gflow.Problem(X, Y * 1j), "Y", "not real"),
    "completion of ragged M": (
        lambda: gflow.Problem.completion([[1.0], [1.0, 2.0]], MASK), "M", r"\[1\.0, 2\.0\]"),
    "completion of text": (
        lambda: gflow.Problem.completion([["a", "b"]], [[True, False]]), "M", "'a'"),
    "completion of None": (lambda: gflow.Problem.completion(None, MASK), "M", "None"),
    "mask ragged": (lambda: gflow.Problem.completion(M, [[1], [0, 1]]), "mask", r"\[0, 1\]"),
    "mask of text": (lambda: gflow.Problem.completion([[1.0]], [["yes"]]), "mask", "'yes'"),
    "mask None": (lambda: gflow.Problem.completion(M, None), "mask", "None"),
    # models
    "widths of one": (lambda: gflow.DeepLinear((3,)), "widths", r"\(3,\)"),
    "widths of none": (lambda: gflow.DeepLinear(()), "widths", r"\(\)"),
    "widths a number": (lambda: gflow.DeepLinear(3), "widths", "3"),
    "widths a fraction": (lambda: gflow.DeepLinear((3, 2.5, 1)), r"widths\[1\]", "2.5"),
    "widths of 0": (lambda: gflow.DeepLinear((3, 0, 1)), r"widths\[1\]", "0"),
    "widths negative": (lambda: gflow.DeepLinear((-3, 1)), r"widths\[0\]", "-3"),
    "widths of text": (lambda: gflow.DeepLinear(("3", 1)), r"widths\[0\]", "'3'"),
    "widths of bool": (lambda: gflow.DeepLinear((True, 1)), r"widths\[0\]", "True"),
    "dimension 0": (lambda: gflow.Symmetric(0, 1), "dimension", "0"),
    "rank 1.5": (lambda: gflow.Symmetric(2, 1.5), "rank", "1.5"),
    "init kind": (lambda: MODEL.init("xavier"), "kind", "'xavier'"),
    "init kind of Symmetric": (lambda: gflow.Symmetric(2, 1).init("balanced"), "kind", "'balanced'"),
    "init scale 0": (lambda: MODEL.init("gaussian", scale=0.0), "scale", "0.0"),
    "init scale NaN": (lambda: MODEL.init("balanced", scale=NAN), "scale", "nan"),
    "init scale of a list": (lambda: MODEL.init("gaussian", scale=[1, 2]), "scale", r"\[1, 2\]"),
    "aligned scale of other length": (
        lambda: MODEL.init("aligned", scale=[1, 2, 3], problem=PROBLEM), "scale", r"\(3,\)"),
    "aligned scale negative": (lambda: MODEL.init("aligned", scale=-1.0, problem=PROBLEM), "scale", "-1.0"),
    "aligned without problem": (lambda: MODEL.init("aligned"), "problem", "aligned"),
    "aligned to another problem": (lambda: MODEL.init("aligned", problem=UNIT), "problem", "1 and 1"),
    "aligned to sensing": (
        lambda: MODEL.init("aligned", problem=gflow.Problem.sensing(A, y)), "target", "sensing"),
    "pack of too few": (lambda: MODEL.pack([np.ones((2, 3))]), "arrays", "1"),
    "pack of a wrong shape": (
        lambda: MODEL.pack([np.ones((2, 3)), np.ones((2, 3))]), r"arrays\[1\]", r"\(2, 3\)"),
    "unpack of a wrong length": (lambda: MODEL.unpack(np.ones(9)), "theta", r"\(9,\)"),
    **{
        f"rng {rng!r} of {type(model).__name__}": (
            lambda model=model, rng=rng: model.init("gaussian", rng=rng), "rng", repr(rng))
        for model in (MODEL, gflow.Symmetric(3, 1)) for rng in ("a", 1.5, -1, True)
    },
    "pack of a number": (lambda: MODEL.pack(3), "arrays", "3"),
    "pack of None": (lambda: MODEL.pack(None), "arrays", "None"),
    "pack of text": (lambda: MODEL.pack("ab"), "arrays", "'ab'"),
    "unpack of text": (lambda: MODEL.unpack("abc"), "theta", "'abc'"),
    "unpack of None": (lambda: MODEL.unpack(None), "theta", r"\(\)|None"),
    "unpack of complex": (lambda: MODEL.unpack(1j * THETA0), "theta", "not real"),
    # flow
    "problem of other inputs": (
        lambda: flow(problem=gflow.Problem(np.ones((4, 2)), Y)), "problem", "2 and 2"),
    "problem of other outputs": (lambda: flow(problem=gflow.Problem(X, np.ones(4))), "problem", "3 and 1"),
    "problem not square": (
        lambda: flow(model=gflow.Symmetric(3, 1), theta0=np.ones(3)), "problem", "3 and 2"),
    "problem an array": (lambda: flow(problem=X), "problem", "ndarray"),
    "problem None": (lambda: flow(problem=None), "problem", "NoneType"),
    "model a number": (lambda: flow(model=3), "model", "int"),
    "model a class": (lambda: flow(model=gflow.DeepLinear), "model", "DeepLinear"),
    "model None": (lambda: flow(model=None), "model", "NoneType"),
    "theta0 too short": (lambda: flow(theta0=THETA0[1:]), "theta0", r"\(9,\)"),
    "theta0 of two axes": (lambda: flow(theta0=THETA0[None]), "theta0", r"\(1, 10\)"),
    "theta0 of NaN": (lambda: flow(theta0=broken(THETA0, NAN)), "theta0", r"theta0\[1\] is nan"),
    "theta0 of inf": (lambda: flow(theta0=broken(THETA0, INF)), "theta0", r"theta0\[1\] is inf"),
    "theta0 None": (lambda: flow(theta0=None), "theta0", "got None"),
    "theta0 of text": (lambda: flow(theta0="zero"), "theta0", "'zero'"),
    "t decreasing": (lambda: flow(t=[0.0, 2.0, 1.0]), "t", r"t\[1\] = 2 .* t\[2\] = 1"),
    "t repeated": (lambda: flow(t=[0.0, 1.0, 1.0]), "t", r"t\[1\] = 1 .* t\[2\] = 1"),
    "t negative": (lambda: flow(t=[-1.0, 1.0]), "t", r"t\[0\] is -1"),
    "t a negative end": (lambda: flow(t=-2.0), "t", "-2"),
    "t zero": (lambda: flow(t=0.0), "t", "got 0"),
    "t empty": (lambda: flow(t=[]), "t", r"\(0,\)"),
    "t of two axes": (lambda: flow(t=[[0.0, 1.0]]), "t", r"\(1, 2\)"),
    "t infinite": (lambda: flow(t=-INF), "t", "inf"),
    "t infinite before its end": (lambda: flow(t=[0.0, INF, INF]), "t", r"t\[1\] is inf"),
    "t NaN": (lambda: flow(t=NAN), "t", "nan"),
    "rest 0": (lambda: flow(rest=0.0), "rest", "got 0"),
    "rest of all": (lambda: flow(rest=1.0), "rest", "between 0 and 1; got 1.0"),
    "rest text": (lambda: flow(rest="slow"), "rest", "'slow'"),
    "rest at infinity": (lambda: flow(t=INF, rest=1e-3), "rest", "where t ends with inf"),
    "t text": (lambda: flow(t="soon"), "t", "'soon'"),
    "t None": (lambda: flow(t=None), "t", "got None"),
    "t ragged": (lambda: flow(t=[0.0, [1.0, 2.0]]), "t", r"\[1\.0, 2\.0\]"),
    "rtol 0": (lambda: flow(rtol=0.0), "rtol", "0.0"),
    "rtol negative": (lambda: flow(rtol=-1e-6), "rtol", "-1e-06"),
    "rtol 1": (lambda: flow(rtol=1.0), "rtol", "1.0"),
    "rtol NaN": (lambda: flow(rtol=NAN), "rtol", "nan"),
    "rtol below rounding": (lambda: flow(rtol=1e-17), "rtol", "1e-17"),
    "rtol text": (lambda: flow(rtol="1e-9"), "rtol", "'1e-9'"),
    "rtol beyond double precision": (lambda: flow(rtol=10**400), "rtol", "1000000"),
    "atol 0": (lambda: flow(atol=0.0), "atol", "0.0"),
    "atol negative": (lambda: flow(atol=-1e-9), "atol", "-1e-09"),
    "atol NaN": (lambda: flow(atol=NAN), "atol", "nan"),
    "atol array": (lambda: flow(atol=np.ones(10)), "atol", r"array"),
    "method unknown": (lambda: flow(method="euler"), "method", "'euler'"),
    "method None": (lambda: flow(method=None), "method", "None"),
    "max_steps 0": (lambda: flow(max_steps=0), "max_steps", "0"),
    "max_steps fraction": (lambda: flow(max_steps=10.5), "max_steps", "10.5"),
    "stop no callable": (lambda: flow(stop=3.0), "stop", "3.0"),
    "observe unknown": (lambda: flow(observe="sharpnes"), "observe", "'sharpnes'"),
    "observe one unknown": (lambda: flow(observe=["loss", "los"]), "observe", "'los'"),
    "observe a number": (lambda: flow(observe=[3]), "observe", "3"),
    "observe a number in a dict": (lambda: flow(observe={"a": 3}), r"observe\['a'\]", "3"),
    "observe only a number": (lambda: flow(observe=3), "observe", "3"),
    "start no trajectory": (lambda: flow(start=3), "start", "3"),
    "descent start no trajectory": (lambda: descend(start="last"), "start", "'last'"),
    "start of another problem": (lambda: continued(problem=gflow.Problem(X, 2 * Y)), "start", "another"),
    "start of another model": (
        lambda: continued(model=SCALAR, problem=UNIT), "start", "another"),
    "start of another theta0": (lambda: continued(theta0=2 * THETA0), "theta0", "others"),
    "start of another rtol": (lambda: continued(rtol=1e-3), "rtol", "0.001"),
    "start of another atol": (lambda: continued(atol=1e-3), "atol", "0.001"),
    "start of another method": (lambda: continued(method="tsit5"), "method", "'tsit5'"),
    "start after t": (lambda: continued(t=0.5), "t", "0.5"),
    "start after t[0]": (lambda: continued(t=[0.5, 2.0]), "t", r"t\[0\] is 0.5"),
    "start of descent": (lambda: flow(theta0=None, t=2.0, start=descend()), "start", "gradient descent"),
    # the clock of the loss
    "clock unknown": (lambda: flow(clock="arc"), "clock", "'arc'"),
    "clock of the loss for the square loss": (lambda: flow(clock="loss"), "clock", "'loss'.*square"),
    "clock of the loss with decay": (
        lambda: by_loss(problem=gflow.Problem(X, SIGNS, "logistic", weight_decay=0.1)), "clock", "0.1"),
    "clock of the loss with soft labels": (
        lambda: by_loss(model=MODEL, theta0=THETA0, problem=gflow.Problem(X, Y / 2, "softmax")), "clock", "0.5"),
    "clock of the loss of log L": (lambda: by_loss(problem=LABELLED.log), "clock", "log L"),
    "clock of the loss for a model of one's own": (
        lambda: gflow.flow(Own(good_gradient), None, [1.0, 2.0], 1.0, clock="loss"), "clock", "Own"),
    "clock of the loss and dense": (lambda: by_loss(dense=True), "dense", "clock"),
    "t below log(1/L)": (lambda: by_loss(t=0.1), "t", "0.1"),
    "t[0] below log(1/L)": (lambda: by_loss(t=[-1.0, 5.0]), "t", r"t\[0\] is -1"),
    "start of another clock": (
        lambda: by_loss(theta0=None, t=9.0, clock="time", start=by_loss()), "clock", "'time'"),
    "start before t by the loss": (lambda: by_loss(theta0=None, t=2.0, start=by_loss()), "t", "2"),
    "log of the square loss": (lambda: PROBLEM.log, "problem", "square"),
    "target of the logistic loss": (lambda: LABELLED.target, "target", "logistic"),
    "aligned to the logistic loss": (
        lambda: PREDICTOR.init("aligned", problem=LABELLED), "target", "logistic"),
    "logistic loss of sensing": (
        lambda: gflow.flow(MODEL, gflow.Problem(A, y, "logistic", kind="sensing"), THETA0, 1.0),
        "problem", "'sensing'"),
    "log_loss of the square loss": (lambda: flow().log_loss, "problem", "square"),
    "max_margin of an array": (lambda: gflow.theory.separable.max_margin(X), "problem", "ndarray"),
    "max_margin of other labels": (
        lambda: gflow.theory.separable.max_margin(gflow.Problem(X, 2 * SIGNS)), "Y", "-?2"),
    "max_margin of soft labels": (
        lambda: gflow.theory.separable.max_margin(gflow.Problem(X, Y / 2, "softmax")), "Y", "0.5"),
    "max_margin of factorization": (
        lambda: gflow.theory.separable.max_margin(gflow.Problem.factorization(M)), "problem", "'factorization'"),
    "limit of two states": (lambda: gflow.observe.limit(by_loss(), "direction"), "trajectory", "2"),
    "angle to nothing": (lambda: gflow.margins.angle_to([[0.0, 0.0, 0.0]]), "map", "zero"),
    "angle to another shape": (
        lambda: gflow.margins.angle_to([[1.0]])(PREDICTOR, LABELLED, np.ones(3)), "map", r"\(1, 1\)"),
    # models of one's own
    "gradient plain": (own(plain_gradient), r"model\.gradient", "got function"),
    "gradient a number": (own(3), r"model\.gradient", "got int"),
    "gradient of five arguments": (own(gradient_of_five), r"model\.gradient", "argument"),
    "gradient that returns": (own(gradient_that_returns), r"model\.gradient", "float64"),
    "gradient that does not compile": (own(gradient_of_matrices), r"model\.gradient", "numba says"),
    # descent
    "step_size 0": (lambda: descend(step_size=0.0), "step_size", "0.0"),
    "step_size negative": (lambda: descend(step_size=-0.1), "step_size", "-0.1"),
    "step_size inf": (lambda: descend(step_size=INF), "step_size", "inf"),
    "n_steps 0": (lambda: descend(n_steps=0), "n_steps", "0"),
    "n_steps fraction": (lambda: descend(n_steps=2.5), "n_steps", "2.5"),
    "save_every 0": (lambda: descend(save_every=0), "save_every", "0"),
    "descent theta0": (lambda: descend(theta0=[1.0]), "theta0", r"\(1,\)"),
    "descent stop": (lambda: descend(stop="no"), "stop", "'no'"),
    "descent observe": (lambda: descend(observe="nothing"), "observe", "'nothing'"),
    "descent start of other step_size": (
        lambda: descend(theta0=None, step_size=0.2, n_steps=9, start=descend()), "step_size", "0.2"),
    "descent start beyond n_steps": (
        lambda: descend(theta0=None, n_steps=3, start=descend()), "n_steps", "3"),
    "descent start of flow": (
        lambda: descend(theta0=None, n_steps=9, start=flow()), "step_size|start", "flow|None"),
    "step_size of other length": (lambda: descend(step_size=[0.1, 0.2]), "step_size", r"\(2,\)"),
    "step_size with a zero": (lambda: descend(step_size=[0.1, 0.0, 0.1]), "step_size", r"step_size\[1\] is 0"),
    "step_size text": (lambda: descend(step_size="small"), "step_size", "'small'"),
    "step_size that returns NaN": (lambda: descend(step_size=lambda k: NAN), "step_size", r"\(0\).*nan"),
    "optimizer unknown": (lambda: descend(optimizer="sgd"), "optimizer", "'sgd'"),
    "momentum without it": (lambda: descend(momentum=0.9), "momentum", "'gd'.*0.9"),
    "momentum 1": (lambda: descend(optimizer="momentum", momentum=1.0), "momentum", "1.0"),
    "betas of momentum": (lambda: descend(optimizer="momentum", betas=(0.9, 0.9)), "betas", "'momentum'"),
    "betas of one": (lambda: descend(optimizer="adam", betas=0.9), "betas", "0.9"),
    "betas of 1": (lambda: descend(optimizer="adam", betas=(0.9, 1.0)), r"betas\[1\]", "1.0"),
    "eps 0": (lambda: descend(optimizer="adam", eps=0.0), "eps", "0.0"),
    "batch_size 0": (lambda: descend(batch_size=0), "batch_size", "0"),
    "batch_size above n": (lambda: descend(batch_size=5), "batch_size", "4; got 5"),
    "batch_size of factorization": (
        lambda: descend(model=SCALAR, problem=UNIT, theta0=[1.0, 1.0], batch_size=1), "batch_size",
        "'factorization'"),
    "batch_size of completion": (
        lambda: descend(problem=gflow.Problem.completion(np.ones((2, 3)), MASK), batch_size=1), "batch_size",
        "'completion'.*sensing"),
    "batch_size of one's own model": (
        lambda: gflow.descend(Own(good_gradient), None, [1.0, 2.0], 0.1, 3, batch_size=1), "batch_size", "Own"),
    "replacement text": (lambda: descend(batch_size=2, replacement="no"), "replacement", "'no'"),
    "rng of descent": (lambda: descend(batch_size=2, rng=-1), "rng", "-1"),
    "kink of a linear network": (lambda: descend(kink=0.0), "kink", "DeepLinear"),
    "kink below the slope": (lambda: relu_descend(kink=0.1), "kink", "0.1"),
    "kink above 1": (lambda: relu_descend(kink=1.5), "kink", "1.5"),
    "descent start of another optimizer": (
        lambda: descend(theta0=None, n_steps=9, start=descend(), optimizer="adam"), "optimizer", "'adam'"),
    "descent start of another seed": (
        lambda: descend(theta0=None, n_steps=9, start=descend(batch_size=2, rng=1), rng=2), "rng", "2"),
    "descent start of another schedule": (
        lambda: descend(theta0=None, n_steps=4, start=descend(), step_size=[0.1, 0.2, 0.1, 0.1]), "step_size",
        "step 1; got 0.2"),
    # ensembles
    "thetas of one axis": (lambda: many(thetas=THETA0), "thetas", r"\(10,\)"),
    "thetas of other length": (lambda: many(thetas=np.ones((3, 4))), "thetas", r"\(3, 4\)"),
    "thetas of NaN": (lambda: many(thetas=broken(np.ones((3, 10)), NAN)), "thetas", r"thetas\[0, 1\] is nan"),
    "thetas of none": (lambda: many(thetas=np.ones((0, 10))), "thetas", r"\(0, 10\)"),
    "ensemble without t": (lambda: many(t=None), "t", "step_size"),
    "ensemble of both": (lambda: many(step_size=0.1, n_steps=3), "t", "step_size"),
    "ensemble t": (lambda: many(t=-1.0), "t", "-1"),
    "ensemble rtol": (lambda: many(rtol=2.0), "rtol", "2.0"),
    "ensemble method": (lambda: many(method="rk4"), "method", "'rk4'"),
    "ensemble atol of other length": (lambda: many(atol=[1e-9, 1e-9]), "atol", r"\(2,\)"),
    "ensemble atol 0": (lambda: many(atol=[1e-9, 0.0, 1e-9]), "atol", r"atol\[1\] is 0"),
    "ensemble events": (lambda: many(events=1), "events", "1"),
    "ensemble jobs": (lambda: many(jobs=0), "jobs", "0"),
    "ensemble observe": (lambda: many(observe="nothing"), "observe", "'nothing'"),
    "ensemble of an unknown option": (lambda: many(dense=True), "dense", "ensemble"),
    "ensemble of flows with n_steps": (lambda: many(n_steps=3), "n_steps", "flows"),
    "ensemble of flows with momentum": (lambda: many(momentum=0.9), "momentum", "flows"),
    "ensemble of descents with rtol": (lambda: many(t=None, step_size=0.1, n_steps=3, rtol=1e-3), "rtol", "descents"),
    "ensemble of descents without n_steps": (lambda: many(t=None, step_size=0.1), "n_steps", "None"),
    "ensemble step_size 0": (
        lambda: many(t=None, step_size=[0.1, 0.0, 0.1], n_steps=3), "step_size", "0"),
    "ensemble step_size of other length": (
        lambda: many(t=None, step_size=[0.1, 0.1], n_steps=3), "step_size", "3 runs; got 2"),
    "ensemble schedule of other length": (
        lambda: many(t=None, step_size=np.ones((3, 2)), n_steps=3), "step_size", r"\(3, 2\)"),
    "ensemble rng of other length": (
        lambda: many(t=None, step_size=0.1, n_steps=3, batch_size=2, rng=[1, 2]), "rng", "3 runs; got 2"),
    "ensemble rng negative": (
        lambda: many(t=None, step_size=0.1, n_steps=3, batch_size=2, rng=[1, 2, -3]), "rng", "-3"),
    "ensemble neuron at zero": (
        lambda: gflow.ensemble(gflow.TwoLayerReLU(3, 2, 2), PROBLEM, np.zeros((1, 10)), 1.0), "thetas",
        "w_0 of run 0"),
    # functions of states
    "effective_ranks of a vector": (lambda: gflow.observe.effective_ranks([1.0]), "matrix", r"\(1,\)"),
    "ntk of other inputs": (
        lambda: gflow.observe.ntk(MODEL, PROBLEM, THETA0, X=np.ones((2, 2))), "X", r"\(2, 2\)"),
    "sharpness of other theta": (lambda: gflow.observe.sharpness(MODEL, PROBLEM, [1.0]), "theta", r"\(1,\)"),
    "eigenvalues of 0": (
        lambda: gflow.observe.hessian_eigenvalues(MODEL, PROBLEM, THETA0, k=0), "k", "0"),
    "mode_strengths of completion": (
        lambda: gflow.observe.mode_strengths(MODEL, gflow.Problem.completion(M, MASK), THETA0),
        "target", "'regression' or 'factorization'.*'completion'"),
    "compare a number": (lambda: gflow.compare(3, None), "trajectory", "int"),
    "compare with a number": (lambda: gflow.compare(flow(), 3), "prediction", "int"),
    "along a number": (lambda: gflow.observe.along(3, "loss"), "trajectory", "int"),
    "along no observable": (lambda: gflow.observe.along(flow(), 3), "observable", "3"),
    "along an unknown observable": (lambda: gflow.observe.along(flow(), "los"), "observable", "'los'"),
    "check a number": (lambda: gflow.check(3), "claim", "int"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "came"), CASES.values(), ids=CASES)
def test_it_is_refused_by_name(call, argument, came):
    with pytest.raises(ValueError, match=rf"(?s)^(?=.*\b(?:{argument})).*{came}") as caught:
        call()
    assert len(str(caught.value)) > 20


def test_all_but_the_wrong_ones_are_accepted():
    """The cases fail for what they change, not for what they have in common."""
    assert flow().status.code == descend().status.code == many().status.code == "finished"
    assert continued().status.code == "finished"
    assert gflow.flow(Own(good_gradient), None, [1.0, 2.0], 1.0).status.ok
    (
        gflow.Problem.sensing(A, y),
        gflow.Problem.completion(broken(M, NAN), MASK),
        gflow.Problem.factorization(M),
    )
    assert gflow.Problem(X, np.ones(4)).outputs == 1
    assert flow(t=np.float32(1.0), rtol=np.float64(1e-6), max_steps=np.int64(100)).status.ok
    assert flow(theta0=list(THETA0), t=range(3), observe=("loss",)).status.ok


def test_nothing_has_run_when_the_last_argument_is_wrong():
    asked = []
    with pytest.raises(ValueError, match="rtol"):
        flow(observe=lambda *a: asked.append(a), stop=lambda *a: asked.append(a), rtol=2.0)
    assert asked == []


def test_what_does_not_fit_into_memory_is_refused():
    with pytest.raises(ValueError, match=r"save_every asks for .* GB"):
        descend(n_steps=10**14)


@pytest.mark.parametrize("lacking", ["size", "gradient", "kernel_arguments"])
def test_a_model_without_a_needed_name(lacking):
    names = {"size": 1, "gradient": good_gradient, "kernel_arguments": lambda self, problem: ([], [], 0)}
    del names[lacking]
    with pytest.raises(ValueError, match=f"model must have '{lacking}'; Lacking has not"):
        gflow.flow(type("Lacking", (), names)(), None, [1.0], 1.0)


def test_unknown_names_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'flo'"):
        gflow.flo  # noqa: B018
    assert {"flow", "descend", "Problem", "observe"} <= set(dir(gflow))


def test_numbers_that_equal_right_settings_are_not_taken_for_them():
    """True == 1 == 1.0."""
    flow(events=True, dense=False, max_steps=1)
    for name, value in (("events", 1), ("dense", 0), ("dense", 0.0), ("max_steps", True), ("max_steps", 1.0)):
        with pytest.raises(ValueError, match=name):
            flow(**{name: value})
    with pytest.raises(ValueError, match="rtol"):
        flow(rtol=[1e-9])
