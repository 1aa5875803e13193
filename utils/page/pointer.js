// The pointer and the keys on the curves: all charts zoom together, and show their values at the step under the pointer.

/** @type {(step: number) => void} */
let openStep = () => {};
let hovered = /** @type {number | null} */ (null);
let hoverAsked = false;

const zoomRange = () => (/^-?[\d.]+~-?[\d.]+$/.test(state.zoom) ? state.zoom.split("~").map(Number) : null);

/** @param {any} plot */
function onSelect(plot) {
  const { left, width } = plot.select;
  if (width < 4) return;
  const [from, to] = [left, left + width].map((at) => plot.posToVal(at, "x"));
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  zoomTo(from, to);
}

/** @param {number} from @param {number} to */
function zoomTo(from, to) {
  if (to - from < 0.5) return;
  choose({ zoom: `${Math.round(from * 100) / 100}~${Math.round(to * 100) / 100}` });
}

/** @param {Drawn} chart */
function zoomChart(chart) {
  if (!chart.steps.length) return;
  const [first, last] = [chart.steps[0], chart.steps[chart.steps.length - 1]];
  const [from, to] = zoomRange() ?? (last > first ? [first, last] : [first - 1, last + 1]);
  const inside = from <= last && to >= first;
  chart.figure.classList.toggle("outside", !inside);
  chart.plot.setScale("x", { min: from, max: to });
}

/** Zoom by a factor about a step. @param {number} factor @param {number} about */
function zoomBy(factor, about) {
  const all = drawn.flatMap((chart) =>
    chart.steps.length ? [chart.steps[0], chart.steps[chart.steps.length - 1]] : [],
  );
  const [least, most] = [Math.min(...all), Math.max(...all)];
  const [from, to] = zoomRange() ?? [least, most];
  const next = [Math.max(least, about - (about - from) * factor), Math.min(most, about + (to - about) * factor)];
  if (next[0] <= least && next[1] >= most) choose({ zoom: "" });
  else zoomTo(next[0], next[1]);
}

// --- hover ---

/** @param {Drawn} chart */
function listenToPointer(chart) {
  const over = chart.plot.over;
  const stepAt = (/** @type {MouseEvent} */ event) =>
    chart.plot.posToVal(event.clientX - over.getBoundingClientRect().left, "x");
  over.addEventListener("mousemove", (/** @type {MouseEvent} */ event) => hover(stepAt(event)));
  over.addEventListener("mouseleave", () => hover(null));
  over.addEventListener("click", (/** @type {MouseEvent} */ event) => openStep(nearestStep(chart, stepAt(event))));
}

/** @param {Drawn} chart @param {number} wanted */
function nearestStep(chart, wanted) {
  const steps = chart.lines.flatMap((line) => (line.steps.length ? [line.steps[nearest(line.steps, wanted)]] : []));
  return steps.reduce(
    (best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best),
    steps[0] ?? wanted,
  );
}

/** Show all series of a step, once a frame. @param {number | null} step */
function hover(step) {
  hovered = step;
  if (hoverAsked) return;
  hoverAsked = true;
  requestAnimationFrame(() => {
    hoverAsked = false;
    for (const chart of drawn) hoverChart(chart, hovered);
    const at = hovered === null ? null : Math.round(hovered);
    const stage = runs[0]?.stages.findLast((one) => at !== null && one.first_step <= at)?.name;
    const ofStage = stage ? ` · ${plain(stage)}` : "";
    byId("step").textContent = at === null ? "" : `step ${at.toLocaleString("en")}${ofStage}`;
  });
}

/** @param {Drawn} chart @param {number | null} step */
function hoverChart(chart, step) {
  const { min, max } = chart.plot.scales.x;
  const shown = step !== null && min <= step && step <= max;
  chart.plot.setCursor(shown ? { left: chart.plot.valToPos(step, "x"), top: 0 } : { left: -10, top: -10 }, false);
  chart.figure.querySelector(".latest").replaceChildren(...readings(chart, step));
}

/** The value of each line at a step, or its latest. @param {Drawn} chart @param {number | null} step */
function readings(chart, step) {
  return chart.lines.flatMap((line) => {
    const heldOut = line.kind === "held_out";
    const last = heldOut ? (line.values.findLast((one) => one !== null) ?? null) : latest(line.means ?? line.values);
    const value = step === null ? last : valueAt(line, step);
    if (value === null && runs.length === 1) return []; // of several runs each keeps its place
    const band = step !== null && !heldOut ? bandText(chart, line, step) : "";
    const said = value === null ? "–" : number(value, chart.record.unit);
    const text = (heldOut && runs.length > 1 ? "∘ " : "") + said + band;
    const reading = make("span", { title: plain(runs[line.run].name) + (heldOut ? ", held-out" : "") }, text);
    reading.style.color = lineColor(line);
    return [reading];
  });
}

/** The logged value nearest to a step, none where the line is not. @param {Line} line @param {number} step */
function valueAt(line, step) {
  const at = nearest(line.steps, step);
  const reach = Math.max(1, (line.steps[line.steps.length - 1] - line.steps[0]) / 50);
  return line.steps.length && Math.abs(line.steps[at] - step) <= reach ? line.values[at] : null;
}

/** @param {Drawn} chart @param {Line} line @param {number} step */
function bandText(chart, line, step) {
  const at = nearest(line.steps, step);
  const [low, high] = [line.low?.[at] ?? null, line.high?.[at] ?? null];
  return low === null || high === null || runs.length > 1
    ? ""
    : ` (${number(low)} to ${number(high, chart.record.unit)})`;
}

/** @param {KeyboardEvent} event @param {Drawn} chart */
function onChartKey(event, chart) {
  if (event.target !== chart.figure || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = chart.lines[0]?.steps ?? [];
  if (!steps.length) return;
  const at = hovered === null ? steps.length - 1 : nearest(steps, hovered);
  const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: 10, PageUp: -10, Home: -steps.length, End: steps.length }[
    event.key
  ];
  if (move !== undefined) {
    const to =
      hovered === null && event.key.startsWith("Arrow") ? at : Math.min(steps.length - 1, Math.max(0, at + move));
    hover(steps[to]);
    announce(
      `${plain(chart.record.title)}, step ${steps[to]}: ${
        readings(chart, steps[to])
          .map((one) => one.textContent)
          .join(", ") || "not logged"
      }`,
    );
  } else if (event.key === "Enter") openStep(steps[at]);
  else if (event.key === "+" || event.key === "=") zoomBy(0.5, steps[at]);
  else if (event.key === "-") zoomBy(2, steps[at]);
  else return;
  event.preventDefault();
}
