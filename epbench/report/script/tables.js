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
    sortBy(heading, heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
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
  }

  return { sortBy, start };
})();
