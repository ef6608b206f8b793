// Sorting: numbers by data-sort, texts by the alphabet; rows without a number stay last either way.
const tables = (() => {
  const collator = new Intl.Collator("en", { numeric: true });

  function keyOf(body, column, isNumber) {
    const cell = body.rows[0].cells[column];
    if (!isNumber) return cell.textContent;
    return cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort);
  }

  function compare(x, y, isNumber, sign) {
    if (!isNumber) return sign * collator.compare(x, y);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x - y);
  }

  function sortBy(heading, direction) {
    const table = heading.closest("table");
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const isNumber = heading.classList.contains("number");
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = [...table.tBodies].map((body) => [keyOf(body, heading.cellIndex, isNumber), body]);
    keyed.sort(([x], [y]) => compare(x, y, isNumber, sign));
    table.append(...keyed.map(([, body]) => body));
  }

  function toggle(heading) {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    sortBy(heading, direction);
    if (heading.dataset.key) state.write("sort", `${heading.dataset.key}.${direction}`);
  }

  // "step.ascending"; without a value, the order in which the page came.
  function applySort(table, original, value) {
    const [key, direction] = (value ?? "").split(".");
    const heading = all("thead th", table).find((found) => found.dataset.key === key);
    if (heading && ["ascending", "descending"].includes(direction)) sortBy(heading, direction);
    else if (table.querySelector("th[aria-sort]")) {
      for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      table.append(...original);
    }
  }

  // After the values of a column changed.
  function sortAgain(table) {
    const heading = table.querySelector("th[aria-sort]");
    if (heading) sortBy(heading, heading.getAttribute("aria-sort"));
  }

  // Tables of variants that are packed: made when their details are open.
  const texts = new Map(); // details to the packed tables, unpacked

  async function loadPacked(details) {
    if (!texts.has(details)) texts.set(details, await unpack(`tables-${details.dataset.tables}`));
  }

  function make({ name, titles, numbers, rows }) {
    const kind = (index) => (numbers[index] ? "number" : "");
    const headings = titles.map((title, index) => {
      return element("th", { scope: "col", className: kind(index), tabIndex: 0 }, title);
    });
    const bodies = rows.map((row) => element("tbody", {}, element("tr", {}, ...row.map(([text, sort], index) => {
      const cell = element("td", { className: kind(index) }, text);
      if (sort !== null) cell.dataset.sort = sort;
      return cell;
    }))));
    return element("table", { className: "data", "aria-label": name },
      element("thead", {}, element("tr", {}, ...headings)), ...bodies);
  }

  function fill(details) {
    const found = details.hidden || !texts.has(details) ? null : JSON.parse(texts.get(details))[details.dataset.variant];
    if (found) details.querySelector(".scroll").replaceChildren(make(found));
  }

  // Shown if the chart's variant of this index has its table in the pack.
  function choosePacked(details, index) {
    const figure = details.closest("figure");
    const isPlain = all("details.variant", figure).some((other) => Number(other.dataset.variant) === index);
    details.hidden = isPlain;
    details.dataset.variant = index;
    details.querySelector(".scroll").replaceChildren();
    if (!isPlain && details.open) loadPacked(details).then(() => fill(details));
  }

  // Printing cannot wait for unpacking.
  async function loadAll() {
    for (const details of all("details.packed")) {
      await idle();
      await loadPacked(details);
    }
  }

  let opened = []; // for printing only

  function openBeforePrint() {
    opened = all("details.numbers:not([hidden]):not([open])");
    for (const details of opened) {
      if (details.classList.contains("packed")) fill(details);
      details.open = true;
    }
  }

  function closeAfterPrint() {
    for (const details of opened) details.open = false;
  }

  function start() {
    const headingOf = (event) => event.target.closest("table.data thead th");
    for (const heading of all("table.data thead th")) heading.tabIndex = 0;
    document.addEventListener("click", (event) => {
      if (headingOf(event)) toggle(headingOf(event));
    });
    document.addEventListener("keydown", (event) => {
      if (!headingOf(event) || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      toggle(headingOf(event));
    });
    for (const details of all("details.packed")) {
      details.addEventListener("toggle", () => {
        if (details.open) loadPacked(details).then(() => fill(details));
      });
    }
    addEventListener("beforeprint", openBeforePrint);
    addEventListener("afterprint", closeAfterPrint);
    const table = byId("cells-table");
    const original = table ? [...table.tBodies] : [];
    if (table) state.on("sort", (value) => applySort(table, original, value));
  }

  return { choosePacked, loadAll, sortAgain, start };
})();
