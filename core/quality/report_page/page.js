"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.frames.length;
  const first = data.frames[0], last = data.frames[count - 1];
  const peek = document.getElementById("peek");
  const charts = [...document.querySelectorAll(".chart")];
  const cursors = charts.map((chart) => chart.querySelector(".cursor"));
  let now = 0;

  const number = (value) => value === null ? "-" : Number(value.toPrecision(3)).toString();

  function show(index, x, y) {
    now = index;
    const frame = data.frames[index];
    const at = last > first ? ((frame - first) / (last - first)) * data.width : data.width / 2;
    charts.forEach((chart, i) => {
      cursors[i].setAttribute("x1", at);
      cursors[i].setAttribute("x2", at);
      cursors[i].setAttribute("visibility", "visible");
      chart.querySelector("output").textContent =
        data.curves[chart.dataset.chart].map((values) => number(values[index])).join(" / ");
    });
    const thumb = data.thumbs[data.thumb_of[index]];
    const picture = peek.querySelector("img");
    if (picture.getAttribute("src") !== thumb) picture.src = thumb;
    peek.querySelector("p").textContent =
      [`${frame}, ${data.states[index]}`, ...data.reasons[index]].join("\n");
    peek.hidden = false;
    const box = peek.getBoundingClientRect();
    const left = x + 20 + box.width > innerWidth ? x - 20 - box.width : x + 20;
    const top = y + 20 + box.height > innerHeight ? y - 20 - box.height : y + 20;
    peek.style.left = `${Math.max(left, 4)}px`;
    peek.style.top = `${Math.max(top, 4)}px`;
  }

  function hide() {
    peek.hidden = true;
    charts.forEach((chart, i) => {
      cursors[i].setAttribute("visibility", "hidden");
      chart.querySelector("output").textContent = "";
    });
  }

  function nearest(share) {
    const wanted = first + share * (last - first);
    let best = 0;
    data.frames.forEach((frame, i) => {
      if (Math.abs(frame - wanted) < Math.abs(data.frames[best] - wanted)) best = i;
    });
    return best;
  }

  // What a finger shows stays after it is lifted, until it touches elsewhere or scrolls.
  addEventListener("pointerdown", hide, true);
  addEventListener("pointercancel", hide);
  function point(element, index) {
    const shown = (event) => show(index(event), event.clientX, event.clientY);
    element.addEventListener("pointerdown", shown);
    element.addEventListener("pointermove", shown);
    element.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") hide();
    });
  }

  for (const chart of charts) {
    const plot = chart.querySelector("svg");
    point(chart, (event) => {
      const box = plot.getBoundingClientRect();
      return nearest((event.clientX - box.left) / box.width);
    });
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const box = plot.getBoundingClientRect();
      const next = peek.hidden ? now : Math.min(Math.max(now + step, 0), count - 1);
      show(next, box.left + box.width / 2, box.bottom);
    });
  }

  const body = document.querySelector("#frames tbody");
  const rows = [...body.rows];
  for (const row of rows) point(row, () => Number(row.dataset.index));
  document.getElementById("only-marked")?.addEventListener("change", (event) => {
    for (const row of rows) row.hidden = event.target.checked && !row.matches(".marked");
  });
  const headings = [...document.querySelectorAll("#frames thead th")];
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const text = row.cells[column].textContent;
        const value = parseFloat(text);
        return Number.isNaN(value) ? text : value;
      };
      const empty = (value) => value === "" || value === "-";
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        const order = typeof x === "number" && typeof y === "number"
          ? x - y : String(x).localeCompare(String(y));
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });

  document.documentElement.dataset.ready = String(count);
})();
