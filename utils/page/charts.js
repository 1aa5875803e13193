// The curves: one uPlot each, all with the same steps under the pointer and the same zoom.

const CHART_HEIGHT = 190;
const RUN_COLORS = 8;

/** @typedef {{record: Chart, figure: any, plot: any, box: any, width: number, lines: Line[], steps: number[],
 *    bounded: boolean}} Drawn */
/** @type {Drawn[]} */
let drawn = [];
/** @type {RunInfo[]} */
let runs = [];
/** @param {string} name */
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
/** @param {Line} line */
const lineColor = (line) =>
  color(line.kind === "held_out" && runs.length === 1 ? "second" : `run-${line.run % RUN_COLORS}`);
/** What the reader has switched off, or on: the bands of several runs would hide each other. @param {string} name */
const isOff = (name) => listOf(state.off).includes(name) !== (name === "band" && runs.length > 1);
/** @param {Line} line */
const isDrawn = (line) => !isOff(`run ${line.run}`) && !(line.kind === "held_out" && isOff("held-out"));

/** @param {Chart[]} charts @param {RunInfo[]} ofRuns @param {(step: number) => void} jump */
function showCharts(charts, ofRuns, jump) {
  for (const chart of drawn) chart.plot?.destroy();
  [runs, openStep] = [ofRuns, jump];
  drawn = charts.map((record) => {
    const box = make("div", { className: "plot" });
    const figure = make("figure", { className: "chart", tabIndex: 0, role: "group" }, caption(record), box);
    const chart = { record, figure, box, plot: null, width: 0, lines: [], steps: [], bounded: isBounded(record) };
    figure.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => onChartKey(event, chart));
    figure.addEventListener("blur", () => hover(null));
    return chart;
  });
  byId("curve-tools").hidden = !drawn.length;
  byId("charts").replaceChildren(...drawn.map((chart) => chart.figure));
  for (const chart of drawn) chart.width = chart.box.clientWidth; // all before the first is drawn: one layout
  for (const chart of drawn) drawChart(chart);
  showLegend();
}

/** @param {Chart} record */
function caption(record) {
  const log = make("button", { type: "button", className: "log", textContent: "log", title: "logarithmic scale" });
  log.addEventListener("click", () => choose({ log: toggled(state.log, record.key) }));
  const title = make("b", { title: plain(record.title) }, plain(record.title));
  const note = make("small", {}, make("span", { className: "note" }, plain(record.note)));
  return make("figcaption", {}, title, make("span", { className: "latest" }), log, note);
}

/** What was left out of the lines, in words. @param {Line[]} lines */
function thinnedNote(lines) {
  const cut = lines.map((line) => line.thinned).filter((one) => one !== null && one !== undefined);
  if (!cut.length) return "";
  const [from, kept] = ["from", "kept"].map((name) =>
    cut.reduce((sum, one) => sum + /** @type {any} */ (one)[name], 0),
  );
  return `${from.toLocaleString("en")} points, thinned to ${kept.toLocaleString("en")}; extremes kept`;
}

/** (Re)make the plot of a chart from its record and the reader's choices. @param {Drawn} chart */
function drawChart(chart) {
  chart.plot?.destroy();
  chart.lines = chart.record.lines.filter(isDrawn);
  chart.steps = commonSteps(chart.lines, runs);
  const button = chart.figure.querySelector(".log");
  button.disabled = !chart.lines.some((line) => line.values.some((value) => value !== null && value > 0));
  const log = !button.disabled && listOf(state.log).includes(chart.record.key);
  button.setAttribute("aria-pressed", String(log));
  const { data, series, bands } = plotted(chart, log);
  chart.plot = new uPlot(
    {
      width: Math.max(200, chart.width),
      height: CHART_HEIGHT,
      legend: { show: false },
      padding: [8, 16, 0, 0],
      scales: { x: { time: false }, y: log ? { distr: 3 } : { range: rangeOf(chart) } },
      axes: axes(chart.record.unit, log),
      series,
      bands,
      cursor: {
        y: false,
        drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => choose({ zoom: "" }) },
      },
      hooks: { draw: [(/** @type {any} */ plot) => drawStages(plot, chart)], setSelect: [onSelect] },
    },
    data,
    chart.box,
  );
  listenToPointer(chart);
  zoomChart(chart);
  describe(chart);
}

/** @param {Drawn} chart */
function rangeOf(chart) {
  return (/** @type {any} */ _, /** @type {number | null} */ low, /** @type {number | null} */ high) =>
    low === null || high === null ? [0, 1] : yRange(chart.record, chart.bounded, low, high, zoomRange() !== null);
}

/** @param {string} unit @param {boolean} log */
function axes(unit, log) {
  const wholeSteps = [1, 100, 1e4, 1e6].flatMap((by) => [1, 2, 5, 10, 20, 25, 50].map((n) => n * by));
  const steps = (/** @type {any} */ _, /** @type {number[]} */ at) => at.map((step) => step.toLocaleString("en"));
  const levels = (/** @type {any} */ _, /** @type {(number | null)[]} */ at) =>
    log ? at.map((value) => (value === null ? "" : number(value, unit === "share" ? unit : ""))) : tickLabels(at, unit);
  return [
    axis({ size: 26, incrs: wholeSteps, values: steps, grid: { show: false } }),
    axis({ size: 50, space: 32, values: levels }),
  ];
}

/** @param {Record<string, any>} more */
function axis(more) {
  const rule = { stroke: () => color("rule"), width: 1 };
  return {
    stroke: () => color("muted"),
    font: "11px system-ui, sans-serif",
    ticks: { show: false },
    gap: 4,
    ...more,
    grid: { ...rule, ...more.grid },
  };
}

/**
 * What uPlot draws: the steps, and for each line its points, its band and its average.
 * @param {Drawn} chart @param {boolean} log
 */
function plotted(chart, log) {
  const places = new Map(chart.steps.map((step, index) => [step, index]));
  const share = chart.record.unit === "rate" ? 0 : Number(state.smooth) / 100;
  const data = [chart.steps];
  const series = /** @type {any[]} */ ([{}]);
  const bands = [];
  for (const line of chart.lines) {
    const stages = runs[line.run].stages;
    const parts = segments(line.steps, stages);
    const stroke = () => lineColor(line);
    const put = (/** @type {Values} */ values, /** @type {any} */ how) => {
      const shown = log ? values.map((value) => (value !== null && value > 0 ? value : null)) : values;
      data.push(laid(shown, line, places, stages));
      series.push({ points: { show: false }, ...how });
    };
    if (line.kind === "held_out") {
      put(line.values, { stroke, width: 1.2, points: { show: true, size: 5, fill: stroke, stroke } });
      continue;
    }
    if (line.low && line.high && !isOff("band")) {
      bands.push({ series: [series.length + 1, series.length], fill: () => `${lineColor(line)}24` });
      for (const edge of [line.low, line.high]) put(smoothed(edge, parts, share), { width: 0 });
    }
    const few = line.values.filter((value) => value !== null).length < 3;
    const average = share > 0 || line.means ? smoothed(line.means ?? line.values, parts, share) : null;
    if (!isOff("points") || !average)
      put(line.values, average ? { stroke, width: 0.8, alpha: 0.4 } : { stroke, width: 1.8 });
    if (average) put(average, { stroke, width: 1.8, points: { show: few, size: 5, fill: stroke, stroke } });
  }
  return { data, series, bands };
}

/**
 * A dashed line where each later stage begins, of the first run that has any.
 * @param {any} plot @param {Drawn} chart
 */
function drawStages(plot, chart) {
  const stages = chart.lines.map((line) => runs[line.run].stages).find((of) => of.length > 1) ?? [];
  const { left, top, width, height } = plot.bbox;
  const context = plot.ctx;
  context.save();
  context.strokeStyle = context.fillStyle = color("stage");
  context.setLineDash([4, 4]);
  context.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const stage of stages.slice(1)) {
    const x = plot.valToPos(stage.first_step - 0.5, "x", true);
    if (x < left || x > left + width) continue;
    context.beginPath();
    context.moveTo(x, top);
    context.lineTo(x, top + height);
    context.stroke();
    context.fillText(stage.name, x + 4, top);
  }
  context.restore();
}

/** Say it to those who listen. @param {string} text */
function announce(text) {
  byId("said").textContent = text;
}

/** The chart in words. @param {Drawn} chart */
function describe(chart) {
  const about = chart.lines.filter((line) => line.kind === "value").map((line) => lineInWords(line, chart.record.unit));
  chart.figure.setAttribute(
    "aria-label",
    `${plain(chart.record.title)}: ${about.join("; ")}. Arrow keys read steps, Enter opens their texts.`,
  );
  const note = [plain(chart.record.note), thinnedNote(chart.lines)].filter(Boolean).join(" · ");
  chart.figure.querySelector(".note").textContent = note;
  chart.figure.querySelector(".latest").replaceChildren(...readings(chart, null));
}

/** @param {Line} line @param {string} unit */
function lineInWords(line, unit) {
  const known = /** @type {number[]} */ (line.values.filter((value) => value !== null));
  if (!known.length) return "nothing logged";
  const said = (/** @type {number} */ value) => number(value, unit);
  const [low, high] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const name = runs.length > 1 ? `${plain(runs[line.run].name)}: ` : "";
  const last = latest(line.means ?? known) ?? 0;
  return (
    `${name}steps ${line.steps[0]} to ${line.steps[line.steps.length - 1]}, first ${said(known[0])}, ` +
    `last tenth ${said(last)}, from ${said(low)} to ${said(high)}`
  );
}

// ---------------------------------------------------------------------------------------------- choices and redraws

/** Buttons for what is drawn: runs, logged points, bands, held-out data. */
function showLegend() {
  const lines = drawn.flatMap((chart) => chart.record.lines);
  const parts = [
    ...(runs.length > 1
      ? runs.map((run, index) => ({ name: `run ${index}`, label: plain(run.name), tint: `run-${index % RUN_COLORS}` }))
      : []),
    { name: "points", label: "logged values", tint: "" },
    ...(lines.some((line) => line.low) ? [{ name: "band", label: "± 1 standard deviation", tint: "" }] : []),
    ...(lines.some((line) => line.kind === "held_out")
      ? [{ name: "held-out", label: "held-out", tint: runs.length > 1 ? "" : "second" }]
      : []),
  ];
  byId("legend").replaceChildren(
    ...parts.map((part) => {
      const button = make("button", { type: "button", "aria-pressed": String(!isOff(part.name)) }, part.label);
      if (part.tint) button.style.setProperty("--tint", `var(--${part.tint})`);
      button.addEventListener("click", () => {
        choose({ off: toggled(state.off, part.name) });
        button.setAttribute("aria-pressed", String(!isOff(part.name)));
      });
      return button;
    }),
  );
}

/** @param {State} before */
function onChartChoice(before) {
  const redrawn = !agree(before, state, ["smooth", "off"]);
  const logs = [listOf(before.log), listOf(state.log)];
  for (const chart of drawn) {
    const scaled = logs[0].includes(chart.record.key) !== logs[1].includes(chart.record.key);
    if (redrawn || scaled) drawChart(chart);
    else if (before.zoom !== state.zoom) zoomChart(chart);
  }
  byId("smooth").value = state.smooth;
  byId("smooth-value").textContent = state.smooth === "0" ? "off" : `${state.smooth} % of a stage`;
  byId("reset").hidden = zoomRange() === null;
}

/** The controls above the curves. */
function listenToChartControls() {
  listeners.push(onChartChoice);
  byId("smooth").addEventListener("input", () => choose({ smooth: byId("smooth").value }));
  byId("reset").addEventListener("click", () => choose({ zoom: "" }));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.zoom) choose({ zoom: "" });
  });
  const observer = new ResizeObserver(() => {
    for (const chart of drawn) chart.width = chart.box.clientWidth;
    for (const chart of drawn) {
      if (chart.width > 0 && chart.plot.width !== chart.width) {
        chart.plot.setSize({ width: chart.width, height: CHART_HEIGHT });
      }
    }
  });
  observer.observe(byId("charts"));
}

function recolorCharts() {
  for (const chart of drawn) {
    chart.plot.redraw(true, true);
    chart.figure.querySelector(".latest").replaceChildren(...readings(chart, null));
  }
}

/** New points of a running training. @param {Chart[]} pieces */
function appendPoints(pieces) {
  for (const piece of /** @type {any[]} */ (pieces)) {
    const chart = drawn.find((one) => one.record.key === piece.key);
    const line = chart?.record.lines.find((one) => one.run === piece.run && one.kind === piece.kind);
    if (!chart || !line) return false;
    for (const name of /** @type {const} */ (["steps", "values", "low", "high", "means"])) {
      const own = /** @type {any[] | null | undefined} */ (line[name]);
      if (own) own.push(...(piece[name] ?? piece.values));
    }
  }
  const keys = new Set(pieces.map((piece) => piece.key));
  for (const chart of drawn) if (keys.has(chart.record.key)) drawChart(chart);
  return true;
}
