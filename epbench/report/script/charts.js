// Charts: each place on the page has variants, of which one is shown. Plotly is unpacked with the first chart; a chart
// is drawn when it comes near the view, and at the latest before the page is printed.
//
// A file that adds to one kind of chart (layout.meta.kind) does so with
//   charts.onDraw("frontier", (chart, variant) => ...)    after each drawing of a variant; chart is its element
//   charts.show(chart, { data, layout })                  draw something else there, in the page's colours
//   charts.shown(chart)                                   what is drawn there: { data, layout }, without colours
const charts = (() => {
  const MARGIN_PX = 300;
  const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };
  const texts = new Map(); // chart to the packed list of its variants, unpacked
  const variants = new Map(); // chart to the list itself
  const current = new Map(); // chart to what is drawn there
  const hooks = new Map(); // kind of chart to functions
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

  async function load(chart) {
    await loadPlotly();
    if (!texts.has(chart)) texts.set(chart, await unpack(`figures-${chart.dataset.figure}`));
  }

  function variant(chart) {
    if (!variants.has(chart)) variants.set(chart, JSON.parse(texts.get(chart)));
    return variants.get(chart)[Number(chart.dataset.variant ?? 0)];
  }

  function show(chart, figure) {
    current.set(chart, figure);
    return Plotly.react(chart, structuredClone(figure.data), theme.themed(figure.layout), OPTIONS);
  }

  // Its figures must have been loaded. Draws before it returns, as printing cannot wait.
  function drawLoaded(chart) {
    try {
      const figure = variant(chart);
      if (!current.has(chart)) chart.replaceChildren();
      show(chart, figure);
      chart.dataset.drawn = "yes";
      for (const hook of hooks.get(figure.layout.meta?.kind) ?? []) hook(chart, figure);
    } catch (error) {
      failed(chart, error);
    }
  }

  function failed(chart, error) {
    chart.dataset.drawn = "failed";
    chart.textContent = `The chart cannot be drawn in this browser (${error.message}); the table has the same numbers.`;
  }

  async function draw(chart) {
    if (chart.dataset.drawn) return;
    chart.dataset.drawn = "pending";
    try {
      await load(chart);
      drawLoaded(chart);
    } catch (error) {
      failed(chart, error);
    }
  }

  // Shows another of the chart's variants.
  function choose(chart, index) {
    chart.dataset.variant = index;
    if (chart.dataset.drawn === "yes") drawLoaded(chart);
  }

  function recolor() {
    for (const [chart, figure] of current) {
      if (chart.dataset.drawn === "yes") Plotly.relayout(chart, theme.themed(figure.layout));
    }
  }

  function drawBeforePrint() {
    for (const chart of texts.keys()) if (chart.dataset.drawn !== "yes") drawLoaded(chart);
  }

  // Printing cannot wait for unpacking, so that is done for all charts while the page has nothing else to do.
  async function loadAll(places) {
    for (const chart of places) {
      await idle();
      await load(chart);
    }
  }

  async function start() {
    const places = all(".chart");
    if (!places.length) return;
    theme.onChange(recolor);
    addEventListener("beforeprint", drawBeforePrint);
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((found) => found.isIntersecting)) {
        observer.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: `${MARGIN_PX}px` });
    for (const chart of places) observer.observe(chart);
    await draw(places[0]);
    performance.mark("first-chart");
    await loadAll(places).catch((error) => places.forEach((chart) => chart.dataset.drawn || failed(chart, error)));
  }

  return {
    onDraw: (kind, hook) => hooks.set(kind, [...(hooks.get(kind) ?? []), hook]),
    show,
    shown: (chart) => current.get(chart),
    choose,
    start,
  };
})();
