"""Lesson 16: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def power_law(sizes, losses, floor):
    """A and a of losses = floor + A / sizes**a, by least squares in the logarithms; sizes and losses (n,)."""
    x, y = np.log(sizes), np.log(losses - floor)
    dx, dy = x - x.mean(), y - y.mean()
    a = -(dx * dy).sum() / (dx * dx).sum()
    A = np.exp(y.mean() + a * x.mean())
    return A, a


def flops_per_token(parameters, vocab, dim, layers, seq_len):
    """FLOP to train on one token, (n,), for n lengths of context seq_len (n,); parameters counts all, the embedding too."""
    matrices = parameters - vocab * dim
    pairs = seq_len / 2
    attention = layers * (4 * pairs * dim)
    forward = 2 * matrices + attention
    return 3 * forward


def fit_floor(sizes, losses, floors):
    """errors (k,) of the best lines for each E of floors (k,), and of these lines the best: its E, A and a; sizes and losses (n,)."""
    x, errors, lines = np.log(sizes), [], []
    for E in floors:
        slope, start = np.polyfit(x, np.log(losses - E), 1)
        fitted = E + np.exp(start + slope * x)
        errors.append(np.sqrt(((losses - fitted) ** 2).mean()))
        lines.append((np.exp(start), -slope))
    best = np.argmin(errors)
    A, a = lines[best]
    return np.array(errors), floors[best], A, a


def compute_optimal(flops, A, a, B, b):
    """The N and D (n,) with the least A / N**a + B / D**b of all that cost 6 N D = flops (n,)."""
    G = (a * A / (b * B)) ** (1 / (a + b))
    N = G * (flops / 6) ** (b / (a + b))
    D = flops / (6 * N)
    return N, D


def _points(rng, noise):
    """Sizes, their losses, and the floor under them."""
    floor, A, a = rng.uniform([0.4, 2, 0.4], [0.9, 4, 0.8])
    sizes = np.sort(rng.uniform(2, 60, 6))
    return sizes, floor + A * sizes**-a * np.exp(noise * rng.standard_normal(6)), floor


def _law_inputs(rng):
    return _points(rng, 0.1)


def _flops_inputs(rng):
    return int(rng.integers(50, 70)), 5, 3, int(rng.integers(2, 4)), np.array([2.0, 4.0, 7.0, 11.0])


def _flops_terms(parameters, vocab, dim, layers, seq_len):
    one = np.ones(len(seq_len))
    return {"flops": {"the number of matrix entries": ((parameters - vocab * dim) * one, 6), "L T D": (layers * seq_len * dim * one, 6)}}


def _floor_inputs(rng):
    sizes, losses, floor = _points(rng, 0.02)
    return sizes, losses, np.linspace(-2, floor + 0.12, 22)


def _optimal_inputs(rng):
    return rng.uniform(100, 900, 3), *rng.uniform([2, 0.3, 4, 0.5], [3, 0.45, 6, 0.7])


SLOPE = "-(dx * dy).sum() / (dx * dx).sum()"

EXERCISES = {
    "16.power_law": Exercise(
        power_law, ("A", "a"), _law_inputs,
        (
            Mistake("loss-for-excess", "np.log(losses - floor)", "np.log(losses + 0 * floor)",
                    "the line is fitted to the loss; (16.2) is a line in the excess, the loss less its floor"),
            Mistake("sign-of-the-slope", "a = -(dx", "a = (dx", "a is the slope itself; it is the slope with its sign turned, since the line of (16.2) goes down"),
            Mistake("not-exponentiated", "np.exp(y.mean() + a * x.mean())", "y.mean() + a * x.mean()", "what is called A is the height of the line, and this is ln A (16.2): np.exp of it is A"),
            Mistake("log10-of-one", "np.log(sizes)", "np.log10(sizes)", "the sizes have another base of logarithm than the excess: the slope is then 2.3 times too steep (16.2)"),
            Mistake("log10-then-exp", ("np.log(sizes)", "np.log(losses - floor)"), ("np.log10(sizes)", "np.log10(losses - floor)"),
                    "both logarithms have base 10 and A comes from np.exp: the base must be the same on the way back (16.2)"),
            Mistake("axes-exchanged", "/ (dx * dx).sum()", "/ (dy * dy).sum()", "the squares in the denominator of (16.4) are those of y: that is the line of x over y, turned"),
            Mistake("not-centred", SLOPE, "-(x * y).sum() / (x * x).sum()", "x and y are taken without their means in (16.4): that line is made to go through (0, 0)"),
            Mistake("two-ends", SLOPE, "-(y[-1] - y[0]) / (x[-1] - x[0])", "the slope is that of the first and the last point alone; (16.4) asks all of them"),
            Mistake("only-one-log", "x, y = np.log(sizes)", "x, y = np.asarray(sizes)", "the sizes have no logarithm: a line in these axes is an exponential law, not (16.1)"),
            Mistake("minus-in-the-height", "y.mean() + a", "y.mean() - a", "a times the mean of x is subtracted: the line goes down from x = 0 to the mean of x, so the height at 0 is above (16.3)"),
            Mistake("weighted", "dx, dy = x - x.mean(), y - y.mean()", "w = losses - floor\n    dx, dy = w * (x - x.mean()), w * (y - y.mean())",
                    "the points have weights, their excess: then the smallest models decide, and (16.4) lets every point count once"),
        ),
    ),
    "16.flops_per_token": Exercise(
        flops_per_token, ("flops",), _flops_inputs,
        (
            Mistake("forward-only", "3 * forward", "forward + 0", "only the forward pass is counted; backward costs twice as much again (16.6)"),
            Mistake("backward-once", "3 * forward", "2 * forward", "backward is counted like forward; it multiplies by both operands of every product, so it costs twice as much (16.6)"),
            Mistake("embedding-multiplied", "parameters - vocab * dim", "parameters - 0 * vocab * dim", "the embedding is counted as a product; it is a lookup and costs no arithmetic (16.5)"),
            Mistake("head-left-out", "parameters - vocab * dim", "parameters - 2 * vocab * dim", "the output head is taken out with the embedding; it is a real product, of D by V (16.5)"),
            Mistake("one-per-entry", "2 * matrices", "matrices", "a matrix entry counts once; it is one multiply and one add (16.5)"),
            Mistake("all-pairs", "seq_len / 2", "seq_len / 1", "attention reads all T tokens; by the causal mask a token sees half of them on average (16.5)"),
            Mistake("no-layers", "layers * (4 * pairs * dim)", "4 * pairs * dim + 0 * layers", "attention is counted in one layer only; each of the L has its own (16.5)"),
            Mistake("scores-only", "4 * pairs", "2 * pairs", "attention is q kᵀ alone; probabilities times v cost the same again (16.5)"),
            Mistake("attention-forgotten", "2 * matrices + attention", "2 * matrices + 0 * attention", "attention's own products are left out: 6 N is only the matrices' part (16.6)"),
            Mistake("attention-forward-only", ("2 * matrices + attention", "3 * forward"), ("2 * matrices", "3 * forward + attention"), "attention is counted forward only; it has a backward, too (16.6)"),
            Mistake("of-a-whole-row", "4 * pairs * dim", "4 * pairs * dim * seq_len", "attention is that of a whole row of T tokens; (16.5) is for one token"),
        ),
        _flops_terms,
    ),
    "16.fit_floor": Exercise(
        fit_floor, ("errors", "E", "A", "a"), _floor_inputs,
        (
            Mistake("floor-not-taken-off", "np.log(losses - E)", "np.log(losses)", "the line is fitted to the loss; it belongs to losses - E (16.2)"),
            Mistake("floor-not-put-back", "fitted = E + ", "fitted = 0 * E + ", "what is compared with the losses is the excess alone; E must be added again (16.1)"),
            Mistake("error-of-logarithms", "losses - fitted", "np.log(losses - E) - np.log(fitted - E)",
                    "the errors are those of the line, in logarithms of the excess: they shrink when E moves away from all losses, right or wrong. (16.7) compares losses"),
            Mistake("relative-error", "losses - fitted", "np.log(losses) - np.log(fitted)", "the errors are those of ln(loss), as Hoffmann et al. have them; (16.7) compares losses"),
            Mistake("absolute-error", "np.sqrt(((losses - fitted) ** 2).mean())", "np.abs(losses - fitted).mean()", "the errors are not squared (16.7)"),
            Mistake("signed-error", "np.sqrt(((losses - fitted) ** 2).mean())", "np.abs((losses - fitted).mean())", "errors of both signs cancel: they must be squared before they are added (16.7)"),
            Mistake("sum-for-mean", "(losses - fitted) ** 2).mean()", "(losses - fitted) ** 2).sum()", "the squares are summed where (16.7) takes their mean; the best E is the same"),
            Mistake("root-missing", "np.sqrt(((losses - fitted) ** 2).mean())", "((losses - fitted) ** 2).mean()", "the root of (16.7) is missing; the best E is the same, but an error in nats/token says more"),
            Mistake("the-worst", "np.argmin", "np.argmax", "the E with the largest error is kept (16.7)"),
            Mistake("the-last", "np.argmin(errors)", "len(errors) - 1", "the last E is kept, whatever its error; the best must be (16.7)"),
            Mistake("not-exponentiated", "(np.exp(start), -slope)", "(start, -slope)", "what is called A is the height of the line, and this is ln A (16.2): np.exp of it is A"),
            Mistake("sign-of-the-slope", "(np.exp(start), -slope)", "(np.exp(start), slope)", "a is the slope itself; it is the slope with its sign turned, since the line of (16.2) goes down"),
            Mistake("log10-of-one", "np.log(sizes)", "np.log10(sizes)", "the sizes have another base of logarithm than the excess: the slope is then 2.3 times too steep (16.2)"),
        ),
    ),
    "16.compute_optimal": Exercise(
        compute_optimal, ("N", "D"), _optimal_inputs,
        (
            Mistake("exponents-exchanged", "(b / (a + b))", "(a / (a + b))", "a stands in the exponent of N where b must (16.11): the steeper the law of the tokens, the more goes into parameters"),
            Mistake("half-each", "b / (a + b)", "0.5", "N grows with the root of the compute; that is so for a = b only (16.11)"),
            Mistake("root-of-the-budget", "G * (flops / 6) ** (b / (a + b))", "np.sqrt(flops / 6)", "N is the root of C/6, and D as well: the law says how much each of them is worth, by G and the exponents (16.11)"),
            Mistake("upside-down", "a * A / (b * B)", "b * B / (a * A)", "G is upside down (16.11): the more the parameters matter, the more of them"),
            Mistake("factors-of-the-slope", "a * A / (b * B)", "A / B", "the factors a and b that come down in the derivative are left out of G (16.10)"),
            Mistake("root-of-G-forgotten", " ** (1 / (a + b))", "", "G has lost its exponent 1/(a + b) (16.11)"),
            Mistake("without-the-6", ("flops / 6)", "flops / (6 * N)"), ("flops)", "flops / N"), "the cost is N D; a token costs 6 FLOP a parameter (16.9)"),
            Mistake("forward-only", ("flops / 6)", "flops / (6 * N)"), ("flops / 2)", "flops / (2 * N)"), "the cost is 2 N D, which is forward only; training costs 6 N D (16.9)"),
            Mistake("D-without-the-6", "flops / (6 * N)", "flops / N", "D is C/N; the 6 of (16.9) is missing"),
            Mistake("D-by-N's-power", "flops / (6 * N)", "G * (flops / 6) ** (a / (a + b))", "D has G in front; it is 1/G there, or their product would not be C/6 (16.11)"),
            Mistake("20-tokens", "flops / (6 * N)", "20 * N + 0 * flops", "D is 20 tokens a parameter: a rule of thumb for one law and one budget, and then 6 N D is not C (16.9)"),
        ),
    ),
}
