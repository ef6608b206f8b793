// What the speeds in the table of cells are against: one cell of each group of comparable cells. The page comes with
// the speeds against its own choice; those against any other are unpacked with the first one chosen.
const reference = (() => {
  let speeds = null; // of a reference to of a cell to [text, number]
  const selects = () => all("select[data-reference]");

  function rewrite(chosen) {
    const table = byId("cells-table");
    for (const body of table.tBodies) {
      const found = chosen.map((id) => speeds[id]?.[body.dataset.cell]).find(Boolean);
      const cell = body.querySelector("td.speed");
      if (!found || !cell) continue;
      const [text, sort] = found;
      cell.querySelector("bdi").textContent = text.replace(" [", "\n[");
      if (sort === null) delete cell.dataset.sort;
      else cell.dataset.sort = sort;
    }
    tables.sortAgain(table);
  }

  async function apply(chosen) {
    for (const select of selects()) {
      const own = [...select.options].find((option) => chosen.includes(option.value));
      select.value = own?.value ?? select.dataset.reference;
    }
    const isAsMade = selects().every((select) => select.value === select.dataset.reference);
    if (isAsMade && !speeds) return;
    speeds ??= JSON.parse(await unpack("speeds"));
    const values = selects().map((select) => select.value);
    rewrite(values);
    filter.apply();
    selects().forEach(name);
  }

  // In the sentence above the table, which names the references of the other groups too.
  function name(select) {
    const place = all("#references span").find((one) => one.dataset.cell === select.dataset.reference);
    place.textContent = select.selectedOptions[0].dataset.name;
  }

  function changed() {
    const own = selects().filter((select) => select.value !== select.dataset.reference);
    state.write("reference", own.map((select) => select.value));
    apply(own.map((select) => select.value));
  }

  function start() {
    if (!selects().length) return;
    for (const select of selects()) select.addEventListener("change", changed);
    state.on("reference", (_, chosen) => apply(chosen));
  }

  return { start };
})();
