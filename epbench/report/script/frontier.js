// Choosing a layout: how much of a device's memory is to stay free. Moves the limit in the chart of throughput against
// memory, fades the cells that do not fit, ends the line at the last that does, and says which is the fastest that
// fits. What may be said at each limit comes with the figure (layout.meta.answers), so the words are the report's own.
const frontier = (() => {
  const SETTING = "headroom"; // GiB; null is what the report keeps free by itself
  const FADED = 0.3;
  const [LINE, POINTS] = [0, 1]; // traces of the figure
  const drawn = new Map(); // chart to the variant that was drawn there
  const notes = new Map(); // element with the answer to its text as written
  let wanted = null;

  const kept = (meta) => Math.min(wanted ?? meta.free_gib, meta.capacity_gib);

  // As text.gib does: three significant digits at least, thousands grouped, halves to even where the browser can.
  function gib(value) {
    const digits = value > 0 ? Math.max(0, 2 - Math.floor(Math.log10(value))) : 0;
    return value.toLocaleString("en-US", {
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
      roundingMode: "halfEven",
    });
  }

  function answer(meta, free) {
    const [, text] = meta.answers.findLast(([from]) => from <= meta.capacity_gib - free);
    return `With ${gib(free)} GiB of ${meta.capacity} GiB kept free, ${text}`;
  }

  // The figure as it is when so much stays free.
  function limited(figure, free) {
    const { data, layout } = structuredClone(figure);
    const limit = layout.meta.capacity_gib - free;
    const [start, end] = layout.meta.reach_gib;
    const fitting = data[LINE].x.filter((peak) => peak <= limit).length;
    for (const key of ["x", "y"]) data[LINE][key] = data[LINE][key].slice(0, fitting);
    data[POINTS].marker.opacity = data[POINTS].x.map((peak) => (peak <= limit ? 1 : FADED));
    layout.shapes[0].x0 = Math.min(Math.max(limit, start), end);
    return { data, layout };
  }

  function say(chart, meta, free) {
    const caption = chart.closest("figure").querySelector("figcaption");
    const place = caption.querySelector(`.variant[data-variant="${chart.dataset.variant ?? 0}"]`);
    if (!notes.has(place)) notes.set(place, place.textContent);
    place.setAttribute("aria-live", "polite");
    const said = free === meta.free_gib ? meta.answer : answer(meta, free);
    place.textContent = notes.get(place).replace(meta.answer, () => said); // as a function: names may hold "$&"
  }

  function control(chart, meta) {
    const figure = chart.closest("figure");
    if (!figure.querySelector(".headroom")) {
      const input = element("input", { type: "range", min: 0, max: Math.floor(meta.capacity_gib), step: meta.step_gib });
      input.addEventListener("input", () => {
        wanted = Number(input.value);
        applyAll();
      });
      input.addEventListener("change", () => state.write(SETTING, input.value));
      chart.after(element("p", { className: "headroom scripted" }, element("label", {}, "Keep free ", input, element("output"))));
    }
    return figure.querySelector(".headroom");
  }

  function apply(chart) {
    const figure = drawn.get(chart);
    const { meta } = figure.layout;
    const free = kept(meta);
    const made = control(chart, meta);
    made.querySelector("input").value = free;
    made.querySelector("output").value = ` ${gib(free)} GiB`;
    charts.show(chart, limited(figure, free));
    say(chart, meta, free);
  }

  function applyAll() {
    for (const chart of drawn.keys()) apply(chart);
  }

  function start() {
    charts.onDraw("frontier", (chart, figure) => {
      drawn.set(chart, figure);
      apply(chart);
    });
    state.on(SETTING, (value) => {
      const free = value === null ? NaN : Number(value);
      wanted = free >= 0 ? free : null;
      applyAll();
    });
  }

  return { start };
})();
