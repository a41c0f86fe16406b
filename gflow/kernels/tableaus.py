"""Coefficients of the explicit Runge-Kutta pairs, as arrays for the compiled loop.

Tsit5: Ch. Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
assumption, Computers & Mathematics with Applications 62 (2011) 770-775, with its free interpolant.

DOP853: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I (2nd ed.,
Springer 1993), II.10: order 8, error estimate from orders 5 and 3, interpolant of order 7.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_STAGES = 16


class Tableau(NamedTuple):
    """A pair with an interpolant; rows of coefficients are stored without their zeros.

    Row r of ``source`` and ``weight`` holds ``terms[r]`` pairs (stage, coefficient).  Rows 0 ... S - 1
    give the S stages of a step, row 0 being f at its start and row S - 1 f at its end (the solution,
    reused as the next row 0); rows S ... S + E - 1 give the extra stages of the interpolant; the last
    two rows give the error estimates of higher and lower order.
    """

    node: Floats  # (S + E,)
    source: Ints  # (S + E + 2, MAX_STAGES)
    weight: Floats
    terms: Ints  # (S + E + 2,)
    interpolant: Floats  # (S + E, degree): coefficients of x, x^2, ... in the weight of each stage
    sizes: Ints  # S, E, exponent of the error in h, order of the solution
    probe: Floats  # (1,): the part of a step where the interpolant departs most from the flow, see ``explicit.obeys``
    every: Ints  # (1, S + E): 0, 1, 2, ..., the stages of the interpolant


_TSIT5_NODES = [0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0]
_TSIT5_STAGES = [
    [],
    [0.161],
    [-0.008480655492356989, 0.335480655492357],
    [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
    [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
    [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
    [0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774],
]
_TSIT5_ERROR = [
    -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
    0.5823571654525552, -0.45808210592918697, 0.015151515151515152,
]  # fmt: skip


def _tsit5_interpolant() -> list[list[float]]:
    """Coefficients of x, x^2, x^3, x^4 in the weight of each stage, from the published factors."""
    poly = np.polynomial.polynomial.polymul
    factors = [
        (-1.0530884977290216, [0.0, 1.0], [-1.3299890189751412, 1.0],
         [0.7139816917074209, -1.4364028541716351, 1.0]),
        (0.1017, [0.0, 0.0, 1.0], [1.2949852507374631, -2.1966568338249754, 1.0]),
        (2.490627285651252793, [0.0, 0.0, 1.0], [1.57803468208092486, -2.38535645472061657, 1.0]),
        (-16.54810288924490272, [0.0, 0.0, 1.0], [-1.21712927295533244, 1.0], [-0.61620406037800089, 1.0]),
        (47.37952196281928122, [0.0, 0.0, 1.0], [-1.203071208372362603, 1.0], [-0.658047292653547382, 1.0]),
        (-34.87065786149660974, [0.0, 0.0, 1.0], [-1.2, 1.0], [-0.666666666666666667, 1.0]),
        (2.5, [0.0, 0.0, 1.0], [-1.0, 1.0], [-0.6, 1.0]),
    ]  # fmt: skip
    rows = []
    for scale, *parts in factors:
        row = np.array([scale])
        for part in parts:
            row = poly(row, part)
        rows.append(list(row[1:]))
    return rows


_DOP853_NODES = [
    0.0, 0.05260015195876773, 0.0789002279381516, 0.1183503419072274, 0.2816496580927726,
    0.3333333333333333, 0.25, 0.3076923076923077, 0.6512820512820513, 0.6, 0.8571428571428571, 1.0, 1.0,
    0.1, 0.2, 0.7777777777777778,
]  # fmt: skip
_DOP853_STAGES = [
    [],
    [0.05260015195876773],
    [0.0197250569845379, 0.0591751709536137],
    [0.02958758547680685, 0.0, 0.08876275643042054],
    [0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792],
    [0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242],
    [0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125],
    [
        0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328, -0.015319437748624402,
        0.008273789163814023,
    ],
    [
        0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726, 27.59209969944671,
        20.154067550477894, -43.48988418106996,
    ],
    [
        0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843, 21.230051448181193,
        15.279233632882423, -33.28821096898486, -0.020331201708508627,
    ],
    [
        -0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295, -8.149787010746927,
        -18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196,
    ],
    [
        2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188,
        27.94888452941996, -2.8589982771350235, -8.87285693353063, 12.360567175794303, 0.6433927460157636,
    ],
    [
        0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003,
        -5.801203960010585, 0.3111643669578199, -0.1521609496625161, 0.20136540080403034,
        0.04471061572777259,
    ],
    [
        0.056167502283047954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25350021021662483, -0.2462390374708025,
        -0.12419142326381637, 0.15329179827876568, 0.00820105229563469, 0.007567897660545699, -0.008298,
    ],
    [
        0.03183464816350214, 0.0, 0.0, 0.0, 0.0, 0.028300909672366776, 0.053541988307438566,
        -0.05492374857139099, 0.0, 0.0, -0.00010834732869724932, 0.0003825710908356584,
        -0.00034046500868740456, 0.1413124436746325,
    ],
    [
        -0.42889630158379194, 0.0, 0.0, 0.0, 0.0, -4.697621415361164, 7.683421196062599, 4.06898981839711,
        0.3567271874552811, 0.0, 0.0, 0.0, -0.0013990241651590145, 2.9475147891527724, -9.15095847217987,
    ],
]  # fmt: skip
_DOP853_ERROR_5 = [
    0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502, 1.6643771824549864,
    -0.35032884874997366, 0.3341791187130175, 0.08192320648511571, -0.022355307863886294, 0.0,
]  # fmt: skip
_DOP853_ERROR_3 = [
    -0.18980075407240762, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585,
    -0.4226823213237919, -0.1521609496625161, 0.20136540080403034, 0.02265179219836082, 0.0,
]  # fmt: skip
# Rows of the interpolant's divided differences in its last four coefficients.
_DOP853_DENSE = [
    [
        -8.428938276109013, 0.0, 0.0, 0.0, 0.0, 0.5667149535193777, -3.0689499459498917, 2.38466765651207,
        2.117034582445028, -0.871391583777973, 2.2404374302607883, 0.6315787787694688,
        -0.08899033645133331, 18.148505520854727, -9.194632392478356, -4.436036387594894,
    ],
    [
        10.427508642579134, 0.0, 0.0, 0.0, 0.0, 242.28349177525817, 165.20045171727028,
        -374.5467547226902, -22.113666853125306, 7.733432668472264, -30.674084731089398,
        -9.332130526430229, 15.697238121770845, -31.139403219565178, -9.35292435884448, 35.81684148639408,
    ],
    [
        19.985053242002433, 0.0, 0.0, 0.0, 0.0, -387.0373087493518, -189.17813819516758,
        527.8081592054236, -11.57390253995963, 6.8812326946963, -1.0006050966910838, 0.7777137798053443,
        -2.778205752353508, -60.19669523126412, 84.32040550667716, 11.99229113618279,
    ],
    [
        -25.69393346270375, 0.0, 0.0, 0.0, 0.0, -154.18974869023643, -231.5293791760455,
        357.6391179106141, 93.40532418362432, -37.45832313645163, 104.0996495089623, 29.8402934266605,
        -43.53345659001114, 96.32455395918828, -39.17726167561544, -149.72683625798564,
    ],
]  # fmt: skip


def _dop853_interpolant() -> list[list[float]]:
    """Coefficients of x, ..., x^7 in the weight of each stage.

    Hairer's interpolant is y + x (F1 + (1 - x) (F2 + x (F3 + (1 - x) (F4 + ...)))), where F1 is the step's
    increment, F2 = h f_old - F1, F3 = 2 F1 - h (f_old + f_new), and F4 ... F7 come from the table.
    """
    polynomial = np.polynomial.polynomial
    stages, last = len(_DOP853_STAGES), 12
    increment = np.zeros(stages)
    increment[: len(_DOP853_STAGES[last])] = _DOP853_STAGES[last]
    old, new = np.eye(stages)[0], np.eye(stages)[last]
    f = np.array([increment, old - increment, 2 * increment - old - new, *np.zeros((4, stages))])
    for row, values in enumerate(_DOP853_DENSE):
        f[3 + row, : len(values)] = values
    basis, term = np.zeros((len(f), 8)), np.array([1.0])
    for j in range(len(f)):
        term = polynomial.polymul(term, [0.0, 1.0] if j % 2 == 0 else [1.0, -1.0])
        basis[j, : len(term)] = term
    return (f.T @ basis[:, 1:]).tolist()


def _pack(
    nodes: list[float],
    stages: list[list[float]],
    errors: tuple[list[float], list[float]],
    interpolant: list[list[float]],
    extra: int,
    error_exponent: int,
    order: int,
    probe: float,
) -> Tableau:
    rows = [*stages, *errors]
    index = np.zeros((len(rows), MAX_STAGES), dtype=np.int64)
    weight, count = np.zeros((len(rows), MAX_STAGES)), np.zeros(len(rows), dtype=np.int64)
    for r, row in enumerate(rows):
        used = [j for j, x in enumerate(row) if x != 0.0]
        count[r] = len(used)
        index[r, : len(used)] = used
        weight[r, : len(used)] = [row[j] for j in used]
    sizes = np.array([len(stages) - extra, extra, error_exponent, order], dtype=np.int64)
    every = np.arange(len(stages))[None]
    return Tableau(
        np.array(nodes), index, weight, count, np.array(interpolant), sizes, np.array([probe]), every
    )


@cache
def tsit5() -> Tableau:
    """Order 5(4), six gradients a step, interpolant of order 4."""
    return _pack(_TSIT5_NODES, _TSIT5_STAGES, (_TSIT5_ERROR, []), _tsit5_interpolant(), 0, 5, 5, 0.5)


@cache
def dop853() -> Tableau:
    """Order 8(5, 3), twelve gradients a step, three more for the interpolant of order 7."""
    return _pack(
        _DOP853_NODES,
        _DOP853_STAGES,
        (_DOP853_ERROR_5, _DOP853_ERROR_3),
        _dop853_interpolant(),
        3,
        8,
        8,
        0.94,
    )
