// Pickers: one value for the whole page of what is picked (a group of comparable cells, a cell). A chart that has
// nothing for the value shows its first variant, as its picker says: what is seen follows from the address alone.
const pickers = (() => {
  const STATE = { work: "group", cell: "cell" };
  const of = (name) => all("select[data-picker]").filter((select) => select.dataset.picker === name);

  function showVariant(figure, select) {
    const index = select.selectedIndex;
    const chart = figure.querySelector(".chart");
    const label = select.options[index].textContent;
    const name = `${chart.dataset.label}, ${label}`;
    figure.querySelector(".picked").textContent = label; // for paper, which has no pickers
    for (const part of all(".variant", figure)) part.hidden = Number(part.dataset.variant) !== index;
    for (const details of all("details.packed", figure)) {
      details.querySelector("summary").textContent = `Table: ${name}`;
      tables.choosePacked(details, index);
    }
    chart.setAttribute("aria-label", name);
    charts.choose(chart, index);
  }

  function pick(name, value) {
    for (const select of of(name)) {
      const figure = select.closest("figure");
      select.selectedIndex = Math.max([...select.options].findIndex((option) => option.value === value), 0);
      if (figure) showVariant(figure, select);
    }
  }

  function start() {
    for (const name of new Set(all("select[data-picker]").map((select) => select.dataset.picker))) {
      const key = STATE[name] ?? name;
      const first = of(name)[0].value;
      state.on(key, (value) => pick(name, value ?? first));
      for (const select of of(name)) {
        select.addEventListener("change", () => {
          pick(name, select.value);
          state.write(key, select.value);
        });
      }
    }
  }

  return { start };
})();
