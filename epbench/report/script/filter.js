// The filter of the table of cells: words that a row must have, and per column the values that may be seen. No value
// pressed is no condition.
const filter = (() => {
  const COLUMNS = ["outcome", "mode", "routing", "size"];
  const MOST_VALUES = 12; // a column with more is left to the words
  const WAIT_MS = 200;
  let rows = [];

  const bodies = () => [...byId("cells-table").tBodies];
  const textOf = (body, column) => body.rows[0].querySelector(`td.${column}`)?.textContent ?? "";
  const partsOf = (body) => [...body.rows[0].cells, body.querySelector("summary")];
  const textOfRow = (body) => partsOf(body).map((part) => part.textContent).join(" ").toLowerCase();
  const buttons = (column) => all(`#filter-toggles button[data-column="${column}"]`);
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, isOn) => button.setAttribute("aria-pressed", isOn); // older browsers have no ariaPressed
  const pressed = (column) => buttons(column).filter(isPressed).map((one) => one.value);

  function makeToggles() {
    for (const column of COLUMNS) {
      const values = [...new Set(rows.map((row) => row.values[column]))].filter(Boolean).sort();
      if (values.length < 2 || values.length > MOST_VALUES) continue;
      const group = element("span", { className: "toggles", role: "group", "aria-label": column });
      for (const value of values) {
        const button = element("button", { type: "button", value, "aria-pressed": "false" }, value);
        button.dataset.column = column;
        button.addEventListener("click", () => {
          press(button, !isPressed(button));
          changed();
        });
        group.append(button);
      }
      byId("filter-toggles").append(group);
    }
  }

  // Speeds change with the reference, so the words are looked for in what the rows say now.
  function apply() {
    const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const allowed = COLUMNS.map((column) => [column, pressed(column)]).filter(([, values]) => values.length);
    let count = 0;
    for (const { body, values } of rows) {
      const text = words.length ? textOfRow(body) : "";
      const isShown = words.every((word) => text.includes(word))
        && allowed.every(([column, found]) => found.includes(values[column]));
      body.hidden = !isShown;
      count += isShown;
    }
    const isFiltered = words.length > 0 || allowed.length > 0;
    byId("filter-clear").hidden = !isFiltered;
    byId("filter-count").textContent = isFiltered ? `${count} of ${rows.length} cells` : "";
  }

  function changed() {
    apply();
    state.write("filter", byId("filter-text").value.trim());
    for (const column of COLUMNS) state.write(column, pressed(column));
  }

  function clear() {
    byId("filter-text").value = "";
    for (const button of all("#filter-toggles button")) press(button, false);
    changed();
  }

  function start() {
    if (!byId("filter")) return;
    rows = bodies().map((body) => ({
      body,
      values: Object.fromEntries(COLUMNS.map((column) => [column, textOf(body, column)])),
    }));
    makeToggles();
    let waiting = 0;
    byId("filter-text").addEventListener("input", () => {
      apply();
      clearTimeout(waiting);
      waiting = setTimeout(changed, WAIT_MS);
    });
    byId("filter-clear").addEventListener("click", clear);
    state.on("filter", (text) => {
      byId("filter-text").value = text ?? "";
      apply();
    });
    for (const column of COLUMNS) {
      state.on(column, (_, values) => {
        for (const button of buttons(column)) press(button, values.includes(button.value));
        apply();
      });
    }
  }

  return { apply, start };
})();
