// Order statistics of small samples.

/** Linear between the two nearest values. */
export function quantile(values, q) {
    const sorted = values.toSorted((a, b) => a - b);
    const at = q * (sorted.length - 1);
    const low = Math.floor(at);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

export const median = (values) => quantile(values, 0.5);

/** {median, p10, p90, min, max, count} */
export function spreadOf(values) {
    return {
        median: median(values), p10: quantile(values, 0.1), p90: quantile(values, 0.9),
        min: Math.min(...values), max: Math.max(...values), count: values.length
    };
}
