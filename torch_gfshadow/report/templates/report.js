"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const axis = document.getElementById("axis");
  const said = document.getElementById("said");
  const figures = [...document.querySelectorAll("script.figure")].map((element) => ({
    plot: document.getElementById(element.dataset.plot),
    spec: JSON.parse(element.textContent),
    at: -1,
  }));

  // "@blue" and "@run3/0.2" in a colour's place become the theme's colours; other strings stay.
  const isColour = (key) => /^(color|fillcolor|bgcolor|gridcolor|zerolinecolor|(paper|plot)_bgcolor)$/.test(key);
  const resolve = (value, key, style) => {
    if (Array.isArray(value)) return ["x", "y", "customdata", "times"].includes(key) ? value : value.map((v) => resolve(v, key, style));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, k, style)]));
    if (typeof value !== "string" || !isColour(key) || value[0] !== "@") return value;
    const [name, alpha] = value.slice(1).split("/");
    const colour = style.getPropertyValue("--" + name).trim();
    return alpha ? colour + Math.round(255 * alpha).toString(16).padStart(2, "0") : colour;
  };

  const draw = () => {
    const style = getComputedStyle(root);
    for (const { plot, spec } of figures) {
      const { data, layout } = resolve(spec, "", style);
      if (root.dataset.axis === "time") {
        data.forEach((trace, i) => { trace.x = spec.times[i]; });
        layout.xaxis.title.text = "flow time t";
        layout.xaxis.hoverformat = ".5~g";
      }
      Plotly.react(plot, data, layout, { responsive: true, displaylogo: false });
    }
  };

  const setAxis = (name) => {
    root.dataset.axis = name;
    axis.textContent = name === "time" ? "Show steps" : "Show flow time";
    for (const figure of figures) figure.at = -1;
  };

  const setTheme = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light mode" : "Dark mode";
    draw();
  };

  // The arrow keys move through a figure as the mouse would, and say what is there.
  const curves = (plot) => plot.data.map((trace, i) => [trace, i]).filter(
    ([trace, i]) => trace.hoverinfo !== "skip" && plot._fullData[i].visible === true);
  const move = (figure, by) => {
    const shown = curves(figure.plot);
    const steps = [...new Set(shown.flatMap(([t]) => t.x.filter((_, i) => t.y[i] !== null)))].sort((a, b) => a - b);
    if (!steps.length) return;
    figure.at = Math.max(0, Math.min(steps.length - 1, figure.at + by));
    const step = steps[figure.at];
    const words = [];
    for (const [trace] of shown) {
      const pointNumber = trace.x.indexOf(step);
      if (pointNumber < 0 || trace.y[pointNumber] === null) continue;
      words.push(`${trace.name.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&")} ${trace.customdata[pointNumber]}`);
    }
    Plotly.Fx.hover(figure.plot, { xval: step });
    said.textContent = `${root.dataset.axis} ${step}: ${words.join("; ")}`;
  };

  for (const figure of figures) {
    figure.plot.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -1e9, End: 1e9 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      move(figure, by);
    });
  }
  button.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  axis.addEventListener("click", () => {
    setAxis(root.dataset.axis === "time" ? "step" : "time");
    draw();
  });
  dark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  setAxis(root.dataset.axis);
  setTheme(dark.matches ? "dark" : "light");
})();
