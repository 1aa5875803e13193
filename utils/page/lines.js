// The numbers behind the curves: averages, common steps, ranges and ticks. Nothing here touches the page.

/** @typedef {{name: string, first_step: number, last_step: number}} Stage */
/** @typedef {{name: string, status: string | null, step: number, planned_steps: number | null,
 *    stages: Stage[]}} RunInfo */
/** @typedef {(number | null)[]} Values */
/** @typedef {{run: number, kind: string, steps: number[], values: Values, low: Values | null, high: Values | null,
 *    means?: Values | null, thinned: {from: number, kept: number} | null}} Line */
/** @typedef {{key: string, title: string, unit: string, group: string, note: string, lines: Line[]}} Chart */

/** The index of the value nearest to `wanted` in a sorted list. @param {number[]} sorted @param {number} wanted */
function nearest(sorted, wanted) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low > 0 && wanted - sorted[low - 1] <= sorted[low] - wanted ? low - 1 : low;
}

/** Where each stage begins and ends in the steps of a line. @param {number[]} steps @param {Stage[]} stages */
function segments(steps, stages) {
  const cuts = stages
    .slice(1)
    .map((stage) => steps.findIndex((step) => step >= stage.first_step))
    .filter((at) => at > 0);
  const bounds = [...new Set([0, ...cuts, steps.length])].sort((a, b) => a - b);
  return bounds.slice(1).map((end, index) => [bounds[index], end]);
}

/**
 * Centered moving average, stage by stage, over `share` of the stage's points; gaps stay gaps and count for nothing.
 * @param {Values} values @param {number[][]} parts @param {number} share @returns {Values}
 */
function smoothed(values, parts, share) {
  const result = values.slice();
  for (const [first, end] of parts) {
    const reach = Math.round((share * (end - first)) / 2);
    if (reach < 1) continue;
    const sums = [0];
    const counts = [0];
    for (let index = first; index < end; index++) {
      sums.push(sums[index - first] + (values[index] ?? 0));
      counts.push(counts[index - first] + (values[index] === null ? 0 : 1));
    }
    for (let index = first; index < end; index++) {
      const from = Math.max(first, index - reach) - first;
      const to = Math.min(end, index + reach + 1) - first;
      if (values[index] !== null) result[index] = (sums[to] - sums[from]) / (counts[to] - counts[from]);
    }
  }
  return result;
}

/** All steps of these lines, and half a step before each later stage, where the curves break.
 * @param {Line[]} lines @param {RunInfo[]} runs */
function commonSteps(lines, runs) {
  const steps = new Set(lines.flatMap((line) => line.steps));
  for (const line of lines) for (const at of breaks(line, runs[line.run].stages)) steps.add(at);
  return [...steps].sort((a, b) => a - b);
}

/** @param {Line} line @param {Stage[]} stages */
function breaks(line, stages) {
  const [first, last] = [line.steps[0], line.steps[line.steps.length - 1]];
  return line.kind === "value"
    ? stages
        .slice(1)
        .map((stage) => stage.first_step - 0.5)
        .filter((at) => first < at && at < last)
    : [];
}

/**
 * Values laid on the common steps: undefined where the line has none, null where it breaks.
 * @param {Values} values @param {Line} line @param {Map<number, number>} places @param {Stage[]} stages
 */
function laid(values, line, places, stages) {
  const result = new Array(places.size);
  line.steps.forEach((step, index) => {
    result[/** @type {number} */ (places.get(step))] = values[index];
  });
  for (const at of breaks(line, stages)) result[/** @type {number} */ (places.get(at))] = null;
  return result;
}

/** Mean of the last tenth of what was logged. @param {Values} values */
function latest(values) {
  const known = /** @type {number[]} */ (values.filter((value) => value !== null));
  const last = known.slice(-Math.max(1, Math.round(known.length / 10)));
  return last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : null;
}

/** True where no value leaves 0 to 1. @param {Chart} chart */
function isBounded(chart) {
  if (chart.unit === "share") return true;
  return (
    chart.key.startsWith("rewards/") &&
    chart.lines.every((line) => line.values.every((value) => value === null || (value >= 0 && value <= 1)))
  );
}

/** The vertical range: all of 0 to 1 for what is bounded; else from 0, unless a high level would hide its own movement.
 * @param {Chart} chart @param {boolean} bounded @param {number} low @param {number} high @param {boolean} zoomed */
function yRange(chart, bounded, low, high, zoomed) {
  if (zoomed || (["reward", "loss/train"].includes(chart.key) && low > 0.3 * high)) {
    const margin = 0.08 * (high - low || Math.abs(high) || 1);
    return [low - margin, high + margin];
  }
  if (chart.key === "accuracy") return [Math.min(0.5, low) - 0.04, Math.max(0.7, high) + 0.04];
  if (bounded) return [0, 1.04];
  const [from, to] = [Math.min(low, 0), Math.max(high, 0)];
  return to > from ? [from, to + 0.06 * (to - from)] : [from, from + 1];
}

/**
 * Labels that tell ticks apart, with no more digits than that takes.
 * @param {(number | null)[]} values @param {string} unit
 */
function tickLabels(values, unit) {
  const known = /** @type {number[]} */ (values.filter((value) => value !== null));
  const largest = Math.max(...known.map(Math.abs), 0);
  const gap = Math.min(...known.slice(1).map((value, index) => value - known[index]), largest || 1);
  const by = unit === "share" ? 100 : 1;
  const places =
    [0, 1, 2, 3, 4, 5].find((count) => Math.abs(gap * by * 10 ** count - Math.round(gap * by * 10 ** count)) < 1e-6) ??
    6;
  const fixed = { minimumFractionDigits: places, maximumFractionDigits: places };
  return values.map((value) => {
    if (value === null) return "";
    if (unit === "share") return `${(100 * value).toLocaleString("en", fixed)}${NBSP}%`;
    if (value !== 0 && (unit === "rate" || largest < 1e-3 || largest >= 1e6)) return scientific(value);
    return value.toLocaleString("en", fixed).replace("-", MINUS);
  });
}
