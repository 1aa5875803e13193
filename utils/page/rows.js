// The completions as a table in memory: taken up block by block, filtered and sorted in slices between which the page
// answers its reader.

const SLICE_MS = 12;

/** @typedef {{run: number, step: number, prompt: string, visible: string | null, hidden: string | null,
 *    completion?: string, failure: string | null, rewards: (number | null)[], total: number | null,
 *    cut: number | null}} Row */

const table = {
  /** @type {Row[]} */ rows: [],
  /** @type {string[]} */ rewards: [],
  /** @type {number[]} */ scales: [],
  /** @type {Map<string, number>} */ failures: new Map(),
  total: 0,
  loaded: false,
};

/** @param {{total: number, rewards: string[]}} about */
function emptyTable(about) {
  Object.assign(table, {
    rows: [],
    rewards: about.rewards,
    scales: about.rewards.map(() => 1),
    failures: new Map(),
    total: about.total,
    loaded: false,
  });
}

/** @param {Row[]} rows */
function takeUp(rows) {
  for (const row of rows) {
    table.rows.push(row);
    row.rewards.forEach((value, index) => {
      if (value !== null && value > table.scales[index]) table.scales[index] = value;
    });
    const reason = refusal(row);
    if (reason !== null) table.failures.set(reason, (table.failures.get(reason) ?? 0) + 1);
  }
}

/** Why the strict grammar refused a completion; null where it did not. @param {Row} row */
function refusal(row) {
  return row.failure ?? (row.visible === null || row.hidden === null ? "no parts" : null);
}

/** What a row is filtered or sorted by: its step, its total, or a reward. @param {Row} row @param {string} name */
function measure(row, name) {
  if (name === "step") return row.step;
  return name === "total" ? row.total : (row.rewards[table.rewards.indexOf(name)] ?? null);
}

/** @param {string} text */
const bound = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

/** The reader's filter as a function of a row. @param {State} wanted @returns {(row: Row) => boolean} */
function filterOf(wanted) {
  const [from, to, low, high] = [wanted.from, wanted.to, wanted.low, wanted.high].map(bound);
  const text = wanted.text ? new RegExp(wanted.text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i") : null;
  const fields = /** @type {(keyof Row)[]} */ (
    wanted.where === "any" ? ["prompt", "visible", "hidden", "completion"] : [wanted.where]
  );
  const reward = wanted.of === "total" ? -1 : table.rewards.indexOf(wanted.of);
  const run = wanted.run === "" ? null : Number(wanted.run);
  return (row) => {
    if (run !== null && row.run !== run) return false;
    if ((from !== null && row.step < from) || (to !== null && row.step > to)) return false;
    if (low !== null || high !== null) {
      const value = reward < 0 ? row.total : row.rewards[reward];
      if (value === null || value === undefined || (low !== null && value < low) || (high !== null && value > high))
        return false;
    }
    if (wanted.failure) {
      const reason = refusal(row);
      if (
        wanted.failure === "none"
          ? reason !== null
          : wanted.failure === "any"
            ? reason === null
            : `=${reason}` !== wanted.failure
      )
        return false;
    }
    return (
      text === null ||
      fields.some((field) => typeof row[field] === "string" && text.test(/** @type {string} */ (row[field])))
    );
  };
}

/**
 * The indexes of the rows that pass, in the order asked for; null when a newer question has come meanwhile.
 * @param {State} wanted @param {() => boolean} stale @returns {Promise<Uint32Array | null>}
 */
async function answer(wanted, stale) {
  const passes = filterOf(wanted);
  const found = new Uint32Array(table.rows.length);
  let count = 0;
  let until = performance.now() + SLICE_MS;
  for (let index = 0, end = found.length; index < end; index++) {
    if (passes(table.rows[index])) found[count++] = index;
    if (index % 64 === 63 && performance.now() > until) {
      await breathe();
      if (stale()) return null;
      until = performance.now() + SLICE_MS;
    }
  }
  return ordered(found.subarray(0, count), wanted);
}

/**
 * Sorted by what was asked for, unknown values last, equal ones as they were logged.
 * @param {Uint32Array} found @param {State} wanted
 */
function ordered(found, wanted) {
  const sign = wanted.order === "down" ? -1 : 1;
  const keys = new Float64Array(table.rows.length);
  for (const index of found) keys[index] = sign * (measure(table.rows[index], wanted.sort) ?? sign * Infinity);
  for (const index of found) if (Number.isNaN(keys[index])) keys[index] = Infinity;
  return found.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
}

/** The step nearest to `wanted` that has texts; null where there are none at all. @param {number} wanted */
function nearestWithTexts(wanted) {
  let best = /** @type {number | null} */ (null);
  for (const row of table.rows)
    if (best === null || Math.abs(row.step - wanted) < Math.abs(best - wanted)) best = row.step;
  return best;
}
