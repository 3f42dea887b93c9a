"use strict";
/** Sorts tables by a column: the page is complete without it. */
(() => {
  const key = (row, column) => {
    const cell = row.cells[column];
    const { v } = cell.dataset;
    return v === undefined ? cell.textContent.trim() : v === "inf" ? Infinity : Number(v);
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (table, column, descending) => {
    const rows = [...table.tBodies[0].rows];
    const empty = (row) => key(row, column) === "";
    const filled = rows.filter((row) => !empty(row)).sort((a, b) => compare(key(a, column), key(b, column)));
    table.tBodies[0].append(...(descending ? filled.reverse() : filled), ...rows.filter(empty));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      if (!heading.textContent) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }
})();
