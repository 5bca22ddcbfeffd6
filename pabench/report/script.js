"use strict";
// Draws the figures, follows the theme, hides engines, changes the load. Needs plotly.js and nothing else.
(() => {
  const figures = JSON.parse(document.getElementById("figure-data").textContent);
  const root = document.documentElement;
  const hiddenEngines = new Set();
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const themes = ["system", "light", "dark"];
  const config = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false,
    showEditInChartStudio: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "toImage"],
    modeBarButtonsToAdd: ["png", "svg"].map((format) => ({
      name: format, title: `Download as ${format.toUpperCase()}`, icon: Plotly.Icons[format === "png" ? "camera" : "disk"],
      click: (place) => Plotly.downloadImage(place, { format, filename: `pabench-${place.id}`, scale: format === "png" ? 2 : 1 }),
    })),
  };

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function themed(layout) {
    const made = structuredClone(layout);
    const text = css("--text"), muted = css("--muted"), grid = css("--grid"), paper = css("--panel");
    made.paper_bgcolor = "rgba(0,0,0,0)";
    made.plot_bgcolor = "rgba(0,0,0,0)";
    made.font = { color: muted, family: css("--font"), size: 12 };
    made.hoverlabel = { ...made.hoverlabel, bgcolor: paper, bordercolor: grid, font: { color: text } };
    made.modebar = { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: text };
    made.dragmode = coarse ? false : "zoom";
    for (const name of ["xaxis", "yaxis"]) {
      Object.assign(made[name], { gridcolor: grid, linecolor: grid, tickcolor: grid });
    }
    return made;
  }

  function drawn(data) {
    return data.map((trace) => ({
      ...trace, ...coloured(trace), visible: !(trace.meta && hiddenEngines.has(trace.meta.engine)),
    }));
  }

  // A block map comes as runs of equal cells along its rows; some colours are the theme's.
  const themeColour = (name) => (name.startsWith("--") ? css(name) : name);
  function coloured(trace) {
    const { map, colour } = trace.meta ?? {};
    if (colour) return { marker: { ...trace.marker, color: themeColour(colour) } };
    if (!map) return {};
    const rows = map.rows.map((row) => {
      const cells = [];
      for (let at = 0; at < row.length; at += 2) cells.push(...Array(row[at]).fill(map.kinds[row[at + 1]]));
      return cells;
    });
    const steps = map.colours.length;
    return {
      z: rows.map((cells) => cells.map((kind) => kind[0])),
      text: rows.map((cells) => cells.map((kind) => kind[1])),
      zmin: -0.5, zmax: steps - 0.5,
      colorscale: map.colours.flatMap((name, at) => [[at / steps, themeColour(name)], [(at + 1) / steps, themeColour(name)]]),
    };
  }

  function draw(place) {
    const figure = figures[place.id];
    return Plotly.react(place, drawn(figure.data), themed(figure.layout), config);
  }

  // Only what is in the page's flow has a size to draw into. What is hidden makes room for the others.
  const inSight = () => [...document.querySelectorAll(".plot")].filter((place) => place.offsetParent !== null);

  function fromView(place) {
    const { top, bottom } = place.getBoundingClientRect();
    return Math.max(0, top - innerHeight, -bottom);
  }

  // A figure takes a while: what is in view comes first, and the page answers between the others.
  let turn = 0;
  async function drawAll() {
    const mine = ++turn;
    root.dataset.ready = "no";
    const left = inSight(), resized = [];
    while (left.length) {
      left.sort((a, b) => fromView(a) - fromView(b));
      const place = left.shift();
      if (fromView(place)) await new Promise((done) => setTimeout(done));
      if (mine !== turn) return;
      await draw(place);
      resized.push(Plotly.Plots.resize(place));  // a tenth of a second later
    }
    await Promise.all(resized);
    if (mine !== turn) return;
    root.dataset.ready = "yes";
  }

  function setTheme(name, keep) {
    const dark = name === "dark" || (name === "system" && systemDark.matches);
    root.dataset.theme = dark ? "dark" : "light";
    root.dataset.choice = name;
    const button = document.getElementById("theme");
    button.textContent = `Theme: ${name}`;
    if (keep) {
      try { localStorage.setItem("pabench-theme", name); } catch { /* some browsers keep nothing for files */ }
    }
    drawAll();
  }

  function savedTheme() {
    try {
      const name = localStorage.getItem("pabench-theme");
      return themes.includes(name) ? name : "system";
    } catch { return "system"; }
  }

  function toggleEngine(engine) {
    if (!hiddenEngines.delete(engine)) hiddenEngines.add(engine);
    const shown = !hiddenEngines.has(engine);
    document.querySelectorAll(`[data-toggle="${engine}"]`).forEach((b) => b.setAttribute("aria-pressed", String(shown)));
    document.querySelectorAll(`figure[data-engine="${engine}"]`).forEach((f) => { f.hidden = !shown; });
    drawAll();
  }

  function chooseLoad(group, pane) {
    document.querySelectorAll(`select[data-group="${group}"]`).forEach((select) => { select.value = pane; });
    document.querySelectorAll(`[data-pane^="${group}-"]`).forEach((div) => { div.hidden = div.dataset.pane !== pane; });
    drawAll();
  }

  // A column of numbers starts with the largest, one of words with the first; what is not told stays last.
  function sortBy(table, column, head) {
    const up = head.ariaSort === "descending" || (head.ariaSort === "none" && !head.classList.contains("number"));
    table.querySelectorAll("thead th").forEach((each) => { each.ariaSort = "none"; });
    head.ariaSort = up ? "ascending" : "descending";
    const value = (row) => {
      const cell = row.cells[column];
      if (!head.classList.contains("number")) return cell.querySelector(".unknown") ? null : cell.textContent.trim();
      return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    };
    const order = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return (up ? 1 : -1) * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    };
    const rows = [...table.tBodies[0].rows];
    rows.map((row) => [value(row), row]).sort(([a], [b]) => order(a, b)).forEach(([, row]) => table.tBodies[0].append(row));
  }

  document.querySelectorAll("table:not(.flip)").forEach((table) => {
    if (table.tBodies[0].rows.length < 2) return;
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.title = "Sort by this column";
      button.append(...head.childNodes);
      head.append(button);
      head.ariaSort = "none";
      button.addEventListener("click", () => sortBy(table, column, head));
    });
  });

  // A table that is wider than its box says so.
  const sized = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    const head = target.parentElement.querySelector(".sideways");
    if (head) head.hidden = target.scrollWidth <= target.clientWidth;
  }));
  document.querySelectorAll(".scroll").forEach((box) => sized.observe(box));

  document.getElementById("theme").addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(root.dataset.choice) + 1) % themes.length], true);
  });
  systemDark.addEventListener("change", () => setTheme(root.dataset.choice, false));
  document.querySelectorAll("[data-toggle]").forEach((button) => {
    button.addEventListener("click", () => toggleEngine(Number(button.dataset.toggle)));
  });
  document.querySelectorAll("select[data-group]").forEach((select) => {
    select.addEventListener("change", () => chooseLoad(select.dataset.group, select.value));
  });

  // Paper is white, and nothing on it can be opened.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
    root.dataset.theme = "light";
    turn += 1;
    inSight().forEach((place) => draw(place).then(() => Plotly.Plots.resize(place)));
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    setTheme(root.dataset.choice, false);
  });

  // So that nothing moves when it is drawn.
  for (const [id, figure] of Object.entries(figures)) {
    const place = document.getElementById(id);
    if (place && figure.layout.height) place.style.minHeight = `${figure.layout.height}px`;
  }
  setTheme(savedTheme(), false);
})();
