// Follows a run that is training: the server sends new points and texts as events; what the reader has chosen stays.

const RETRY_MS = 3000;
/** The server says something every 10 s; a connection that says nothing for longer may be dead without an error. */
const SILENCE_MS = 30000;
/** @type {number | undefined} */
let watchdog;
let lastEvent = document.body?.dataset.version ?? "";
/** @type {EventSource | null} */
let source = null;

/** Listen from the last event on that was taken up: what came since is sent again. */
function follow() {
  source?.close();
  const opened = (source = new EventSource(`events?last=${encodeURIComponent(lastEvent)}`));
  const on = (/** @type {string} */ name, /** @type {(data: any) => void} */ act) =>
    opened.addEventListener(name, (event) => {
      heard();
      lastEvent = event.lastEventId || lastEvent;
      act(event.data ? JSON.parse(event.data) : null);
    });
  heard();
  opened.addEventListener("open", () => showConnection(true));
  opened.addEventListener("error", () => {
    showConnection(false);
    if (opened.readyState === EventSource.CLOSED) setTimeout(follow, RETRY_MS);
  });
  on("append", takeNews);
  on("progress", showProgress);
  on("reload", reload);
}

/** Begin the wait for the next word of the server anew. */
function heard() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => {
    showConnection(false);
    follow();
  }, SILENCE_MS);
}

/** @param {boolean} there */
function showConnection(there) {
  const note = byId("live");
  note.textContent = there ? "follows the run" : "connection lost; this is the last state; trying again";
  note.classList.toggle("lost", !there);
}

/** @param {{charts?: any[], completions?: Row[], progress?: any}} news */
function takeNews(news) {
  if (news.charts?.length && !appendPoints(news.charts)) {
    reload();
    return;
  }
  if (news.completions?.length) {
    table.total += news.completions.length;
    takeUp(news.completions);
    offerOptions(runs);
    ask();
  }
  if (news.progress) showProgress(news.progress);
}

/** @param {{step: number, planned_steps: number | null, eta_s?: number | null, eta_of?: string | null,
 *   status?: string | null}} progress */
function showProgress(progress) {
  const box = byId("progress");
  const { step, planned_steps: planned, eta_s: eta, eta_of: stage } = progress;
  const left = eta === null || eta === undefined ? "" : ` · ${duration(eta)} left${stage ? ` of the ${stage}` : ""}`;
  box.hidden = progress.status !== undefined && progress.status !== "running";
  box.replaceChildren(
    make("progress", { max: planned || 1, value: planned ? step : 0, "aria-label": "steps done" }),
    ` step ${step.toLocaleString("en")}${planned ? ` of ${planned.toLocaleString("en")}` : ""}${left}`,
  );
}

/** More has changed than points and texts: take up the whole page anew, with the reader's place and choices. */
async function reload() {
  source?.close();
  clearTimeout(watchdog);
  try {
    const answer = await fetch("page", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    swapParts(fresh);
    await showData(fresh);
    lastEvent = fresh.body.dataset.version ?? "";
    follow();
  } catch {
    showConnection(false);
    setTimeout(reload, RETRY_MS);
  }
}

/** Put the parts of a fresh page in place of those that stand here; what is open stays open. @param {Document} fresh */
function swapParts(fresh) {
  for (const part of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-part]"))) {
    const next = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!next) continue;
    const details = /** @type {NodeListOf<HTMLDetailsElement>} */ (part.querySelectorAll("details[id]"));
    const open = new Map([...details].map((one) => [one.id, one.open]));
    for (const one of /** @type {NodeListOf<HTMLDetailsElement>} */ (next.querySelectorAll("details[id]"))) {
      one.open = open.get(one.id) ?? one.open;
    }
    part.replaceWith(document.adoptNode(next));
  }
}
