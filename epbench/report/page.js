"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
    const packed = new ReadableStream({
      start(controller) {
        controller.enqueue(bytes);
        controller.close();
      },
    });
    return new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
  }

  // Charts: plotly is unpacked when the first chart comes into view, each chart is drawn when it does.
  const figures = new Map(); // chart to its variants
  async function variantsOf(chart) {
    if (!figures.has(chart)) figures.set(chart, JSON.parse(await unpack(`figures-${chart.dataset.figure}`)));
    return figures.get(chart);
  }
  const shown = (chart) => chart.closest("figure").querySelector("select")?.selectedIndex ?? 0;

  let library = null;

  function loadPlotly() {
    library ??= unpack("plotly").then((text) => {
      const script = document.createElement("script");
      script.textContent = text;
      document.head.append(script);
      if (!window.Plotly) throw new Error("the chart library did not start");
    });
    return library;
  }

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const copy = structuredClone(layout);
    copy.font = { family: "system-ui, sans-serif", size: 12, color: color("--ink") };
    copy.hoverlabel = { ...copy.hoverlabel, bgcolor: color("--paper"), font: { color: color("--ink") } };
    for (const key of Object.keys(copy).filter((name) => /^[xy]axis/.test(name))) {
      Object.assign(copy[key], { gridcolor: color("--line"), linecolor: color("--line"), tickcolor: color("--line") });
    }
    return copy;
  }

  async function draw(chart) {
    if (chart.dataset.drawn) return;
    chart.dataset.drawn = "pending";
    try {
      await loadPlotly();
      const { data, layout } = (await variantsOf(chart))[shown(chart)];
      chart.replaceChildren();
      await Plotly.newPlot(chart, structuredClone(data), themed(layout), {
        responsive: true, displaylogo: false, displayModeBar: false,
      });
      chart.dataset.drawn = "yes";
    } catch (error) {
      chart.dataset.drawn = "failed";
      chart.textContent = `The chart cannot be drawn in this browser (${error.message}); the tables have the same numbers.`;
    }
  }

  const MARGIN_PX = 300;
  const charts = all(".chart");
  for (const chart of charts) {
    chart.style.minHeight = "280px";
  }
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((found) => found.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: `${MARGIN_PX}px` });
  for (const chart of charts) {
    if (chart.getBoundingClientRect().top < innerHeight + MARGIN_PX) draw(chart);
    else observer.observe(chart);
  }

  // Theme: the system's, until the button (or #dark, #light in the address) says otherwise.
  const root = document.documentElement;
  const toggle = byId("theme");
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  function applyTheme() {
    toggle.textContent = isDark() ? "Light" : "Dark";
    for (const chart of charts.filter((found) => found.dataset.drawn === "yes")) {
      Plotly.relayout(chart, themed(figures.get(chart)[shown(chart)].layout));
    }
  }

  if (["#dark", "#light"].includes(location.hash)) root.dataset.theme = location.hash.slice(1);
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    applyTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  toggle.hidden = false;
  applyTheme();

  // Sorting: numbers by data-sort, texts by the alphabet; rows without a number stay last either way.
  function compare(a, b, column, isNumber, sign) {
    const [left, right] = [a, b].map((body) => body.rows[0].cells[column]);
    if (!isNumber) return sign * left.textContent.localeCompare(right.textContent, "en", { numeric: true });
    const [x, y] = [left, right].map((cell) => (cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort)));
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x - y);
  }

  function sortBy(table, heading) {
    const isDown = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isDown ? "ascending" : "descending");
    const isNumber = heading.classList.contains("number");
    const bodies = [...table.tBodies];
    bodies.sort((a, b) => compare(a, b, heading.cellIndex, isNumber, isDown ? 1 : -1));
    table.append(...bodies);
  }

  for (const table of all("table.data")) {
    for (const heading of all("th", table)) {
      heading.tabIndex = 0;
      heading.addEventListener("click", () => sortBy(table, heading));
      heading.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          sortBy(table, heading);
        }
      });
    }
  }

  // Downloads come out of the page itself.
  async function download(kind) {
    const data = JSON.parse(await unpack("data"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data[kind]], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = `epbench-cells.${kind}`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  for (const button of all("button[data-download]")) {
    button.addEventListener("click", () => download(button.dataset.download));
  }
  for (const element of all(".scripted")) element.hidden = false;

  addEventListener("beforeprint", () => {
    for (const details of all("details.numbers")) details.open = true;
    for (const chart of charts) draw(chart);
  });
})();
