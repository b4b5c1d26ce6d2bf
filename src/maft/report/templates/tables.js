// The table of compared methods: which iteration, with or without the parts of a method, and in which order.
for (const tools of document.querySelectorAll("[data-tools]")) {
  const table = document.getElementById(tools.dataset.tools);
  const iteration = tools.querySelector("select");
  const parts = tools.querySelector("input");
  const choose = () => {
    for (const body of table.tBodies) {
      body.hidden = !["all", body.dataset.iteration].includes(iteration.value) && body.dataset.iteration !== "0";
      for (const row of body.rows) row.hidden = row.matches(".is-part") && !parts.checked;
    }
  };
  tools.addEventListener("change", choose);
  choose();

  const key = (row, column) => Number(row.cells[column].dataset.value ?? NaN);
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [key(a, column), key(b, column)];
    return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || a.dataset.place - b.dataset.place;
  };
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const falling = head.getAttribute("aria-sort") !== "descending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.querySelectorAll("tr[data-place]")];
        body.append(...rows.sort(compare(head.cellIndex, falling ? -1 : 1)));
      }
    });
  }
}
