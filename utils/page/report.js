// Starts the page: what stands in it already is readable without this script; curves and browser are made here.

const THEMES = ["auto", "light", "dark"];

/** The data that a page carries, shown. @param {ParentNode} page */
async function showData(page) {
  const data = await unpack(/** @type {Element} */ (page.querySelector("#data")));
  showCharts(data.charts, data.runs, jumpToStep);
  onChartChoice(state);
  emptyTable(data.completions);
  offerOptions(runs);
  await loadRows(page);
}

/** @param {string} theme */
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `${theme === "auto" ? "system" : theme} colors`;
  try {
    localStorage.setItem("subtext-theme", theme);
  } catch {
    // a page that may not keep things starts with the system's colors
  }
  recolorCharts();
}

function savedTheme() {
  try {
    return localStorage.getItem("subtext-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function listenToTheme() {
  setTheme(THEMES.includes(savedTheme()) ? savedTheme() : "auto");
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolorCharts);
}

async function start() {
  document.documentElement.classList.add("scripted");
  followAddress();
  listenToTheme();
  listenToChartControls();
  listenToBrowser([]);
  await showData(document);
  document.documentElement.dataset.ready = "yes";
  if (document.body.dataset.version) follow();
}

start();
