"use strict";

// Curves are shown and hidden by the boxes above a picture; those that are shown share the room side by side.
for (const chart of document.querySelectorAll(".chart")) {
  const boxes = [...chart.querySelectorAll("input[data-curve]")];
  const svg = chart.querySelector("svg");
  const arrange = () => {
    const shown = boxes.filter((box) => box.checked);
    const fixed = "fixed" in chart.dataset; // places mean something: nothing is moved
    svg.style.setProperty("--slots", fixed ? 1 : Math.max(1, shown.length));
    for (const box of boxes) {
      for (const part of svg.querySelectorAll(`[data-curve="${box.dataset.curve}"]`)) {
        part.toggleAttribute("hidden", !box.checked);
        part.style.setProperty("--slot", fixed ? 0 : shown.indexOf(box));
      }
    }
  };
  chart.addEventListener("change", arrange);
  const usual = boxes.map((box) => box.checked);
  for (const button of chart.querySelectorAll("button[data-show]")) {
    button.addEventListener("click", () => {
      boxes.forEach((box, n) => {
        box.checked = { all: true, none: false, usual: usual[n] }[button.dataset.show];
      });
      arrange();
    });
  }
  arrange(); // a browser may have kept the boxes of the last visit
}
