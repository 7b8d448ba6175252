// Tells the values of a plot's curves under the pointer, read from the curves' own points. Without it the page is whole.
"use strict";
const EXTENT = 1000;
const shown = (value) => {
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size === 0 || size >= 0.001) return String(Number(value.toPrecision(5)));
  return value.toExponential(2);
};
const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg");
  const [left, right] = plot.dataset.x.split(" ").map(Number);
  const [low, high] = plot.dataset.y.split(" ").map(Number);
  const points = (path) =>
    path.getAttribute("d").split(/[ML]/).slice(1).map((pair) => pair.replace("h0", "").split(" ").map(Number));
  let curves = null;
  let told = null;
  const here = document.createElementNS(svg.namespaceURI, "path");
  here.setAttribute("class", "here");
  const leave = () => {
    told?.remove();
    told = null;
    here.remove();
  };
  const move = (event) => {
    curves ??= [...svg.querySelectorAll("path[data-name]")].map((path) => ({
      name: path.dataset.name,
      colour: [...path.classList].find((name) => /^c\d$/.test(name)),
      level: path.classList.contains("dashes"),
      points: points(path),
    }));
    const box = svg.getBoundingClientRect();
    const at = (EXTENT * (event.clientX - box.left)) / box.width;
    const near = (all) => all.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));
    // The place of the nearest value of any curve with more than two ends.
    const places = curves.filter((curve) => !curve.level).map((curve) => near(curve.points)[0]);
    if (!places.length) return;
    const place = near(places.map((x) => [x]))[0];
    leave();
    here.setAttribute("d", `M${place} 0V${EXTENT}`);
    svg.append(here);
    told = document.createElement("div");
    told.className = "told";
    const value = left + (place / EXTENT) * (right - left);
    told.append(element("b", `${plot.dataset.name} ${shown(value)}`));
    const names = new Set();
    for (const curve of curves) {
      const point = curve.level ? curve.points[0] : near(curve.points);
      // A curve that has nothing here is left out.
      if (names.has(curve.name) || (!curve.level && Math.abs(point[0] - place) > EXTENT / 60)) continue;
      names.add(curve.name);
      const row = document.createElement("div");
      const key = document.createElement("i");
      key.className = curve.colour;
      row.append(key, element("span", curve.name), element("b", shown(low + (1 - point[1] / EXTENT) * (high - low))));
      told.append(row);
    }
    for (const mark of svg.querySelectorAll("path[data-mark]")) {
      if (Math.abs(Number(mark.getAttribute("d").slice(1).split(" ")[0]) - place) < EXTENT / 120) {
        told.append(element("em", mark.dataset.mark));
      }
    }
    const from = box.left - plot.getBoundingClientRect().left + (place / EXTENT) * box.width;
    plot.append(told);
    const room = plot.clientWidth - told.offsetWidth;
    told.style.left = `${Math.max(0, Math.min(room, from > plot.clientWidth / 2 ? from - told.offsetWidth - 12 : from + 12))}px`;
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}
