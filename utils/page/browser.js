// The completions browser: the reader's filter above, a page of texts below, each with its rewards as bars.

/** @type {Uint32Array} */
let order = new Uint32Array(0);
/** @type {Row[]} */
let onPage = [];
let question = 0;

const FILTERS = /** @type {(keyof State)[]} */ ([
  "from",
  "to",
  "run",
  "failure",
  "of",
  "low",
  "high",
  "text",
  "where",
  "sort",
  "order",
  "size",
]);

/** @param {RunInfo[]} ofRuns */
function listenToBrowser(ofRuns) {
  const filters = byId("filters");
  const typed = debounced(() => choose({ ...formState(), page: "1" }), 150);
  filters.addEventListener("input", typed);
  filters.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
  byId("clear").addEventListener("click", () =>
    choose(Object.fromEntries([...FILTERS, "page"].map((name) => [name, DEFAULTS[/** @type {keyof State} */ (name)]]))),
  );
  for (const button of document.querySelectorAll("[data-turn]")) {
    button.addEventListener("click", () => turnPage(/** @type {any} */ (button).dataset.turn));
  }
  byId("rows").addEventListener("keydown", onRowKey);
  byId("skip").addEventListener("click", () => form("text").focus());
  listeners.push((before) => {
    fillForm();
    if (!agree(before, state, FILTERS)) ask();
    else if (before.page !== state.page) showPage();
  });
  offerOptions(ofRuns);
}

/** What there is to choose from, as far as it is loaded. @param {RunInfo[]} ofRuns */
function offerOptions(ofRuns) {
  const rewards = table.rewards.map((name) => [name, rewardTitle(name)]);
  const failures = [...table.failures].map(([reason, count]) => [
    `=${reason}`,
    `${plain(reason).replaceAll("_", " ")} (${count.toLocaleString("en")})`,
  ]);
  options("of", [["total", "Total"], ...rewards]);
  options("sort", [["step", "Step"], ["total", "Total"], ...rewards]);
  options("failure", [["", "any"], ["none", "accepted"], ["any", "refused"], ...failures]);
  options("run", [["", "all"], ...ofRuns.map((run, index) => [String(index), plain(run.name)])]);
  form("run").closest("label").hidden = ofRuns.length < 2;
  fillForm();
}

/** @param {string} name */
const form = (name) => byId("filters").elements.namedItem(name);

/**
 * The options of a choice; those that stand there stay, for a reader may have it open.
 * @param {string} name @param {string[][]} pairs
 */
function options(name, pairs) {
  const field = form(name);
  const known = [...field.options].map((option) => option.value);
  if (known.length === pairs.length && pairs.every(([value], index) => value === known[index])) {
    pairs.forEach(([, label], index) => {
      if (field.options[index].textContent !== label) field.options[index].textContent = label;
    });
  } else field.replaceChildren(...pairs.map(([value, label]) => make("option", { value, textContent: label })));
}

/** @returns {Partial<State>} */
function formState() {
  return Object.fromEntries(FILTERS.map((name) => [name, form(name).value]));
}

function fillForm() {
  for (const name of FILTERS) {
    const field = form(name);
    if (field !== document.activeElement || field.tagName === "SELECT")
      if (field.value !== state[name]) field.value = state[name];
  }
}

/** Find and order the rows anew, then show the page. */
async function ask() {
  const mine = ++question;
  const found = await answer(state, () => mine !== question);
  if (found === null || mine !== question) return;
  order = found;
  showPage();
}

const pages = () => Math.max(1, Math.ceil(order.length / Number(state.size)));
const pageNumber = () => Math.min(pages(), Math.max(1, Math.floor(Number(state.page)) || 1));

/** @param {string} where */
function turnPage(where) {
  const page = { first: 1, back: pageNumber() - 1, on: pageNumber() + 1, last: pages() }[where] ?? 1;
  choose({ page: String(Math.min(pages(), Math.max(1, page))) });
}

function showPage() {
  byId("some-rows").hidden = !table.rows.length;
  const size = Number(state.size);
  const first = (pageNumber() - 1) * size;
  const shown = Array.from(order.subarray(first, first + size), (index) => table.rows[index]);
  byId("found").textContent = foundText(first, shown.length);
  const ends = {
    first: pageNumber() === 1,
    back: pageNumber() === 1,
    on: pageNumber() === pages(),
    last: pageNumber() === pages(),
  };
  for (const button of /** @type {NodeListOf<any>} */ (document.querySelectorAll("[data-turn]"))) {
    button.disabled = /** @type {any} */ (ends)[button.dataset.turn];
  }
  if (shown.length === onPage.length && shown.every((row, index) => row === onPage[index])) return;
  const list = byId("rows");
  const at = [...list.children].indexOf(/** @type {any} */ (document.activeElement)?.closest?.(".sample"));
  onPage = shown;
  list.replaceChildren(...shown.map(rowNode));
  if (list.firstChild) list.firstChild.tabIndex = 0;
  if (at >= 0) focusRow(Math.min(at, shown.length - 1), true);
}

/** @param {number} first @param {number} count */
function foundText(first, count) {
  const all = table.rows.length;
  const said = (/** @type {number} */ n) => n.toLocaleString("en");
  const loading = table.loaded ? "" : ` (loading: ${said(all)} so far)`;
  const kept = table.loaded && table.total > all ? ` kept of ${said(table.total)}, evenly over the run` : "";
  if (!count) return `no text matches, of ${said(all)}${kept}${loading}`;
  const among = order.length === all ? "" : ` of ${said(order.length)} that match,`;
  return `${said(first + 1)} to ${said(first + count)}${among} of ${said(all)} texts${kept}${loading}`;
}

/** @param {Row} row */
function rowNode(row) {
  const reason = refusal(row);
  const parts =
    reason === null
      ? [part("visible", row.visible ?? "", ""), part("hidden", row.hidden ?? "", " hidden")]
      : [part(`refused: ${plain(reason).replaceAll("_", " ")}`, row.completion ?? "", " fault")];
  const step = make("button", {
    type: "button",
    className: "step",
    textContent: `step ${row.step}`,
    title: "texts of this step only",
  });
  step.addEventListener("click", () => choose({ from: String(row.step), to: String(row.step), page: "1" }));
  const name = runs.length > 1 ? [make("span", { className: "run" }, plain(runs[row.run]?.name))] : [];
  if (name.length) name[0].style.setProperty("--tint", `var(--run-${row.run % RUN_COLORS})`);
  const head = make("header", {}, step, ...name, longText(row.prompt));
  const cut = row.cut
    ? [make("p", { className: "cut" }, `${row.cut.toLocaleString("en")} more characters in completions.jsonl`)]
    : [];
  return make(
    "article",
    { className: "sample", tabIndex: -1, "aria-label": `step ${row.step}, total ${score(row.total)}` },
    head,
    ...parts,
    scores(row),
    ...cut,
  );
}

/** @param {string} title @param {string} text @param {string} kind */
function part(title, text, kind) {
  return make(
    "div",
    { className: `part${kind}` },
    make("small", {}, title),
    longText(text, kind === " fault" ? "text raw" : "text"),
  );
}

/** @param {number | null} value */
const score = (value) => (value === null ? "n/a" : value.toFixed(2).replace("-", MINUS));

/** @param {Row} row */
function scores(row) {
  const body = make("tbody");
  table.rewards.forEach((name, index) => {
    const value = row.rewards[index] ?? null;
    const bar = make("i");
    bar.style.width = `${Math.min(100, Math.max(0, (100 * (value ?? 0)) / table.scales[index]))}%`;
    body.append(
      make(
        "tr",
        {},
        make("th", { scope: "row" }, rewardTitle(name)),
        make("td", { className: "bar" }, make("span", {}, bar)),
        make("td", {}, score(value)),
      ),
    );
  });
  body.append(
    make(
      "tr",
      { className: "total" },
      make("th", { scope: "row" }, "Total"),
      make("td"),
      make("td", {}, score(row.total)),
    ),
  );
  return make("table", { className: "scores" }, body);
}

/** @param {number} at @param {boolean} still */
function focusRow(at, still = false) {
  const nodes = /** @type {HTMLElement[]} */ ([...byId("rows").children]);
  for (const node of nodes) node.tabIndex = -1;
  if (nodes[at]) nodes[at].tabIndex = 0;
  nodes[at]?.focus({ preventScroll: still });
}

/** Up and down go from text to text, left and right from page to page. @param {KeyboardEvent} event */
function onRowKey(event) {
  const nodes = [...byId("rows").children];
  const at = nodes.indexOf(/** @type {any} */ (event.target).closest(".sample"));
  if (event.ctrlKey || event.metaKey || event.altKey || at < 0) return;
  if (event.key === "ArrowDown" && at < nodes.length - 1) focusRow(at + 1);
  else if (event.key === "ArrowUp" && at > 0) focusRow(at - 1);
  else if (event.key === "Home") focusRow(0);
  else if (event.key === "End") focusRow(nodes.length - 1);
  else if (event.key === "ArrowRight") turnPage("on");
  else if (event.key === "ArrowLeft") turnPage("back");
  else return;
  event.preventDefault();
}

/** From a point of a curve to the texts of that step, or of the nearest step that has any. @param {number} step */
async function jumpToStep(step) {
  const at = nearestWithTexts(step);
  if (at === null) return;
  choose({ from: String(at), to: String(at), page: "1" });
  await ask();
  byId("browser").scrollIntoView({ behavior: "instant", block: "start" });
  focusRow(0, true);
  announce(at === step ? `texts of step ${at}` : `step ${step} has no texts; the nearest that has is ${at}`);
}

/** Take up the blocks of rows one after the other; the first are shown at once. @param {ParentNode} page */
async function loadRows(page) {
  order = new Uint32Array(0);
  for (const block of page.querySelectorAll("script.rows")) {
    takeUp(await unpack(block));
    block.remove();
    if (order.length < Number(state.size)) await ask();
    else byId("found").textContent = foundText((pageNumber() - 1) * Number(state.size), onPage.length);
    await breathe();
  }
  table.loaded = true;
  offerOptions(runs);
  await ask();
}
