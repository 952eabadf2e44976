"""Intervals and tests for counts of solved problems, as src/pmkvq/eval/statistics.h defines them."""
import math

Z95 = 1.959963984540054


def wilson(successes, trials):
    """95 % score interval of a proportion."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, Z95 * Z95
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(only_a, only_b):
    """Two-sided P of as uneven a split of the discordant pairs under a fair coin."""
    n, k = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def paired_difference(both, only_a, only_b, neither):
    """95 % interval of p_a - p_b over paired outcomes: Newcombe's method 10."""
    n = both + only_a + only_b + neither
    a, b = both + only_a, both + only_b
    p_a, p_b = a / n, b / n
    (low_a, high_a), (low_b, high_b) = wilson(a, n), wilson(b, n)
    margins = a * (n - a) * b * (n - b)
    determinant = both * neither - only_a * only_b
    if margins == 0:
        phi = 0.0
    else:
        # Continuity corrected where the pairs agree more often than chance.
        corrected = max(determinant - n / 2, 0.0) if determinant > 0 else float(determinant)
        phi = corrected / math.sqrt(margins)
    down = (p_a - low_a)**2 - 2 * phi * (p_a - low_a) * (high_b - p_b) + (high_b - p_b)**2
    up = (high_a - p_a)**2 - 2 * phi * (high_a - p_a) * (p_b - low_b) + (p_b - low_b)**2
    difference = p_a - p_b
    return difference - math.sqrt(max(down, 0.0)), difference + math.sqrt(max(up, 0.0))
